"""Work sessions: ``/v1/workspaces/{id}/sessions`` makes them, ``/v1/sessions`` shows and changes them. Their files are
in ``api.session_files``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy import Row, insert, select

from activities.instances import spec_of
from api import lifetimes, session_caches, work_agents, workspaces
from api.accept import Acceptance, etag
from api.agent_client import Target
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_changes import order_of
from api.instance_schemas import InstanceCreate
from api.joins import Joins
from api.launches import template_of
from api.paging import OfName, Paging, page_of
from api.pool_claims import Claim, claim
from api.quotas import reserve
from api.resources import listed, one, unique_name
from api.work_session_changes import check_ready, order_of_session
from api.work_session_rows import GONE, query, show, view
from api.work_session_schemas import SessionCreate, SessionView
from api.workflows import is_at
from model.base import new_id
from model.cache_volumes import CacheMount
from model.errors import ValidationFailed
from model.groups import Template
from model.hosts import Host
from model.instances import Instance, Status
from model.pools import Join
from model.sessions import IDLE, INIT, SessionStatus, SessionTree, WorkSession
from model.settings import Settings
from model.workflows import Order

router = APIRouter(prefix="/v1", tags=["sessions"], responses=RESPONSES)

#: Of a name, in the name of what is called after it.
SHOWN = 40
_HOST = select(Host.id, Host.name, Host.backend, Host.agent_url, Host.fingerprint, Host.capabilities)
#: The step of a launch that brings its image to the host.
PULL = "image.ensure"


@router.post("/workspaces/{workspace_id}/sessions", status_code=202, response_model=Envelope[SessionView])
async def create(
    request: Request,
    workspace_id: UUID,
    caller: Annotated[Caller, may("sessions:create")],
    body: SessionCreate | None = None,
) -> Response:
    """Make a session: a sandbox of its own on the workspace's host, with the files of the workspace's commit at
    `/workspace`. What it changes there stays its own, and stays when it is stopped.

    `start` is `warm` where it got a sandbox that ran already (see `/v1/pools`): commands in it may be run at once, and
    wait for its files by themselves. Where it is `cold`, `start_reason` says why.

    `caches` are names of cache volumes (see `/v1/cache-volumes`), of which none is in another."""
    body = body or SessionCreate()
    acceptance = Acceptance(request, caller, created=True)
    session_id, instance_id = new_id(), new_id()
    asked = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if answered := await acceptance.answered_before(session_id, asked):
        return await acceptance.answer(show, answered)
    # Sessions that begin at once do not wait for each other, and what fetches or deletes it waits for them.
    workspace = await workspaces.lock(caller, workspace_id, shared=True)
    await check_ready(caller, workspace)
    agent = await work_agents.chosen(caller, body.agent_id)
    name = body.name or f"{workspace.name[:SHOWN]}-{session_id.hex[-8:]}"
    host = await one(caller, _HOST.where(Host.id == workspace.host_id), "host", workspace.host_id)
    sandbox = _sandbox(request, host, body, agent, f"session-{name[:SHOWN]}-{session_id.hex[-8:]}")
    caches = await session_caches.chosen(caller, body.caches, host)
    order = order_of_session(request, caller, acceptance, INIT, session_id, name)
    claimed = await claim(caller, session_id, host.id, body, sandbox)
    if claimed.sandbox is not None:
        instance_id = claimed.sandbox.id
    # Of what it is given, what can hold secrets is left out.
    told = {"name": name, "workspace_id": str(workspace_id), "commit": workspace.commit, "image": sandbox.image}
    caller.changed("session", session_id, after=told)
    data = {"name": name, "from": None, "to": SessionStatus.INITIALIZING, "workspace_id": str(workspace_id)}
    await acceptance.write(order, "session.initializing", data)
    template = None
    if claimed.sandbox is None:
        template = await _launch(request, caller, acceptance, order, body, sandbox, instance_id, caches)
    else:
        _bring_files(request, acceptance, workspace, session_id, host, claimed.sandbox)
        shown = {"name": claimed.sandbox.name, "session_id": str(session_id), "pool_id": str(claimed.pool_id)}
        await acceptance.record("instance.claimed", "instance", instance_id, order.workflow_id, shown)
    await _insert(caller, workspace, agent, order, instance_id, claimed)
    await session_caches.give(caller, session_id, host.id, caches)
    if template is not None:
        await reserve(caller, instances=1, vcpus=template.vcpus, memory_mb=template.memory_mb)
    return await acceptance.answer(show)


async def _launch(
    request: Request,
    caller: Caller,
    acceptance: Acceptance,
    order: Order,
    body: SessionCreate,
    sandbox: InstanceCreate,
    instance_id: UUID,
    caches: list[CacheMount],
) -> Template:
    """Write the launch of a sandbox of its own; what that is to be."""
    template = await template_of(request, caller, sandbox)
    launch = order_of(request, caller, acceptance, "ProvisionInstance", instance_id, sandbox.name)
    ports = [port.host_port for port in template.wanted_ports if port.host_port]
    launch = launch.model_copy(update={"workflow_id": new_id(), "fixed_ports": ports})
    values = template.columns() | {
        "id": instance_id,
        "project_id": caller.project_id,
        "name": sandbox.name,
        "status": Status.PENDING,
        "workflow_id": launch.workflow_id,
        "session_id": order.resource_id,
        "idle_stop_seconds": body.idle_stop_seconds,
        "caches": [cache.model_dump(mode="json") for cache in caches],
        **await lifetimes.ttl(caller, body.ttl_seconds),
    }
    await caller.execute(insert(Instance.__table__), values)  # type: ignore[arg-type]  # a Table, typed as FromClause
    await acceptance.write_child(launch, order)
    shown = {"name": launch.name, "from": None, "to": Status.PENDING}
    await acceptance.record("instance.pending", "instance", instance_id, launch.workflow_id, shown)
    return template


def _bring_files(
    request: Request, acceptance: Acceptance, workspace: Row[Any], session_id: UUID, host: Row[Any], sandbox: Row[Any]
) -> None:
    """As soon as it is accepted, before its workflow begins."""
    if host.agent_url is None or host.fingerprint is None:
        return
    tree = SessionTree(
        session=session_id, project=workspace.project_id, workspace=workspace.id, commit=workspace.commit
    )
    whose = workspace.project_id
    target = Target(session_id, sandbox.name, host.id, host.name, host.agent_url, host.fingerprint, whose, "session")
    join = Join(tree=tree, spec=spec_of(sandbox))  # type: ignore[arg-type]  # a row with the same columns
    joins: Joins = request.app.state.joins
    acceptance.then(partial(joins.start, target, join))


def _sandbox(
    request: Request, host: Row[Any], body: SessionCreate, agent: Row[Any] | None, name: str
) -> InstanceCreate:
    """The launch of its sandbox, where the workspace is. Its program is the agent's; without one it does nothing, until
    it is asked to end. Raises ValidationFailed where the two environments do not go together."""
    settings: Settings = request.app.state.settings
    default = settings.session_image if agent is None else work_agents.image_of(agent, settings)
    try:
        return InstanceCreate(
            name=name,
            image=body.image or default,
            instance_type=body.instance_type,
            ports=body.ports,
            env=body.env if agent is None else work_agents.environment_of(agent) | body.env,
            cmd=IDLE if agent is None else work_agents.command_of(agent),
            backend=host.backend,
            host=host.name,
            network=body.network,
            ttl_seconds=body.ttl_seconds,
            idle_stop_seconds=body.idle_stop_seconds,
        )
    except ValidationError as error:
        problem = f"with its agent's: {error.errors()[0]['msg']}"
        raise ValidationFailed(f"env: {problem}", fields=[{"field": "env", "message": problem}]) from None


async def _insert(
    caller: Caller,
    workspace: Row[Any],
    agent: Row[Any] | None,
    order: Order,
    instance_id: UUID,
    claimed: Claim,
) -> None:
    values = {
        "id": order.resource_id,
        "project_id": caller.project_id,
        "name": order.name,
        "status": SessionStatus.INITIALIZING,
        "workspace_id": workspace.id,
        "commit": workspace.commit,
        "instance_id": instance_id,
        "agent_id": None if agent is None else agent.id,
        "agent_port": None if agent is None else agent.port,
        "pool_id": claimed.pool_id,
        "start": "cold" if claimed.sandbox is None else "warm",
        "start_reason": claimed.reason,
        "workflow_id": order.workflow_id,
    }
    with unique_name("a session", order.name):
        await caller.execute(insert(WorkSession).values(**values))


@router.get("/sessions", response_model=Envelope[list[SessionView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("sessions:read")],
    page: Paging,
    status: Annotated[SessionStatus | None, Query()] = None,
    name: OfName = None,
    workspace_id: UUID | None = None,
) -> Response:
    """Sessions of the project, newest first; those removed within 24 hours only with `?status=removed`."""
    found = listed(query, WorkSession, caller, status=status, name=name, gone=GONE)
    if workspace_id is not None:
        found = found.where(WorkSession.workspace_id == workspace_id)
    return await page_of(request, caller, found, WorkSession.__table__.c.id, page, view)


@router.get("/sessions/{session_id}", response_model=Envelope[SessionView])
async def show_one(request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:read")]) -> Response:
    """One session. A removed one stays readable for 24 hours. While the image of its sandbox is brought to the host it
    is `pulling_image` here; in lists and events that is part of `creating_sandbox`."""
    data = await show(caller, session_id)
    if data["status"] == SessionStatus.CREATING_SANDBOX:
        launch = select(Instance.workflow_id).where(Instance.id == data["instance_id"])
        if await is_at(request, caller, (await caller.execute(launch)).scalar_one(), PULL):
            data["status"] = SessionStatus.PULLING_IMAGE
    return answer(request, data, headers={"ETag": etag(data["version"])})
