"""The steps of workspaces: claim, place, bring, remove, settle."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from temporalio import activity

from activities import secrets
from activities.database import transaction
from activities.placement import leased
from activities.runs import Histories, claim, others
from activities.shares import Shares
from activities.tries import Tries
from activities.workspace_ends import WorkspaceEnd, lock_workspace, settle_workspace
from drivers.workspaces import Workspaces
from model.base import Frozen
from model.errors import FetchFailed, NoCapacity, NotReady, Superseded, Unavailable
from model.hosts import Host, HostState
from model.keyring import Keyring
from model.sessions import SessionStatus, WorkSession
from model.workflows import Order
from model.workspaces import CAPABILITY, INIT, GitLogin, Workspace, WorkspaceFacts, WorkspaceSpec, WorkspaceStatus

#: What git could not do may be a passing fault of the network or of the server: it says so at the last of these.
TRIES = 3
#: Fetches and commits of one project that an agent works on at once, and of all: short steps have threads left. Another
#: asks again after so many seconds.
LONG_OF_PROJECT, LONG_AT_ONCE, TURN_SECONDS = 4, 12, 2.0


class Placed(Frozen):
    """Where a workspace is, or is to be; None: nowhere."""

    host: str | None
    spec: WorkspaceSpec


class Logins(Protocol):
    """What is in no history, fetched for a step. Raises Unavailable, Superseded, SealBroken."""

    def git_login(self, spec: WorkspaceSpec) -> GitLogin:
        """With what the workspace is fetched."""


class WorkspaceRecords:
    """Workspaces in the database. Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine, histories: Histories, keyring: Keyring | None = None) -> None:
        self._engine = engine
        self._histories = histories
        self._keyring = keyring

    @activity.defn(name="workspace.claim")
    def claim(self, order: Order) -> None:
        """Claim the run, once no other works on the workspace."""
        with transaction(self._engine, order.project_id) as session:
            workspace = lock_workspace(session, order)
            claim(session, order)
            if workspace.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {workspace.workflow_id} works on workspace {order.name} now")
            in_the_way = others(session, order)
        if in_the_way:
            raise NotReady(f"workflow {in_the_way[0]} still works on workspace {order.name}")

    @activity.defn(name="workspace.place")
    def place(self, order: Order) -> Placed:
        """Choose the host of a new workspace, once; and seal the credential for it, as it is now, where one is named.

        Raises NoCapacity, NotReady, SecretUnusable, KeyUnknown.
        """
        with transaction(self._engine, order.project_id) as session:
            workspace = lock_workspace(session, order)
            if workspace.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {workspace.workflow_id} works on workspace {order.name} now")
            brings = workspace.status != WorkspaceStatus.DELETING
            host = session.get(Host, workspace.host_id) if workspace.host_id is not None else None
            if host is None and order.kind == INIT:
                host = _choose(session, workspace)
                workspace.host_id = host.id
            login = brings and host is not None and workspace.credential_id is not None
            if login and host is not None:
                secrets.give_git_login(session, self._keyring, workspace, host)
            spec = WorkspaceSpec(
                id=workspace.id,
                project_id=workspace.project_id,
                name=workspace.name,
                git_url=workspace.git_url,
                ref=workspace.wanted_ref,
                depth=workspace.depth,
                submodules=workspace.submodules,
                path=workspace.path,
                login=login,
                keep=commits_in_use(session, workspace) if brings else [],
            )
            return Placed(host=None if host is None else host.name, spec=spec)

    @activity.defn(name="workspace.settle")
    def settle(self, ended: WorkspaceEnd) -> None:
        """End the run and move the workspace where the outcome leads, once."""
        steps, failure = self._histories.steps(ended.order.workflow_id), ended.failure
        if failure is not None:
            attempts = [step.attempts for step in steps if step.name == failure.step]
            failure = failure.model_copy(update={"attempt": attempts[-1] if attempts else None})
        with transaction(self._engine, ended.order.project_id) as session:
            settle_workspace(session, ended.order, ended.outcome, failure, steps, ended.facts)


def commits_in_use(session: Session, workspace: Workspace) -> list[str]:
    """Whose files stay, though the workspace is at another commit from now on."""
    its = (WorkSession.workspace_id == workspace.id) & (WorkSession.status != SessionStatus.REMOVED)
    sessions = session.scalars(select(WorkSession.commit).where(its).distinct()).all()
    return sorted({*sessions, *([] if workspace.commit is None else [workspace.commit])})


def _choose(session: Session, workspace: Workspace) -> Host:
    """The host that can hold workspaces and has the fewest. Raises NoCapacity; NotReady where all are silent."""
    held = (
        select(func.count())
        .select_from(Workspace)
        .where(Workspace.host_id == Host.id, Workspace.status != WorkspaceStatus.DELETED)
        .correlate(Host)
        .scalar_subquery()
    )
    able = Host.capabilities.contains([CAPABILITY]) & (Host.state == HostState.READY)
    query = select(Host, leased.label("leased")).where(able).order_by(held, Host.id)
    if workspace.wanted_host is not None:
        query = query.where(Host.name == workspace.wanted_host)
    found = session.execute(query).all()
    for host, is_leased in found:
        if is_leased:
            chosen: Host = host
            return chosen
    if found:
        names = ", ".join(host.name for host, _ in found[:5])
        raise NotReady(f"only hosts that have not been heard of lately can hold workspaces: {names}")
    where = "no host" if workspace.wanted_host is None else f"host '{workspace.wanted_host}' is not there, or none that"
    raise NoCapacity(
        f"{where} is ready and can hold workspaces ('cairn host show' says what its agent can do; docs/workspaces.md)"
    )


def long_work() -> Shares:
    """Places of what may take an hour."""
    said = "the host works on as many workspaces as it may at once"
    return Shares(LONG_OF_PROJECT, TURN_SECONDS, said, of_all=LONG_AT_ONCE)


class WorkspaceEngine:
    """Workspaces of one host. Runs on that host's queue."""

    def __init__(self, workspaces: Workspaces, logins: Logins | None = None, places: Shares | None = None) -> None:
        """``places``: of all hosts of the agent."""
        self._workspaces = workspaces
        self._logins = logins
        self._places = places or long_work()
        self._tries = Tries(TRIES)

    @activity.defn(name="workspace.bring", no_thread_cancel_exception=True)
    def bring(self, spec: WorkspaceSpec) -> WorkspaceFacts:
        """Fetch the source as it is now, and check it out. Repeated, it goes on with what is there."""
        with self._places.one(spec.project_id):
            return self._bring(spec)

    def _bring(self, spec: WorkspaceSpec) -> WorkspaceFacts:
        login = partial(self._logins.git_login, spec) if spec.login and self._logins is not None else None
        try:
            return self._workspaces.bring(spec, login, activity.is_cancelled)
        except FetchFailed as error:
            if self._tries.is_left():
                raise Unavailable(error.message) from None
            raise

    @activity.defn(name="workspace.remove", no_thread_cancel_exception=True)
    def remove(self, spec: WorkspaceSpec) -> None:
        self._workspaces.remove(spec.id, activity.is_cancelled)
