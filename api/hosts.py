"""``/v1/hosts``: where instances run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from activities.placement import Capacity
from api.accept import Acceptance, Answered
from api.agent_joining import check_free_name
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import LabelName, LabelValue, Name
from api.paging import Paging, page_of
from model.base import new_id
from model.errors import IdempotencyMismatch, InUse, InvalidState, NotFound
from model.hosts import Host, HostPort, HostState, HostToken, is_reachable
from model.secrets import digest, join_token_of, new_join_token
from model.settings import Settings
from model.versions import Skew, skew
from model.workflows import TERMINAL, Order, Workflow

router = APIRouter(prefix="/v1", responses=RESPONSES)


#: A drain has as long as its moves take.
DRAIN_SECONDS = 24 * 3600.0
_held = select(func.count()).where(HostPort.host_id == Host.id).scalar_subquery().label("ports_held")
_query = select(Host.__table__, _held)


class Size(BaseModel):
    vcpus: float
    memory_mb: int


class HostView(BaseModel):
    id: str
    name: str
    backend: str
    state: str
    reachable: bool
    capacity: Size
    #: What may be given to instances: the capacity, times what the platform over-commits.
    allocatable: Size
    allocated: Size
    ports_held: int
    labels: dict[str, str]
    versions: dict[str, str]
    #: What its agent can do beyond what every agent can, such as `network.allow-list`.
    capabilities: list[str]
    #: How the agent's version stands to the platform's: `older` (by one release) works; `too_old` and `newer` could
    #: not join any more; `unknown` where it has not said.
    version_skew: Skew
    agent_url: str | None
    #: What an operator should look at.
    warning: str | None
    last_seen_at: dt.datetime | None
    created_at: dt.datetime


class TokenCreate(BaseModel):
    """``POST /v1/hosts/tokens``. With a ``name``, only that host can join, also in the place of one that has it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"labels": {"disk": "ssd"}, "expires_in_seconds": 900}]}
    )

    name: Name | None = None
    labels: dict[LabelName, LabelValue] = Field(default={}, max_length=64)
    expires_in_seconds: Annotated[int, Field(strict=True, ge=1, le=7 * 24 * 3600)] = 3600


class TokenView(BaseModel):
    token: str
    name: str | None
    labels: dict[str, str]
    expires_at: dt.datetime


@router.get("/hosts", tags=["hosts"], response_model=Envelope[list[HostView]])
async def index(request: Request, caller: Annotated[Caller, may("hosts:read")], page: Paging) -> Response:
    """Hosts, with what they have, what is held of it, and how many ports are held."""
    return await page_of(request, caller, _query, Host.__table__.c.id, page, _viewer(request))


@router.get("/hosts/{host_id}", tags=["hosts"], response_model=Envelope[HostView])
async def show(request: Request, host_id: UUID, caller: Annotated[Caller, may("hosts:read")]) -> Response:
    """One host."""
    return answer(request, _viewer(request)(await _find(caller, host_id)))


@router.post("/hosts/tokens", tags=["hosts"], status_code=201, response_model=Envelope[TokenView])
async def token(
    request: Request, caller: Annotated[Caller, may("hosts:manage")], body: TokenCreate | None = None
) -> Response:
    """A token with which one host can join, once. It is shown here, and to the same request again with the same
    `Idempotency-Key`, and never otherwise: what is kept of it is a digest."""
    body = body or TokenCreate()
    settings: Settings = request.app.state.settings
    if body.name is not None:
        check_free_name(body.name, settings)
    acceptance = Acceptance(request, caller)
    token_id = new_id()
    if answered := await acceptance.answered_before(token_id, body.model_dump(mode="json")):
        return answer(request, await _token_again(caller, answered.resource_id, settings), 201)
    key = settings.ticket_key
    secret = join_token_of(token_id, key.get_secret_value()) if key else new_join_token()
    row = (
        await caller.execute(
            insert(HostToken)
            .values(
                id=token_id,
                digest=digest(secret),
                name=body.name,
                labels=body.labels,
                actor=caller.actor,
                expires_at=func.now() + dt.timedelta(seconds=body.expires_in_seconds),
            )
            .returning(HostToken.expires_at)
        )
    ).one()
    caller.changed("host_token", token_id, after={"name": body.name, "labels": body.labels})
    data = {"token": secret, "name": body.name, "labels": body.labels, "expires_at": row.expires_at}
    return answer(request, data, 201)


async def _token_again(caller: Caller, token_id: UUID, settings: Settings) -> dict[str, Any]:
    """What was answered when the token was made: it is made again from its id and the key that it was made with."""
    found = await caller.execute(select(HostToken.__table__).where(HostToken.id == token_id))
    row = found.one_or_none()
    for key in (settings.ticket_key, settings.ticket_key_other):
        if row is not None and key and digest(secret := join_token_of(token_id, key.get_secret_value())) == row.digest:
            return {"token": secret, "name": row.name, "labels": row.labels, "expires_at": row.expires_at}
    raise IdempotencyMismatch("the token that this Idempotency-Key stands for cannot be shown again: take a new key")


@router.post("/hosts/{host_id}/cordon", tags=["hosts"], response_model=Envelope[HostView])
async def cordon(
    request: Request, host_id: UUID, caller: Annotated[Caller, may("hosts:manage")], body: Nothing | None = None
) -> Response:
    """Place nothing more on the host; what is there stays."""
    return await _set_state(request, caller, host_id, HostState.CORDONED)


@router.post("/hosts/{host_id}/uncordon", tags=["hosts"], response_model=Envelope[HostView])
async def uncordon(
    request: Request, host_id: UUID, caller: Annotated[Caller, may("hosts:manage")], body: Nothing | None = None
) -> Response:
    """Place instances on the host again."""
    return await _set_state(request, caller, host_id, HostState.READY)


@router.post("/hosts/{host_id}/drain", tags=["hosts"], status_code=202, response_model=Envelope[HostView])
async def drain(
    request: Request, host_id: UUID, caller: Annotated[Caller, may("hosts:manage")], body: Nothing | None = None
) -> Response:
    """Move everything on the host elsewhere, and place nothing more on it. A host that is drained already, or is
    being drained, answers with that workflow."""
    acceptance = Acceptance(request, caller)

    async def shown(caller: Caller, host_id: UUID) -> dict[str, Any]:
        return _viewer(request)(await _find(caller, host_id))

    host = (await caller.execute(select(Host.__table__).where(Host.id == host_id).with_for_update())).one_or_none()
    if host is None:
        raise NotFound(f"there is no host {host_id}")
    if answered := await acceptance.answered_before(host_id, None):
        return await acceptance.answer(shown, answered)
    if host.state == HostState.DRAINING:
        under_way = select(Workflow.id).where(
            Workflow.project_id == caller.project_id, Workflow.resource_id == host_id, Workflow.state.not_in(TERMINAL)
        )
        workflow_id = (await caller.execute(under_way)).scalars().first()
        if workflow_id is None:
            raise InvalidState(f"host {host.name} is being drained already, from another project", state=host.state)
        return await acceptance.answer(shown, Answered(host_id, workflow_id))
    await caller.execute(update(Host).where(Host.id == host_id).values(state=HostState.DRAINING))
    order = Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind="DrainHost",
        resource_type="host",
        resource_id=host_id,
        name=host.name,
        request_id=request.state.request_id,
        deadline_seconds=DRAIN_SECONDS,
    )
    data = {"name": host.name, "from": host.state, "to": HostState.DRAINING}
    await acceptance.write(order, "host.draining", data, prior_status=host.state)
    return await acceptance.answer(shown)


@router.delete("/hosts/{host_id}", tags=["hosts"], status_code=204)
async def remove(host_id: UUID, caller: Annotated[Caller, may("hosts:manage")]) -> Response:
    """Forget a host on which nothing is placed. Its agent's credential is void from then on."""
    host = await _find(caller, host_id)
    caller.changed("host", host_id, before={"name": host.name, "state": host.state, "labels": host.labels})
    try:
        await caller.execute(delete(Host).where(Host.id == host_id))
    except IntegrityError as error:
        raise InUse(
            f"instances are placed on host {host.name}: drain it first (POST /v1/hosts/{host_id}/drain)", host=host.name
        ) from error
    return Response(status_code=204)


async def _set_state(request: Request, caller: Caller, host_id: UUID, state: HostState) -> Response:
    moved = await caller.execute(
        update(Host).where(Host.id == host_id, Host.state != HostState.DRAINING).values(state=state)
    )
    row = await _find(caller, host_id)
    if moved.rowcount == 0:
        raise InvalidState(f"host {row.name} is being drained: cancel that workflow first", state=row.state)
    caller.changed("host", host_id, after={"name": row.name, "state": row.state})
    return answer(request, _viewer(request)(row))


async def _find(caller: Caller, host_id: UUID) -> Row[Any]:
    row = (await caller.execute(_query.where(Host.id == host_id))).one_or_none()
    if row is None:
        raise NotFound(f"there is no host {host_id}")
    return row


def _viewer(request: Request) -> Callable[[Row[Any]], dict[str, Any]]:
    return partial(_view, request.app.state.capacity)


def _view(capacity: Capacity, row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "backend": row.backend,
        "state": row.state,
        "reachable": is_reachable(row.last_seen_at),
        "capacity": {"vcpus": row.cpus, "memory_mb": row.memory_mb},
        "allocatable": {
            "vcpus": row.cpus * capacity.overcommit_cpu,
            "memory_mb": int(row.memory_mb * capacity.overcommit_memory),
        },
        "allocated": {"vcpus": row.allocated_vcpus, "memory_mb": row.allocated_memory_mb},
        "ports_held": row.ports_held,
        "labels": row.labels,
        "versions": row.versions,
        "capabilities": row.capabilities,
        "version_skew": skew(row.versions.get("agent")),
        "agent_url": row.agent_url,
        "warning": row.warning,
        "last_seen_at": row.last_seen_at,
        "created_at": row.created_at,
    }
