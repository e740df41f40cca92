"""The steps of work sessions: their records in the database, their files on hosts. Sandboxes are instances."""

from __future__ import annotations

import datetime as dt
from typing import Protocol
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from temporalio import activity

from activities import orders
from activities.database import transaction
from activities.fleet import Limits
from activities.instances import FORCE_AFTER, spec_of
from activities.runs import Histories, claim, others, record
from activities.session_ends import SessionEnd, lock_session, move_session, settle_session
from drivers.machines import Check
from model.base import Frozen
from model.errors import InvalidState, NotReady
from model.hosts import Host
from model.instances import VERBS, Instance, MachineSpec, Status
from model.pools import Join
from model.sessions import INIT, START, STOP, SessionStatus, SessionTree, WorkSession
from model.workflows import TERMINAL, Order, Workflow
from model.workspaces import Workspace

#: What a session's run does to its sandbox.
_PARTS = {STOP: "StopInstance", START: "StartInstance"}


class Sandbox(Frozen):
    """Where a session is, what its files are made of, and what is done to its sandbox next. ``host`` None: nowhere."""

    host: str | None
    tree: SessionTree
    change: Order | None = None
    #: What it has claimed, and runs already.
    warm: MachineSpec | None = None


class Trees(Protocol):
    """Files of sessions on one host; see ``drivers.session_trees``."""

    def prepare(self, tree: SessionTree, cancelled: Check) -> object: ...

    def remove(self, session: UUID) -> None: ...


class WarmPlaces(Protocol):
    """Sandboxes of one host that sessions claim; see ``drivers.warm_trees``."""

    def join(self, tree: SessionTree, spec: MachineSpec, cancelled: Check) -> None: ...


class SessionRecords:
    """Work sessions in the database. Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine, histories: Histories, limits: Limits) -> None:
        self._engine = engine
        self._histories = histories
        self._limits = limits

    @activity.defn(name="session.begin")
    def begin(self, order: Order) -> Sandbox:
        """Claim the run of a new session; where its files are to be made, and of what."""
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            claim(session, order)
            if work.workflow_id == order.workflow_id and work.status == SessionStatus.INITIALIZING:
                record(session, order, move_session(work, SessionStatus.CLONING))
            return _sandbox(session, work)

    @activity.defn(name="session.launch")
    def launch(self, order: Order) -> Order | None:
        """Its files are there; the launch of its sandbox, which was written with it. None: that has ended."""
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            claim(session, order)
            if work.workflow_id == order.workflow_id and work.status == SessionStatus.CLONING:
                record(session, order, move_session(work, SessionStatus.CREATING_SANDBOX))
            return _part(session, order, "ProvisionInstance")

    @activity.defn(name="session.change")
    def change(self, order: Order) -> Order | None:
        """Claim the run, and order the stop or the start of its sandbox, as a child of it; None: it is so already.

        Repeated, the same child. Raises NotReady while the sandbox is worked on.
        """
        kind = _PARTS[order.kind]
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            claim(session, order)
            if (begun := _part(session, order, kind)) is not None:
                return begun
            sandbox = _lock_sandbox(session, work)
            verb = VERBS[kind]
            if sandbox.status == verb.done:
                return None
            if sandbox.status in (Status.ERROR, Status.DELETED, Status.DELETING):
                raise InvalidState(
                    f"the sandbox of session {work.name} is {sandbox.status}: delete the session", state=sandbox.status
                )
            if sandbox.status not in verb.allowed:
                raise NotReady(f"instance {sandbox.name} is {sandbox.status}", retry_after_seconds=1)
            deadline = self._limits.deadline_stop if order.kind == STOP else self._limits.deadline_launch
            return self._order(session, order, sandbox, kind, deadline)

    @activity.defn(name="session.remove")
    def remove(self, order: Order) -> Sandbox | None:
        """Claim the run, and order the delete of its sandbox, as a child of it, unless that is deleted; and say where
        its files are. Repeated, the same child, as long as that has not ended. None: of a session that was not made
        whole, where its delete has taken that over.

        What works on the sandbox is called off; runs of the session itself are waited for, by one that is forced not
        longer than FORCE_AFTER: each works on what it finds.
        """
        waited = dt.datetime.now(dt.UTC) - activity.info().scheduled_time
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            claim(session, order)
            if order.kind == INIT and work.workflow_id != order.workflow_id:
                return None
            in_the_way = others(session, order)
            if in_the_way and not (order.force and waited > FORCE_AFTER):
                raise NotReady(f"workflow {in_the_way[0]} still works on session {order.name}")
            found, sandbox = _sandbox(session, work), _lock_sandbox(session, work)
            if sandbox.status == Status.DELETED:
                return found
            begun = _part(session, order, "DeprovisionInstance")
            if begun is None:
                orders.call_off_others(session, sandbox)
                deadline = self._limits.deadline_delete
                begun = self._order(session, order, sandbox, "DeprovisionInstance", deadline)
            return found.model_copy(update={"change": begun})

    def _order(self, session: Session, order: Order, sandbox: Instance, kind: str, deadline: float) -> Order:
        done = "not made" if order.kind == INIT else order.kind.removesuffix("Session").lower()
        return orders.change(
            session,
            sandbox,
            kind,
            because=f"session {order.name}: {done}",
            deadline_seconds=deadline,
            grace_seconds=self._limits.stop_grace,
            parent_id=order.workflow_id,
            force=order.force,
        )

    @activity.defn(name="session.settle")
    def settle(self, ended: SessionEnd) -> None:
        """End the run and move the session where the outcome leads, once."""
        steps, failure = self._histories.steps(ended.order.workflow_id), ended.failure
        if failure is not None:
            attempts = [step.attempts for step in steps if step.name == failure.step]
            failure = failure.model_copy(update={"attempt": attempts[-1] if attempts else None})
        with transaction(self._engine, ended.order.project_id) as session:
            settle_session(session, ended.order, ended.outcome, failure, steps)


class SessionEngine:
    """Files of sessions on one host. Runs on that host's queue."""

    def __init__(self, trees: Trees, warm: WarmPlaces) -> None:
        self._trees = trees
        self._warm = warm

    @activity.defn(name="session.prepare", no_thread_cancel_exception=True)
    def prepare(self, tree: SessionTree) -> None:
        self._trees.prepare(tree, activity.is_cancelled)

    @activity.defn(name="session.join", no_thread_cancel_exception=True)
    def join(self, join: Join) -> None:
        """Bring its files into the sandbox that it has claimed. Whoever claimed that may have done so already."""
        self._warm.join(join.tree, join.spec, activity.is_cancelled)

    @activity.defn(name="session.discard", no_thread_cancel_exception=True)
    def discard(self, tree: SessionTree) -> None:
        self._trees.remove(tree.session)


def _sandbox(session: Session, work: WorkSession) -> Sandbox:
    workspace = session.get_one(Workspace, work.workspace_id)
    host = session.get(Host, workspace.host_id) if workspace.host_id else None
    tree = SessionTree(session=work.id, project=work.project_id, workspace=work.workspace_id, commit=work.commit)
    sandbox = session.get_one(Instance, work.instance_id)
    warm = spec_of(sandbox) if work.start == "warm" else None
    return Sandbox(host=host.name if host else None, tree=tree, warm=warm)


def _lock_sandbox(session: Session, work: WorkSession) -> Instance:
    return session.scalars(select(Instance).where(Instance.id == work.instance_id).with_for_update()).one()


def _part(session: Session, order: Order, kind: str) -> Order | None:
    """A child of the run that has not ended."""
    its = (Workflow.parent_id == order.workflow_id) & (Workflow.kind == kind)
    row = session.scalars(select(Workflow).where(its, Workflow.state.not_in(TERMINAL))).one_or_none()
    return None if row is None else Order.model_validate(row.order)
