"""``/v1/workspaces``: create, read, rename, fetch anew, delete."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import ColumnElement, Row, func, insert, select, update

from api import credentials, user_urls
from api.accept import Acceptance, Answered, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_changes import cancel_others
from api.paging import OfName, Paging, page_of
from api.resources import is_readable, listed, one, rename, unique_name
from api.workflows import progress_of
from api.workspace_schemas import WorkspaceCreate, WorkspacePatch, WorkspaceSource, WorkspaceView
from model import git_urls
from model.base import new_id
from model.errors import InUse, InvalidState, NotFound, ValidationFailed
from model.git_urls import GitUrl
from model.hosts import Host
from model.sessions import COMMIT, SessionStatus, WorkSession
from model.settings import Settings
from model.workflows import TERMINAL, Order, Workflow
from model.workspaces import DEPROVISION, INIT, SYNC, Workspace, WorkspaceStatus

router = APIRouter(prefix="/v1/workspaces", tags=["workspaces"], responses=RESPONSES)

_query = select(*Workspace.__table__.columns, Host.name.label("host")).outerjoin(Host, Host.id == Workspace.host_id)


@router.post("", status_code=202, response_model=Envelope[WorkspaceView])
async def create(
    request: Request, body: WorkspaceCreate, caller: Annotated[Caller, may("workspaces:create")]
) -> Response:
    """Bring a repository, or a folder of a host, to a host: 202 with its id and its workflow's."""
    if body.source.git_url is None:
        return await _create(request, body, caller, None)
    url = git_urls.parse(body.source.git_url)
    # Of ssh: only where it leads.
    await user_urls.check(request, caller, body.source.git_url if url.scheme == "https" else _as_https(url))
    async with caller.reopened() as again:
        return await _create(request, body, again, url)


def _as_https(url: GitUrl) -> str:
    return f"https://{url.host}/"


async def _create(request: Request, body: WorkspaceCreate, caller: Caller, url: GitUrl | None) -> Response:
    acceptance = Acceptance(request, caller, created=True)
    workspace_id, source = new_id(), body.source
    asked = body.model_dump(mode="json", exclude_unset=True)
    if answered := await acceptance.answered_before(workspace_id, asked):
        return await acceptance.answer(_show, answered)
    order = _order(request, caller, acceptance, INIT, workspace_id, body.name)
    values = {
        "id": workspace_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": WorkspaceStatus.INITIALIZING,
        "git_url": source.git_url,
        "path": source.path,
        "wanted_ref": source.ref,
        "depth": source.depth,
        "submodules": source.submodules,
        "credential_id": await _credential(caller, source, url),
        "wanted_host": body.host,
        "workflow_id": order.workflow_id,
    }
    with unique_name("a workspace", body.name):
        await caller.execute(insert(Workspace).values(**values))
    caller.changed("workspace", workspace_id, after=asked)
    data = {"name": body.name, "from": None, "to": WorkspaceStatus.INITIALIZING}
    await acceptance.write(order, "workspace.initializing", data)
    return await acceptance.answer(_show)


async def _credential(caller: Caller, source: WorkspaceSource, url: GitUrl | None) -> UUID | None:
    """The one that is asked for, of this URL's host. Raises Forbidden, ValidationFailed."""
    if source.credential_id is None or url is None:
        return None
    caller.require("credentials:use")
    field = "source.credential_id"
    try:
        found = await credentials.usable(caller, UUID(source.credential_id))
    except (ValueError, NotFound):
        raise _invalid(field, "there is no such credential: see GET /v1/credentials") from None
    if (found.type, found.host) != (url.scheme, url.host):
        raise _invalid(
            field, f"credential '{found.name}' is for {found.type} to {found.host}, and goes to no other host"
        )
    return UUID(str(found.id))


@router.get("", response_model=Envelope[list[WorkspaceView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("workspaces:read")],
    page: Paging,
    status: Annotated[WorkspaceStatus | None, Query()] = None,
    name: OfName = None,
) -> Response:
    """Workspaces of the project, newest first; those deleted within 24 hours only with `?status=deleted`."""
    query = listed(_query, Workspace, caller, status=status, name=name)
    return await page_of(request, caller, query, Workspace.__table__.c.id, page, _view)


@router.get("/{workspace_id}", response_model=Envelope[WorkspaceView])
async def show(request: Request, workspace_id: UUID, caller: Annotated[Caller, may("workspaces:read")]) -> Response:
    """One workspace, and how far a fetch of it is. A deleted one stays readable for 24 hours."""
    data = await _show(caller, workspace_id)
    under_way = await _under_way(caller, workspace_id)
    if under_way is not None:
        data["progress"] = await progress_of(request, caller, under_way)
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.patch("/{workspace_id}", response_model=Envelope[WorkspaceView])
async def patch(
    request: Request, workspace_id: UUID, body: WorkspacePatch, caller: Annotated[Caller, may("workspaces:update")]
) -> Response:
    """Give it another name."""
    workspace = await lock(caller, workspace_id)
    check_if_match(request, workspace.version)
    if workspace.status == WorkspaceStatus.DELETED:
        raise InvalidState(f"workspace {workspace.name} is deleted", state=workspace.status)
    if body.name != workspace.name:
        await rename(caller, Workspace, workspace, body.name, resource_type="workspace", topic="workspace")
    data = await _show(caller, workspace_id)
    await caller.commit()
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.post("/{workspace_id}/sync", status_code=202, response_model=Envelope[WorkspaceView])
async def sync(
    request: Request,
    workspace_id: UUID,
    caller: Annotated[Caller, may("workspaces:update")],
    body: Nothing | None = None,
) -> Response:
    """Fetch its source anew: another `commit` for sessions to come. Those that there are keep theirs, and so does the
    workspace where the fetch fails."""
    acceptance = Acceptance(request, caller)
    workspace = await lock(caller, workspace_id)
    if answered := await acceptance.answered_before(workspace_id, None):
        return await acceptance.answer(_show, answered)
    check_if_match(request, workspace.version)
    if workspace.status != WorkspaceStatus.READY:
        raise InvalidState(f"workspace {workspace.name} is {workspace.status}, not ready", state=workspace.status)
    if (under_way := await _under_way(caller, workspace_id)) is not None:
        raise InvalidState(
            f"workspace {workspace.name} is being fetched already",
            state=workspace.status,
            workflow_id=str(under_way),
        )
    await _check_no_commit(caller, workspace)
    order = _order(request, caller, acceptance, SYNC, workspace_id, workspace.name)
    await _begin(caller, acceptance, workspace, order, WorkspaceStatus.READY, "workspace.syncing")
    return await acceptance.answer(_show)


@router.delete("/{workspace_id}", status_code=202, response_model=Envelope[WorkspaceView])
async def delete(
    request: Request, workspace_id: UUID, caller: Annotated[Caller, may("workspaces:delete")], force: bool = False
) -> Response:
    """Delete a workspace, whatever its state, with its files; a fetch under way is cancelled and undone first.
    409 `in_use` while it has sessions.

    With `force=true` a host that does not answer is not waited for: its agent removes what is left.
    """
    acceptance = Acceptance(request, caller)
    workspace = await lock(caller, workspace_id)
    if workspace.status == WorkspaceStatus.DELETED:
        return answer(request, await _show(caller, workspace_id), headers={"ETag": etag(workspace.version)})
    if workspace.status == WorkspaceStatus.DELETING:
        check_if_match(request, workspace.version, workspace.version - 1)
        return await acceptance.answer(_show, Answered(workspace_id, workspace.workflow_id))
    check_if_match(request, workspace.version)
    await _check_unused(caller, workspace)
    await cancel_others(caller, acceptance, workspace_id)
    order = _order(request, caller, acceptance, DEPROVISION, workspace_id, workspace.name)
    order = order.model_copy(update={"force": force})
    await _begin(caller, acceptance, workspace, order, WorkspaceStatus.DELETING, "workspace.deleting")
    return await acceptance.answer(_show)


async def _check_no_commit(caller: Caller, workspace: Row[Any]) -> None:
    """Raises InvalidState while a session's changes become a commit of it, which a sync would take away."""
    its = select(WorkSession.id).where(WorkSession.workspace_id == workspace.id)
    commits = (Workflow.project_id == caller.project_id) & (Workflow.kind == COMMIT) & Workflow.resource_id.in_(its)
    found = select(Workflow.id).where(commits, Workflow.state.not_in(TERMINAL)).limit(1)
    if (under_way := (await caller.execute(found)).scalar_one_or_none()) is not None:
        raise InvalidState(
            f"a session commits to workspace {workspace.name}: try again when that has ended",
            state=workspace.status,
            workflow_id=str(under_way),
        )


async def _check_unused(caller: Caller, workspace: Row[Any]) -> None:
    """Raises InUse."""
    its = (WorkSession.workspace_id == workspace.id) & (WorkSession.status != SessionStatus.REMOVED)
    named = (await caller.execute(select(WorkSession.name).where(its).order_by(WorkSession.name).limit(10))).scalars()
    if names := named.all():
        raise InUse(
            f"workspace {workspace.name} has the sessions {', '.join(names)}: delete them first", sessions=list(names)
        )


async def _begin(
    caller: Caller, acceptance: Acceptance, workspace: Row[Any], order: Order, status: WorkspaceStatus, event: str
) -> None:
    """The order's workflow owns the workspace from here on."""
    values = {"status": status, "workflow_id": order.workflow_id, "version": Workspace.version + 1}
    owned = update(Workspace).where(Workspace.id == workspace.id).values(**values, updated_at=func.now())
    await caller.execute(owned)
    data = {"name": workspace.name, "from": workspace.status, "to": status}
    await acceptance.write(order, event, data, prior_status=workspace.status)


async def _under_way(caller: Caller, workspace_id: UUID) -> UUID | None:
    """A run that works on it."""
    mine = (Workflow.project_id == caller.project_id) & (Workflow.resource_id == workspace_id)
    found = select(Workflow.id).where(mine, Workflow.state.not_in(TERMINAL)).order_by(Workflow.id.desc()).limit(1)
    return (await caller.execute(found)).scalar_one_or_none()


async def lock(caller: Caller, workspace_id: UUID, *, shared: bool = False) -> Row[Any]:
    """Its row, which nobody else changes until the commit. ``shared``: and which others may hold so too."""
    locked = select(Workspace.__table__).where(_mine(caller, workspace_id)).with_for_update(read=shared)
    return await one(caller, locked, "workspace", workspace_id)


def _order(request: Request, caller: Caller, acceptance: Acceptance, kind: str, workspace_id: UUID, name: str) -> Order:
    settings: Settings = request.app.state.settings
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="workspace",
        resource_id=workspace_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=settings.deadline_delete if kind == DEPROVISION else settings.deadline_workspace,
    )


def _invalid(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(message, fields=[{"field": field, "message": message}])


async def _show(caller: Caller, workspace_id: UUID) -> dict[str, Any]:
    return _view(await one(caller, _query.where(_mine(caller, workspace_id)), "workspace", workspace_id))


def _mine(caller: Caller, workspace_id: UUID) -> ColumnElement[bool]:
    return (Workspace.project_id == caller.project_id) & (Workspace.id == workspace_id) & is_readable(Workspace)


def _view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of a workspace, from a row of ``_query``."""
    source = {name: getattr(row, name) for name in ("git_url", "depth", "submodules", "credential_id", "path")}
    shown = ("id", "project_id", "name", "status", "commit", "ref", "size_bytes", "host", "version", "error")
    times = ("workflow_id", "created_at", "updated_at", "deleted_at")
    return {name: getattr(row, name) for name in (*shown, *times)} | {
        "source": source | {"ref": row.wanted_ref},
        "progress": None,
    }
