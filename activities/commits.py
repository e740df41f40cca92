"""The steps of commits: a session's files become a commit of its workspace."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Row, func, select, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import transaction
from activities.runs import claim, others, record
from activities.session_ends import lock_session
from activities.shares import Shares
from activities.tries import Tries
from activities.workspaces import TRIES, long_work
from drivers.commits import Commits
from model.base import Frozen
from model.errors import EngineRefused, InvalidState, NotReady, Superseded, Unavailable, WorkspaceMoved
from model.hosts import Host
from model.sessions import UP, CommitSpec, SessionStatus, SessionTree, WorkSession
from model.workflows import Order
from model.workspaces import Workspace, WorkspaceStatus


class CommitBegun(Frozen):
    """Where a session's files are, and what is to be made of them."""

    host: str
    spec: CommitSpec


class Committed(Frozen):
    """A commit that is written."""

    order: Order
    spec: CommitSpec
    commit: str


class CommitRecords:
    """Commits in the database. Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="commit.begin")
    def begin(self, order: Order) -> CommitBegun:
        """Claim the run, once no other works on the session. Raises InvalidState, WorkspaceMoved."""
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            row = claim(session, order)
            if work.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {work.workflow_id} works on session {order.name} now")
            if in_the_way := others(session, order):
                raise NotReady(f"workflow {in_the_way[0]} still works on session {order.name}")
            workspace = session.get_one(Workspace, work.workspace_id)
            host = session.get(Host, workspace.host_id) if workspace.host_id else None
            if work.status not in UP | {SessionStatus.STOPPED} or host is None:
                raise InvalidState(f"session {work.name} is {work.status}: its files are not there", state=work.status)
            parent = work.head or work.commit
            if workspace.commit != parent:
                raise moved(workspace, work, parent)
            spec = CommitSpec(
                id=order.workflow_id,
                project_id=order.project_id,
                tree=SessionTree(session=work.id, workspace=work.workspace_id, commit=work.commit),
                parent=parent,
                message=order.message,
                author=order.author,
                at=int(row.created_at.timestamp()),
            )
            return CommitBegun(host=host.name, spec=spec)

    @activity.defn(name="commit.advance")
    def advance(self, committed: Committed) -> None:
        """Let the workspace be at the commit, from now on, where it still is at its parent. Raises WorkspaceMoved."""
        order, spec = committed.order, committed.spec
        with transaction(self._engine, order.project_id) as session:
            work = lock_session(session, order)
            claim(session, order)
            if work.head == committed.commit:
                return
            still = (Workspace.id == spec.tree.workspace) & (Workspace.commit == spec.parent)
            values = {"commit": committed.commit, "version": Workspace.version + 1, "updated_at": func.now()}
            advanced = update(Workspace).where(still, Workspace.status == WorkspaceStatus.READY).values(values)
            if session.execute(advanced.returning(Workspace.id)).one_or_none() is None:
                raise moved(_workspace(session, spec.tree.workspace), work, spec.parent)
            work.head = committed.commit
            work.version += 1
            work.updated_at = func.now()
            told = {"name": work.name, "workspace_id": str(work.workspace_id)}
            data = told | {"from": spec.parent, "commit": committed.commit}
            record(session, order, ("session.committed", data))


class CommitEngine:
    """Commits on one host. Runs on that host's queue."""

    def __init__(self, commits: Commits, places: Shares | None = None) -> None:
        """``places``: those of workspaces that are fetched."""
        self._commits = commits
        self._places = places or long_work()
        self._tries = Tries(TRIES)

    @activity.defn(name="commit.write", no_thread_cancel_exception=True)
    def write(self, spec: CommitSpec) -> str | None:
        """The commit's id; None: nothing was changed. Repeated, the same."""
        try:
            with self._places.one(spec.project_id):
                return self._commits.write(spec, activity.is_cancelled)
        except EngineRefused as error:
            # A session that runs may have changed a file while it was read.
            if self._tries.is_left():
                raise Unavailable(error.message) from None
            raise

    @activity.defn(name="commit.publish", no_thread_cancel_exception=True)
    def publish(self, committed: Committed) -> None:
        self._commits.publish(committed.spec, committed.commit, activity.is_cancelled)

    @activity.defn(name="commit.discard", no_thread_cancel_exception=True)
    def discard(self, spec: CommitSpec) -> None:
        self._commits.discard(spec, activity.is_cancelled)


def _workspace(session: Session, id: UUID) -> Workspace:
    return session.scalars(select(Workspace).where(Workspace.id == id)).one()


def moved(workspace: Workspace | Row[Any], work: WorkSession | Row[Any], parent: str) -> WorkspaceMoved:
    """What to say where a session cannot commit to its workspace any more."""
    return WorkspaceMoved(
        f"workspace {workspace.name} is at {workspace.commit} and {workspace.status}, and what session {work.name} has "
        f"changed follows {parent}: take its changes (GET /v1/sessions/{work.id}/diff) to a new session",
        workspace_commit=workspace.commit,
        session_commit=parent,
    )
