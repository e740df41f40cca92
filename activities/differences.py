"""What database, Temporal and engines do not agree about after a restore: looked for, named, written down.

Nothing here changes anything but the list of differences.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from activities.database import transaction
from activities.hosts import names_of
from activities.runs import CONTROL
from model.drift import compare
from model.hosts import LEASE, Host
from model.instances import Instance, Port, Status
from model.restores import (
    KINDS,
    Difference,
    FoundMachine,
    Restore,
    RestoreDifference,
    RestoreHost,
    RestoreTree,
    restored,
)
from model.workflows import TERMINAL, Workflow

log = structlog.get_logger()
#: Questions to Temporal at once, and how long one look waits for all of them.
AT_ONCE, PATIENCE = 8, 20.0
#: Runs that are looked through for names of hosts: every host has had some of the newest.
NEWEST = 1000
_OPEN = (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)


class Runs(NamedTuple):
    """What Temporal says."""

    #: Those that are open: id → kind.
    open: dict[UUID, str]
    #: Rows that are not at their end, whose run is: id → how it ended.
    closed: dict[UUID, str]
    #: Rows that Temporal does not know.
    unknown: set[UUID]
    #: Names of hosts that were ever reconciled, as far as that is remembered.
    hosts: set[str]


class Held(NamedTuple):
    """A machine, and the host that has it."""

    host: Host
    machine: FoundMachine


async def look(engine: Engine, client: Client) -> bool:
    """Where the platform is restored: have its hosts surveyed, and write down what differs. Whether it is."""
    hosts = await asyncio.to_thread(_to_survey, engine)
    if hosts is None:
        return False
    try:
        async with asyncio.timeout(PATIENCE):
            for host in hosts:
                await client.start_workflow(
                    "SurveyHost",
                    host,
                    id=f"survey-{host}",
                    task_queue=CONTROL,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    static_summary=f"Look at all that host {host} holds, after a restore",
                )
            runs = await ask(engine, client)
        await asyncio.to_thread(write_down, engine, runs)
    except (RPCError, TimeoutError) as error:
        log.warning("restore.not_looked_at", error=str(error) or type(error).__name__)
    return True


def _to_survey(engine: Engine) -> list[str] | None:
    """Hosts that were not surveyed since the restore, or hold something else by now; None: it is not restored."""
    with transaction(engine) as session:
        if not restored(session):
            return None
        restore = _open_restore(session)
        due = or_(
            RestoreHost.host_id.is_(None),
            RestoreHost.restore_id != restore.id,
            RestoreHost.digest.is_distinct_from(Host.inventory),
        )
        known = RestoreHost.host_id == Host.id
        leased = Host.last_seen_at > func.now() - LEASE
        return list(session.scalars(select(Host.name).outerjoin(RestoreHost, known).where(leased, due)))


async def ask(engine: Engine, client: Client) -> Runs:
    """Compare the rows that are under way with what Temporal has. Raises RPCError."""
    waiting = await asyncio.to_thread(_under_way, engine)
    runs = Runs({}, {}, set(), set())
    async for run in client.list_workflows("ExecutionStatus = 'Running'"):
        if (id := _id(run.id)) is not None and run.workflow_type not in KINDS:
            runs.open[id] = run.workflow_type
    gate = asyncio.Semaphore(AT_ONCE)

    async def describe(id: UUID) -> None:
        async with gate:
            try:
                status = (await client.get_workflow_handle(str(id)).describe()).status
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                runs.unknown.add(id)
                return
        if status in _OPEN or status is None:
            runs.open.setdefault(id, "")
        else:
            runs.closed[id] = status.name.lower()

    await asyncio.gather(*(describe(id) for id in waiting))
    async for run in client.list_workflows("WorkflowType = 'ReconcileHost'", limit=NEWEST):
        runs.hosts.add(run.id.removeprefix("reconcile-"))
    return runs


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _under_way(engine: Engine) -> list[UUID]:
    with transaction(engine) as session:
        mine = Workflow.kind.not_in(KINDS)
        return list(session.scalars(select(Workflow.id).where(Workflow.state.not_in(TERMINAL), mine)))


def write_down(engine: Engine, runs: Runs) -> list[Difference]:
    """Compare, and replace the list of differences by what was found."""
    with transaction(engine) as session:
        if not restored(session):
            return []
        restore = _open_restore(session)
        found = differences(session, restore, runs)
        session.execute(delete(RestoreDifference))
        if found:
            session.execute(
                insert(RestoreDifference),
                [
                    {
                        "number": number,
                        "kind": one.kind,
                        "resource_id": one.id,
                        "name": one.name,
                        "difference": one.model_dump(mode="json"),
                    }
                    for number, one in enumerate(found, 1)
                ],
            )
        session.execute(update(Restore).where(Restore.id == restore.id).values(looked_at=func.now()))
    return found


def _open_restore(session: Session) -> Restore:
    # Who looks locks it: two looks at once would both write the list.
    return session.scalars(select(Restore).where(Restore.finished_at.is_(None)).with_for_update()).one()


def held(session: Session, restore_id: UUID) -> dict[UUID, list[Held]]:
    """All machines that were found since the restore, by instance; the newest generation first."""
    found: dict[UUID, list[Held]] = {}
    rows = select(RestoreHost, Host).join(Host, Host.id == RestoreHost.host_id)
    for survey, host in session.execute(rows.where(RestoreHost.restore_id == restore_id)):
        for told in survey.machines:
            machine = FoundMachine.model_validate(told)
            found.setdefault(machine.id, []).append(Held(host, machine))
    for machines in found.values():
        machines.sort(key=lambda one: one.machine.generation, reverse=True)
    return found


def differences(session: Session, restore: Restore, runs: Runs) -> list[Difference]:
    """Every one, machines first."""
    machines = held(session, restore.id)
    rows = {row.id: row for row in session.scalars(select(Instance).where(Instance.id.in_(machines)))}
    ended = _ended(session, runs)
    found: list[Difference] = []
    for id, copies in machines.items():
        found += _of_machines(copies, rows.get(id), ended.get(id))
    found += _without_machine(session, restore, machines)
    found += _of_runs(session, runs, set(machines))
    found += _of_hosts(session, restore, runs)
    found += _of_trees(session, restore)
    return found


def _ended(session: Session, runs: Runs) -> dict[UUID, str]:
    """Instances whose row waits for a run that has ended: how that did."""
    rows = select(Workflow.resource_id, Workflow.id).where(
        Workflow.id.in_(runs.closed), Workflow.resource_type == "instance"
    )
    return {row.resource_id: runs.closed[row.id] for row in session.execute(rows)}


def _of_machines(copies: list[Held], row: Instance | None, ended: str | None) -> list[Difference]:
    found = []
    for host, machine in copies:
        placed = row is not None and (host.id, machine.generation) in (
            (row.host_id, row.generation),
            (row.next_host_id, row.next_generation),
        )
        common = {
            "id": machine.id,
            "name": row.name if row is not None else machine.name or str(machine.id),
            "host": host.name,
            "project_id": row.project_id if row is not None else machine.project_id,
            "generation": machine.generation,
        }
        if row is None:
            found.append(Difference(kind="machine_without_row", what="no row knows it", **common))
        elif not placed and machine.generation <= row.last_generation:
            said = f"its row is at generation {row.generation}: removed when the restore is finished"
            found.append(Difference(kind="leftover", what=said, blocks=False, **common))
        elif not placed:
            where = f"at generation {row.generation}" if row.host_id else "on no host"
            found.append(Difference(kind="machine_differs", what=f"its row is {row.status}, {where}", **common))
        elif ended is not None:
            said = f"its row is {row.status}, and the run that it waits for has ended ({ended})"
            found.append(Difference(kind="machine_differs", what=said, **common))
        elif differs := _differs(row, machine):
            found.append(Difference(kind="machine_differs", what=differs, **common))
    return found


def _differs(row: Instance, machine: FoundMachine) -> str | None:
    """How a machine is not as its row says; None where it is, or where somebody works on it."""
    if row.status not in (Status.RUNNING, Status.STOPPED, Status.PAUSED):
        return None
    drift = compare(
        machine,
        status=Status(row.status),
        images=names_of(row),
        vcpus=row.vcpus,
        memory_mb=row.memory_mb,
        # What a driver cannot tell whole counts as equal.
        ports=[Port.model_validate(port) for port in row.ports] if row.backend != "simulated" else machine.ports or [],
        now=dt.datetime.now(dt.UTC),
    )
    if drift is None:
        return None
    if drift.kind != "changed":
        return f"it is {drift.kind}, and its row {row.status}"
    return ", ".join(
        f"its {name} is {change['actual']}, and in its row {change['expected']}"
        for name, change in drift.changes.items()
    )


def _without_machine(session: Session, restore: Restore, machines: dict[UUID, list[Held]]) -> list[Difference]:
    seen = select(RestoreHost.host_id).where(RestoreHost.restore_id == restore.id)
    at_rest = Instance.status.in_((Status.RUNNING, Status.STOPPED, Status.PAUSED))
    rows = session.execute(
        select(Instance, Host.name.label("host"))
        .join(Host, Host.id == Instance.host_id)
        .where(at_rest, Instance.host_id.in_(seen), Instance.id.not_in(machines))
        .order_by(Instance.id)
    )
    return [
        Difference(
            kind="row_without_machine",
            id=row.id,
            name=row.name,
            host=host,
            project_id=row.project_id,
            generation=row.generation,
            what=f"its row is {row.status}, and its host has no machine of it",
        )
        for row, host in rows
    ]


def _of_runs(session: Session, runs: Runs, machines: set[UUID]) -> list[Difference]:
    known = set(session.scalars(select(Workflow.id).where(Workflow.id.in_(runs.open))))
    found = [
        Difference(kind="run_without_row", id=id, name=kind, what="it runs, and no row knows it")
        for id, kind in runs.open.items()
        if id not in known
    ]
    rows = session.scalars(select(Workflow).where(Workflow.id.in_([*runs.closed, *runs.unknown])).order_by(Workflow.id))
    for row in rows:
        ended = runs.closed.get(row.id)
        has_machine = row.resource_type == "instance" and row.resource_id in machines
        said = "Temporal does not know it: it is started at the end"
        if ended is not None:
            said = f"its run has ended ({ended})" + (f": adopt {row.resource_id}" if has_machine else "")
        found.append(
            Difference(
                kind="row_without_run",
                id=row.id,
                name=f"{row.kind} {row.order['name']}",
                project_id=row.project_id,
                what=f"it is {row.state}, and {said}",
                run=ended,
                # Where there is a machine, its own difference is what is decided about.
                blocks=ended is not None and not has_machine,
            )
        )
    return found


def _of_hosts(session: Session, restore: Restore, runs: Runs) -> list[Difference]:
    seen = select(RestoreHost.host_id).where(RestoreHost.restore_id == restore.id)
    unseen = session.scalars(select(Host).where(Host.id.not_in(seen), Host.last_seen_at.is_not(None))).all()
    names = set(session.scalars(select(Host.name)))
    return [
        *(
            Difference(
                kind="host_not_seen", id=host.id, name=host.name, host=host.name, what="it was not looked at yet"
            )
            for host in unseen
        ),
        *(
            Difference(
                kind="host_unknown",
                id=None,
                name=name,
                host=name,
                what="it was reconciled once, and has no row: let it join again, or it was removed",
                blocks=False,
            )
            for name in sorted(runs.hosts - names)
        ),
    ]


def _of_trees(session: Session, restore: Restore) -> list[Difference]:
    """Files that no row knows. No row is made of them: they stay where they are."""
    rows = select(RestoreTree).where(RestoreTree.restore_id == restore.id).order_by(RestoreTree.kind, RestoreTree.id)
    return [
        Difference(
            kind="files_without_row",
            id=tree.id,
            name=f"{tree.kind} {tree.id}",
            host=tree.host,
            project_id=tree.project_id,
            what=f"no row knows the {tree.kind} whose files its agent has: they stay there, in {_folder(tree)}",
            blocks=False,
        )
        for tree in session.scalars(rows)
    ]


def _folder(tree: RestoreTree) -> str:
    return f"trees/caches/{tree.project_id}/{tree.id}" if tree.kind == "cache" else f"trees/{tree.kind}s/{tree.id}"
