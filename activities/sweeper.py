"""The sweeper: runs that were not started, cancels that were not delivered, runs that ended elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy import ColumnElement, Engine, func, select, true, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, aliased
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities import (
    audit,
    chores,
    differences,
    due_webhooks,
    group_balancing,
    group_orders,
    group_policies,
    image_chores,
    reencryption,
    samples,
)
from activities.balancer_orders import order_updates
from activities.chores import Chore
from activities.cron_schedules import CronSchedules
from activities.database import transaction
from activities.fleet import BEAT, TICK, Limits, beat, replace_lost, to_reconcile
from activities.image_records import ImageLimits
from activities.lifetimes import order_due
from activities.runs import start, summarise
from activities.settling import settle
from model import policies, restores
from model.balancers import BalancerTarget, TargetState
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
T = TypeVar("T")
#: What finds out which chores there are.
Look = Callable[[Session], list[Chore]]


async def _alone(name: str, look: Awaitable[T], otherwise: T) -> T:
    """What a look finds; ``otherwise`` where it fails, whatever is wrong: the others still have their turn."""
    try:
        return await look
    except Exception as error:
        # Without its database a sweep has many of them.
        said = {"error": str(error).partition("\n")[0] or type(error).__name__}
        log.warning("sweep.look_failed", look=name, **said, exc_info=not isinstance(error, OperationalError))
        return otherwise


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
        self._cron = CronSchedules(engine, client)
        #: When policies were judged last, by this process. One more look changes nothing.
        self._judged = -policies.EVERY.total_seconds()

    @activity.defn(name="tick.sweep")
    async def sweep(self) -> Swept:
        """One pass over the rows that need it: its cost grows with what is wrong, not with what runs.

        Async, unlike other activities: it makes many calls to Temporal at once, and its few queries
        run in a thread.
        """
        gate = asyncio.Semaphore(AT_ONCE)
        failures: list[Exception] = []

        async def each(things: list[T], act: Callable[[T], Awaitable[None]]) -> int:
            async def one(thing: T) -> bool:
                async with gate:
                    try:
                        await asyncio.wait_for(act(thing), PATIENCE.total_seconds())
                        return True
                    except (RPCError, SQLAlchemyError, TimeoutError) as error:
                        failures.append(error)
                        return False

            return sum(await asyncio.gather(*(one(thing) for thing in things)))

        await self.order_due()
        await self._order_for_groups()
        # Not when called by NOTIFY, which also comes while Temporal is away, and hosts cannot renew their leases.
        nothing: list[Chore] = []
        hosts = await _alone("hosts", asyncio.to_thread(self._look_at_hosts, activity.in_activity()), nothing)
        # Not alone: where it is not known whether the platform is restored, nothing of the rest may be done.
        restored = await differences.look(self._engine, self._client)
        lost, asked, unchecked = await _alone("workflows", asyncio.to_thread(self._find, restored), ([], [], []))
        swept = Swept(
            started=await each(lost, self._start),
            cancelled=await each(asked, self._cancel),
            checked=await each(unchecked, self._check),
            failed=len(failures),
        )
        looks: dict[str, Look] = {"audit": partial(audit.due, keyring=self._keyring)}
        if not restored:
            looks |= {
                "samples": samples.due,
                "images": partial(image_chores.due, limits=self._images),
                "reencryption": partial(reencryption.due, newest=self._limits.newest_key),
                "webhooks": partial(due_webhooks.due_runs, wake=activity.in_activity()),
            }
            await each(hosts, self._start_chore)
            await _alone("cron", self._cron.look(), None)
        for name, look in looks.items():
            await each(await _alone(name, asyncio.to_thread(self._look, look), nothing), self._start_chore)
        if failures:
            log.warning("sweep.failed", count=len(failures), error=str(failures[0]) or type(failures[0]).__name__)
        return swept

    async def order_due(self) -> int:
        """Order what is due by the clock, and start it at once: how many. What cannot be started, a sweep starts."""
        lifetimes = await self._order("lifetimes", self._lifetimes_due)
        return lifetimes + await self._order("balancers", self._balancers_due)

    async def _order_for_groups(self) -> None:
        if activity.in_activity():
            await _alone("joins", asyncio.to_thread(self._join_balancers), None)
            await self._order("groups", self._groups_due)
            if time.monotonic() - self._judged >= policies.EVERY.total_seconds():
                self._judged = time.monotonic()
                await self._order("policies", self._by_policies)

    async def _order(self, name: str, look: Callable[[], list[Order]]) -> int:
        nothing: list[Order] = []
        due = await _alone(name, asyncio.to_thread(look), nothing)
        await self._start_each(due)
        return len(due)

    async def _start_each(self, due: list[Order]) -> None:
        """Several at once: each may take as long as Temporal may."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(order: Order) -> None:
            try:
                async with gate:
                    await asyncio.wait_for(start(self._client, order), PATIENCE.total_seconds())
            except Exception as error:  # whatever is wrong with one, the others are started
                log.info("due.not_started", workflow_id=str(order.workflow_id), error=str(error))

        await asyncio.gather(*(one(order) for order in due))

    def _join_balancers(self) -> None:
        with transaction(self._engine) as session:
            group_balancing.join_due(session)

    def _by_policies(self) -> list[Order]:
        return group_policies.order_due(self._engine)

    def _groups_due(self) -> list[Order]:
        with transaction(self._engine) as session:
            return group_orders.order_due(session)

    def _lifetimes_due(self) -> list[Order]:
        with transaction(self._engine) as session:
            return order_due(session, self._limits)

    def _balancers_due(self) -> list[Order]:
        with transaction(self._engine) as session:
            return [] if restores.restored(session) else order_updates(session, self._limits)

    def _look_at_hosts(self, ticking: bool) -> list[Chore]:
        with transaction(self._engine) as session:
            if ticking:
                session.execute(BEAT, beat(TICK, self._limits.tick_away))
            hosts = to_reconcile(session, self._limits)
        if ticking:
            with transaction(self._engine) as session:
                replace_lost(session, self._limits)
        return [
            Chore("ReconcileHost", f"reconcile-{host}", f"Compare host {host} with what it should hold", [host])
            for host in hosts
        ]

    def _look(self, look: Look) -> list[Chore]:
        with transaction(self._engine) as session:
            return look(session)

    async def _start_chore(self, chore: Chore) -> None:
        await chores.start(self._client, chore)

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
            # What is to be deleted ends first what it has begun, also where who ordered that was called off.
            drains = select(BalancerTarget.instance_id).where(
                BalancerTarget.instance_id == Workflow.resource_id, BalancerTarget.state == TargetState.DRAINING
            )
            alone = Workflow.parent_id.is_(None) | (orphaned & ~drains.exists())
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
