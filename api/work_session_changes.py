"""``/v1/sessions/{id}``: stop, start, commit and delete, and what every run that works on a session begins with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import Row, func, select, update

from activities.commits import moved
from api import workspaces
from api.accept import Acceptance, Answered, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_changes import cancel_others, unforced
from api.work_session_rows import lock, show
from api.work_session_schemas import CommitCreate, SessionView
from model.chat import CHAT
from model.errors import InvalidState
from model.sessions import COMMIT, DEPROVISION, INIT, START, STOP, UP, SessionStatus, WorkSession
from model.settings import Settings
from model.workflows import TERMINAL, Order, Workflow
from model.workspaces import WorkspaceStatus

router = APIRouter(prefix="/v1", tags=["sessions"], responses=RESPONSES)


@router.post("/sessions/{session_id}/stop", status_code=202, response_model=Envelope[SessionView])
async def stop(
    request: Request,
    session_id: UUID,
    caller: Annotated[Caller, may("sessions:use")],
    body: Nothing | None = None,
) -> Response:
    """Stop the sandbox of a running session. Its files stay, and can be read and written."""
    return await _change(request, caller, session_id, STOP, UP)


@router.post("/sessions/{session_id}/start", status_code=202, response_model=Envelope[SessionView])
async def start(
    request: Request,
    session_id: UUID,
    caller: Annotated[Caller, may("sessions:use")],
    body: Nothing | None = None,
) -> Response:
    """Start the sandbox of a stopped session again, with the files that it had."""
    return await _change(request, caller, session_id, START, {SessionStatus.STOPPED})


async def _change(
    request: Request, caller: Caller, session_id: UUID, kind: str, wanted: Collection[SessionStatus]
) -> Response:
    acceptance = Acceptance(request, caller)
    session = await lock(caller, session_id)
    if answered := await acceptance.answered_before(session_id, None):
        return await acceptance.answer(show, answered)
    check_if_match(request, session.version)
    await check_status(caller, session, wanted)
    order = order_of_session(request, caller, acceptance, kind, session_id, session.name)
    await begin(caller, acceptance, session, order, session.status, "stopping" if kind == STOP else "starting")
    return await acceptance.answer(show)


async def check_status(caller: Caller, session: Row[Any], wanted: Collection[SessionStatus]) -> None:
    """Raises InvalidState where it is not in such a state, or is being worked on."""
    under_way = await _under_way(caller, session.id)
    if session.status not in wanted or under_way is not None:
        busy = {} if under_way is None else {"workflow_id": str(under_way)}
        lacking = f"{session.status}, not {' or '.join(sorted(wanted))}"
        said = lacking if session.status not in wanted else "being worked on"
        raise InvalidState(f"session {session.name} is {said}", state=session.status, **busy)


@router.post("/sessions/{session_id}/commit", status_code=202, response_model=Envelope[SessionView])
async def commit(
    request: Request, session_id: UUID, body: CommitCreate, caller: Annotated[Caller, may("sessions:use")]
) -> Response:
    """Commit what the session has changed to its workspace: one commit onto what the workspace is at, with which new
    sessions begin from then on. The session goes on, stopped or running; `head` is the commit. Where nothing was
    changed, all stays as it is.

    409 `workspace_moved`, with both commits, where the workspace is at another commit than the session's changes
    follow; where it goes there meanwhile, the workflow fails with the same. Needs `workspaces:update` too.
    """
    caller.require("workspaces:update")
    acceptance = Acceptance(request, caller)
    session = await lock(caller, session_id)
    if answered := await acceptance.answered_before(session_id, body.model_dump(mode="json", exclude_unset=True)):
        return await acceptance.answer(show, answered)
    check_if_match(request, session.version)
    await check_status(caller, session, UP | {SessionStatus.STOPPED})
    workspace = await workspaces.lock(caller, session.workspace_id)
    await check_ready(caller, workspace)
    if workspace.submodules:
        # They are files of the session, and none of the workspace's repository.
        said = f"workspace {workspace.name} was brought with submodules, of which sessions make no commits: push yours"
        raise InvalidState(said, state=workspace.status)
    if workspace.commit != (session.head or session.commit):
        raise moved(workspace, session, session.head or session.commit)
    author = None if body.author is None else f"{body.author.name} <{body.author.email}>"
    order = order_of_session(request, caller, acceptance, COMMIT, session_id, session.name)
    order = order.model_copy(update={"message": body.message, "author": author})
    await begin(caller, acceptance, session, order, session.status, "committing")
    return await acceptance.answer(show)


@router.delete("/sessions/{session_id}", status_code=202, response_model=Envelope[SessionView])
async def delete(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:delete")], force: bool = False
) -> Response:
    """Delete a session, whatever its state, with its sandbox and its files; what works on it is called off.

    With `force=true` a host that does not answer is not waited for: its agent removes what is left.
    """
    acceptance = Acceptance(request, caller)
    session = await lock(caller, session_id)
    if session.status == SessionStatus.REMOVED:
        return answer(request, await show(caller, session_id), headers={"ETag": etag(session.version)})
    if session.status == SessionStatus.REMOVING and not (force and await unforced(caller, session.workflow_id)):
        check_if_match(request, session.version, session.version - 1)
        return await acceptance.answer(show, Answered(session_id, session.workflow_id))
    check_if_match(request, session.version)
    await cancel_others(caller, acceptance, session_id)
    order = order_of_session(request, caller, acceptance, DEPROVISION, session_id, session.name)
    order = order.model_copy(update={"force": force})
    await begin(caller, acceptance, session, order, SessionStatus.REMOVING, SessionStatus.REMOVING)
    return await acceptance.answer(show)


async def check_ready(caller: Caller, workspace: Row[Any]) -> None:
    """Raises InvalidState where its files are not there, or may go while it is fetched anew."""
    if workspace.status != WorkspaceStatus.READY:
        raise InvalidState(f"workspace {workspace.name} is {workspace.status}, not ready", state=workspace.status)
    if (under_way := await _under_way(caller, workspace.id)) is not None:
        raise InvalidState(
            f"workspace {workspace.name} is being worked on: try again when that has ended",
            state=workspace.status,
            workflow_id=str(under_way),
        )


async def begin(
    caller: Caller, acceptance: Acceptance, session: Row[Any], order: Order, status: str, event: str
) -> None:
    """The order's workflow owns the session from here on."""
    values = {"status": status, "workflow_id": order.workflow_id, "version": WorkSession.version + 1}
    owned = update(WorkSession).where(WorkSession.id == session.id).values(**values, updated_at=func.now())
    await caller.execute(owned)
    data = {"name": session.name, "from": session.status, "to": status}
    await acceptance.write(order, f"session.{event}", data, prior_status=session.status)


async def _under_way(caller: Caller, resource_id: UUID) -> UUID | None:
    """A run that works on it."""
    its = (Workflow.project_id == caller.project_id) & (Workflow.resource_id == resource_id)
    found = select(Workflow.id).where(its, Workflow.state.not_in(TERMINAL)).order_by(Workflow.id.desc()).limit(1)
    return (await caller.execute(found)).scalar_one_or_none()


def order_of_session(
    request: Request, caller: Caller, acceptance: Acceptance, kind: str, session_id: UUID, name: str
) -> Order:
    settings: Settings = request.app.state.settings
    seconds = {
        INIT: settings.deadline_launch + settings.deadline_start,
        STOP: settings.deadline_stop,
        START: settings.deadline_start,
        COMMIT: settings.deadline_workspace,
        # What is in its way is undone first.
        DEPROVISION: settings.deadline_delete + settings.deadline_stop,
        CHAT: settings.deadline_chat,
    }
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="session",
        resource_id=session_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=seconds[kind],
        grace_seconds=settings.stop_grace,
    )
