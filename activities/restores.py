"""The steps of a restore: what hosts hold, making rows of it, ending what is no more, and the end of it all."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities import adoptions
from activities.database import transaction, use_project
from activities.differences import PATIENCE, ask, held, write_down
from activities.restore_ends import settle_restore
from activities.runs import claim
from activities.settling import settle
from drivers.machines import Machines
from model.base import Frozen
from model.errors import InvalidState, NotFound, Unresolved
from model.hosts import Host
from model.instances import Instance, OwnedMachine, digest_of
from model.projects import Project
from model.restores import (
    FoundMachine,
    Restore,
    RestoreDifference,
    RestoreHost,
    RestoreTree,
    last_restore,
    restored,
)
from model.workflows import TERMINAL, Event, Failure, Order, Outcome, Workflow

log = structlog.get_logger()
ENDED = Failure(code="restored", message="its run ended while the platform was restored from an older backup")
#: Differences that a refusal names.
NAMED = 10


class Survey(Frozen):
    host: str
    machines: list[FoundMachine]
    #: When it was asked for, by the clock of Temporal: the host held this then, or later.
    asked_at: dt.datetime | None = None


class Decision(Frozen):
    """What a run of an operator's decision is about: the machine, and where it is. None: it is about no machine."""

    host: str | None
    machine: OwnedMachine | None


class Adoption(Frozen):
    order: Order
    host: str
    machines: list[FoundMachine]


class RestoreEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


class MachineSurvey:
    """One host's machines, by what they were made from. Runs on that host's queue."""

    def __init__(self, host: str, machines: Machines) -> None:
        self._host = host
        self._machines = machines

    @activity.defn(name="machine.survey", no_thread_cancel_exception=True)
    def survey(self, machine: UUID | None) -> Survey:
        """All machines of ours, or one."""
        return Survey(host=self._host, machines=self._machines.survey(machine))

    @activity.defn(name="machine.discard", no_thread_cancel_exception=True)
    def discard(self, machine: OwnedMachine) -> None:
        """Remove a machine that an operator has named, in this generation or an older one."""
        self._machines.delete(machine.id, machine.generation)
        log.warning("machine.discarded", host=self._host, instance=str(machine.id))


class RestoreRecords:
    """A restore in the database. Runs on the control queue."""

    def __init__(self, engine: Engine, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        """``loop``: the client's; activities run in threads."""
        self._engine = engine
        self._client = client
        self._loop = loop

    @activity.defn(name="restore.note")
    def note(self, survey: Survey) -> None:
        """Keep what a host was found to hold, in the place of what it was found to hold before.

        A look that was asked for earlier than the one that is kept says nothing: it may have seen what was discarded
        since, where this is its second attempt.
        """
        with transaction(self._engine) as session:
            host_id = session.scalar(select(Host.id).where(Host.name == survey.host))
            restore = last_restore(session)
            if host_id is None or restore is None or restore.finished_at is not None:
                return
            plain = [OwnedMachine.model_validate(_as_owned(machine)) for machine in survey.machines]
            values = {
                "restore_id": restore.id,
                "machines": [machine.model_dump(mode="json") for machine in survey.machines],
                "digest": digest_of(plain),
                "surveyed_at": survey.asked_at or func.now(),
            }
            note = insert(RestoreHost).values(host_id=host_id, **values)
            older = or_(
                RestoreHost.restore_id != note.excluded.restore_id, RestoreHost.surveyed_at <= note.excluded.surveyed_at
            )
            session.execute(note.on_conflict_do_update(index_elements=["host_id"], set_=values, where=older))

    @activity.defn(name="restore.claim")
    def claim(self, order: Order) -> Decision:
        """Claim the run, and say which machine it is about: the newest, where there are several."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            restore = last_restore(session)
            if restore is None or restore.finished_at is not None:
                raise InvalidState("the platform is not restored, or that was finished", state="finished")
            named = select(RestoreDifference.kind).where(RestoreDifference.resource_id == order.resource_id)
            kinds = set(session.scalars(named))
            if kinds == {"files_without_row"}:
                raise InvalidState(
                    "there is no machine, but files: they stay until they are removed there", state="files"
                )
            if order.kind == "DiscardMachine" and not kinds:
                raise InvalidState("nothing differs about it: delete its instance instead", state="agreed")
            found = held(session, restore.id).get(order.resource_id, [])
            if not found:
                return Decision(host=None, machine=None)
            return Decision(host=found[0].host.name, machine=OwnedMachine.model_validate(_as_owned(found[0].machine)))

    @activity.defn(name="restore.adopt")
    def adopt(self, adoption: Adoption) -> None:
        """Make the row what the machine is. Repeated, the same."""
        if not adoption.machines:
            raise NotFound(f"host {adoption.host} has no machine {adoption.order.resource_id} any more")
        with transaction(self._engine, adoption.order.project_id) as session:
            self._require_idle(session, adoption.order.resource_id)
            adoptions.adopt(session, adoption.order, adoption.host, adoption.machines[0], ENDED)

    def _require_idle(self, session: Session, instance_id: UUID) -> None:
        """Raises InvalidState where a run works on the instance: its row would become wrong again."""
        listed = select(RestoreDifference.resource_id).where(RestoreDifference.kind == "row_without_run")
        busy = session.execute(
            select(Workflow.id, Workflow.kind).where(
                Workflow.resource_id == instance_id,
                Workflow.resource_type == "instance",
                Workflow.state.not_in(TERMINAL),
                Workflow.id.not_in(listed),
            )
        ).first()
        if busy is not None:
            said = f"workflow {busy.id} ({busy.kind}) still works on it: wait for its end, or cancel it"
            raise InvalidState(said, state="busy", workflow_id=str(busy.id))

    @activity.defn(name="restore.forget")
    def forget(self, order: Order) -> None:
        """End what a difference names and is no more: an instance without its machine, a row without its run, or a
        run without its row. Raises InvalidState."""
        if self._forget(order):
            asyncio.run_coroutine_threadsafe(self._terminate(order.resource_id), self._loop).result(PATIENCE)

    async def _terminate(self, workflow_id: UUID) -> None:
        try:
            await self._client.get_workflow_handle(str(workflow_id)).terminate("its row is in no database")
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # else it has ended
                raise

    def _forget(self, order: Order) -> bool:
        with transaction(self._engine, order.project_id) as session:
            found = session.scalars(
                select(RestoreDifference).where(RestoreDifference.resource_id == order.resource_id)
            ).all()
            kinds = {difference.kind for difference in found}
            if "row_without_machine" in kinds:
                adoptions.forget(session, order, ENDED)
            elif "row_without_run" in kinds:
                self._end(session, order.resource_id)
            elif "run_without_row" in kinds:
                return True
            elif "machine_without_row" in kinds or "machine_differs" in kinds:
                raise InvalidState("a machine is not forgotten: adopt it, discard it, or leave it", state="found")
        return False

    def _end(self, session: Session, workflow_id: UUID) -> None:
        row = session.get_one(Workflow, workflow_id)
        restore = last_restore(session)
        if row.resource_type == "instance" and restore is not None and row.resource_id in held(session, restore.id):
            said = f"instance {row.resource_id} has a machine: adopt that, or discard it first"
            raise InvalidState(said, state=row.state)
        use_project(session, row.project_id)
        settle(session, Order.model_validate(row.order), "failed", ENDED, [])

    @activity.defn(name="restore.finish")
    def finish(self, order: Order) -> None:
        """End the restore, where nothing is undecided. Raises Unresolved. Repeated, nothing happens."""
        runs = asyncio.run_coroutine_threadsafe(ask(self._engine, self._client), self._loop).result(PATIENCE)
        write_down(self._engine, runs)
        self._finish(order)

    def _finish(self, order: Order) -> None:
        with transaction(self._engine, order.project_id) as session:
            if not restored(session):
                return
            restore = session.scalars(select(Restore).where(Restore.finished_at.is_(None)).with_for_update()).one()
            found = session.scalars(select(RestoreDifference).order_by(RestoreDifference.number)).all()
            open = [d for d in found if d.difference["blocks"] and not _is_left(d, restore.left_alone)]
            if open:
                first = "; ".join(f"{d.kind} {d.name} ({d.resource_id or ''})" for d in open[:NAMED])
                raise Unresolved(f"{len(open)} differences are undecided: {first}", count=len(open))
            for id, copies in held(session, restore.id).items():
                newest = copies[0].machine.generation
                past = update(Instance).where(Instance.id == id, Instance.last_generation < newest)
                session.execute(past.values(last_generation=newest))
            session.execute(update(Host).values(reconciled=None))
            session.execute(delete(RestoreHost))
            session.execute(delete(RestoreTree))
            # Nobody looks for these any more, and they stay: an operator finds them here.
            session.execute(delete(RestoreDifference).where(RestoreDifference.kind != "files_without_row"))
            restore.finished_at = func.now()
            tell_all(session, "platform.restore_finished", {"left": restore.left_alone})

    @activity.defn(name="restore.settle")
    def settle(self, ended: RestoreEnd) -> None:
        """End the run."""
        with transaction(self._engine, ended.order.project_id) as session:
            settle_restore(session, ended.order, ended.outcome, ended.failure, None)


def _as_owned(machine: FoundMachine) -> dict[str, Any]:
    return machine.model_dump(include=set(OwnedMachine.model_fields))


def _is_left(difference: RestoreDifference, left: list[Any]) -> bool:
    return str(difference.resource_id) in left or (difference.kind.startswith("host_") and difference.name in left)


def tell_all(session: Session, type: str, data: dict[str, Any]) -> None:
    """An event in every project, about the platform."""
    restore = last_restore(session)
    if restore is None:
        return
    for project in session.scalars(select(Project.id)).all():
        use_project(session, project)
        session.add(Event(project_id=project, type=type, resource_type="platform", resource_id=restore.id, data=data))
        session.flush()
