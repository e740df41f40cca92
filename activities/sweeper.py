"""The sweeper: runs that were not started, cancels that were not delivered, runs that ended elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, Engine, func, select, true, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities import audit, differences, image_chores, reencryption
from activities.database import transaction
from activities.fleet import BEAT, TICK, Limits, beat, replace_lost, to_reconcile
from activities.image_records import ImageLimits
from activities.lifetimes import order_due
from activities.runs import CONTROL, start, summarise
from activities.samples import is_due
from activities.settling import settle
from activities.webhooks import start_due
from model.base import Frozen
from model.keyring import Keyring
from model.restores import KINDS
from model.workflows import TERMINAL, Failure, Order, Outcome, State, Step, Workflow

#: A row younger than this is still in the hands of the API process that accepted it.
LOST_AFTER = timedelta(seconds=3)
#: How often a running row is compared with Temporal.
CHECK_EVERY = timedelta(seconds=15)
BATCH = 500
AT_ONCE = 8
#: For one call to Temporal, where it neither answers nor refuses.
PATIENCE = timedelta(seconds=5)

log = structlog.get_logger()


class Swept(Frozen):
    """What one sweep did."""

    started: int = 0
    cancelled: int = 0
    checked: int = 0
    #: What Temporal did not answer for; the next sweep finds it again.
    failed: int = 0


class Sweeper:
    """Runs on the control queue, with every tick, and whenever the API says that it needs it."""

    def __init__(
        self, engine: Engine, client: Client, limits: Limits, images: ImageLimits, keyring: Keyring | None = None
    ) -> None:
        self._engine = engine
        self._client = client
        self._limits = limits
        self._images = images
        self._keyring = keyring

    @activity.defn(name="tick.sweep")
    async def sweep(self) -> Swept:
        """One pass over the rows that need it: its cost grows with what is wrong, not with what runs.

        Async, unlike other activities: it makes many calls to Temporal at once, and its few queries
        run in a thread.
        """
        gate = asyncio.Semaphore(AT_ONCE)
        failures: list[Exception] = []

        async def each(orders: list[Order], act: Callable[[Order], Awaitable[None]]) -> int:
            async def one(order: Order) -> bool:
                async with gate:
                    try:
                        await asyncio.wait_for(act(order), PATIENCE.total_seconds())
                        return True
                    except (RPCError, SQLAlchemyError, TimeoutError) as error:
                        failures.append(error)
                        return False

            return sum(await asyncio.gather(*(one(order) for order in orders)))

        await self.order_due()
        # Not when called by NOTIFY, which also comes while Temporal is away, and hosts cannot renew their leases.
        hosts = await asyncio.to_thread(self._look_at_hosts, activity.in_activity())
        restored = await differences.look(self._engine, self._client)
        lost, asked, unchecked = await asyncio.to_thread(self._find, restored)
        swept = Swept(
            started=await each(lost, self._start),
            cancelled=await each(asked, self._cancel),
            checked=await each(unchecked, self._check),
            failed=len(failures),
        )
        try:
            if await asyncio.to_thread(self._audit_is_due):
                await asyncio.wait_for(self._seal_audit(), PATIENCE.total_seconds())
        except (RPCError, TimeoutError) as error:
            failures.append(error)
        if restored:
            return swept
        for host in hosts:
            try:
                await asyncio.wait_for(self._reconcile(host), PATIENCE.total_seconds())
            except (RPCError, TimeoutError) as error:
                failures.append(error)
        try:
            if await asyncio.to_thread(self._samples_are_due):
                await asyncio.wait_for(self._coarsen_samples(), PATIENCE.total_seconds())
            chores = await asyncio.to_thread(self._image_chores)
            await asyncio.wait_for(image_chores.start(self._client, *chores, self._images), PATIENCE.total_seconds())
        except (RPCError, TimeoutError) as error:
            failures.append(error)
        try:
            if await asyncio.to_thread(self._secrets_are_due):
                await asyncio.wait_for(self._reencrypt(), PATIENCE.total_seconds())
        except (RPCError, TimeoutError) as error:
            failures.append(error)
        try:
            wake = activity.in_activity()
            await asyncio.wait_for(start_due(self._engine, self._client, wake=wake), PATIENCE.total_seconds())
        except (RPCError, TimeoutError) as error:
            failures.append(error)
        if failures:
            log.warning("sweep.failed", count=len(failures), error=str(failures[0]) or type(failures[0]).__name__)
        return swept

    async def order_due(self) -> int:
        """Order what is due by the clock, and start it at once: how many. What cannot be started, a sweep starts."""
        due = await asyncio.to_thread(self._order_due)
        for order in due:
            try:
                await asyncio.wait_for(start(self._client, order), PATIENCE.total_seconds())
            except Exception as error:  # whatever is wrong with one, the others are started
                log.info("due.not_started", workflow_id=str(order.workflow_id), error=str(error))
        return len(due)

    def _order_due(self) -> list[Order]:
        with transaction(self._engine) as session:
            return order_due(session, self._limits)

    def _look_at_hosts(self, ticking: bool) -> list[str]:
        with transaction(self._engine) as session:
            if ticking:
                session.execute(BEAT, beat(TICK, self._limits.tick_away))
            hosts = to_reconcile(session, self._limits)
        if ticking:
            with transaction(self._engine) as session:
                replace_lost(session, self._limits)
        return hosts

    async def _reconcile(self, host: str) -> None:
        await self._client.start_workflow(
            "ReconcileHost",
            host,
            id=f"reconcile-{host}",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Compare host {host} with what it should hold",
        )

    def _samples_are_due(self) -> bool:
        with transaction(self._engine) as session:
            return is_due(session)

    def _audit_is_due(self) -> bool:
        with transaction(self._engine) as session:
            return audit.is_due(session, self._keyring)

    async def _seal_audit(self) -> None:
        await self._client.start_workflow(
            "SealAudit",
            id="audit",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary="Link new rows of the audit log to its chains",
        )

    def _image_chores(self) -> tuple[list[str], bool]:
        with transaction(self._engine) as session:
            return image_chores.due(session)

    async def _coarsen_samples(self) -> None:
        await self._client.start_workflow(
            "CoarsenSamples",
            id="samples",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary="Make old samples coarser, and remove those that are too old",
        )

    def _secrets_are_due(self) -> bool:
        newest = self._limits.newest_key
        if newest is None:
            return False
        with transaction(self._engine) as session:
            return reencryption.is_due(session, newest)

    async def _reencrypt(self) -> None:
        await self._client.start_workflow(
            "ReencryptSecrets",
            id="reencrypt",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary="Bring secrets under the newest master key",
        )

    def _find(self, restored: bool) -> tuple[list[Order], list[Order], list[Order]]:
        old = func.now() - LOST_AFTER
        # While the platform is restored, only what its operator asks for goes on.
        now = Workflow.kind.in_(KINDS) if restored else true()
        with transaction(self._engine) as session:

            def orders(*where: ColumnElement[bool]) -> list[Order]:
                found = select(Workflow.order).where(now, *where).order_by(Workflow.id).limit(BATCH)
                return [Order.model_validate(order) for order in session.scalars(found)]

            parent = aliased(Workflow)
            # A child is its parent's to start, as long as that lives.
            orphaned = select(parent.id).where(parent.id == Workflow.parent_id, parent.state.in_(TERMINAL)).exists()
            alone = Workflow.parent_id.is_(None) | orphaned
            lost = orders(Workflow.state == State.ACCEPTED, alone, Workflow.created_at < old)
            asked = orders(Workflow.state == State.RUNNING, Workflow.cancel_requested_at < old)
            unchecked = list(
                session.scalars(
                    update(Workflow)
                    .where(
                        Workflow.id.in_(
                            select(Workflow.id)
                            .where(now, Workflow.state == State.RUNNING, Workflow.checked_at < func.now() - CHECK_EVERY)
                            .order_by(Workflow.checked_at)
                            .limit(BATCH)
                        )
                    )
                    .values(checked_at=func.now())
                    .returning(Workflow.order)
                )
            )
        return lost, asked, [Order.model_validate(order) for order in unchecked]

    async def _start(self, order: Order) -> None:
        try:
            await start(self._client, order)
        except WorkflowAlreadyStartedError:
            # It ran and ended without ever claiming its row (terminated by hand, say).
            await self._check(order)

    async def _cancel(self, order: Order) -> None:
        await self._client.get_workflow_handle(str(order.workflow_id)).cancel()

    async def _check(self, order: Order) -> None:
        """Settle a row whose run has ended without settling it; start again one that Temporal lost."""
        handle = self._client.get_workflow_handle(str(order.workflow_id))
        try:
            description = await handle.describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await asyncio.to_thread(self._set_back, order)
            await start(self._client, order)
            return
        status = description.status
        if status in (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW):
            return
        steps = await summarise(handle, running=False)
        outcome: Outcome = "cancelled" if status is WorkflowExecutionStatus.CANCELED else "failed"
        failure = Failure(code=f"run_{status.name.lower()}", message=f"its run ended outside Cairn: {status.name}")
        await asyncio.to_thread(self._settle, order, outcome, failure, steps)

    def _set_back(self, order: Order) -> None:
        with transaction(self._engine) as session:
            session.execute(
                update(Workflow)
                .where(Workflow.id == order.workflow_id, Workflow.state == State.RUNNING)
                .values(state=State.ACCEPTED, run_id=None)
            )

    def _settle(self, order: Order, outcome: Outcome, failure: Failure, steps: list[Step]) -> None:
        with transaction(self._engine, order.project_id) as session:
            settle(session, order, outcome, failure, steps)
