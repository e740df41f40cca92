"""``/v1/cache-volumes``: create, read, empty, delete. A row makes nothing on any host: sessions that name it do."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import ColumnElement, Row, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import aggregate_order_by

from api.accept import Acceptance, Answered, check_if_match, etag
from api.authentication import may
from api.cache_volume_schemas import CacheVolumeCreate, CacheVolumeView
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_changes import cancel_others, unforced
from api.paging import OfName, Paging, page_of
from api.resources import is_readable, listed, one, unique_name
from model.base import new_id
from model.cache_volumes import (
    CLEAR,
    DEPROVISION,
    MOST_VOLUMES,
    CacheVolume,
    CacheVolumeHost,
    CacheVolumeStatus,
    SessionCacheVolume,
)
from model.errors import InUse, InvalidState
from model.hosts import Host
from model.sessions import SessionStatus, WorkSession
from model.settings import Settings
from model.workflows import Order

router = APIRouter(prefix="/v1/cache-volumes", tags=["sessions"], responses=RESPONSES)

_hosts = (
    select(func.array_agg(aggregate_order_by(Host.name, Host.name)))
    .join(CacheVolumeHost, CacheVolumeHost.host_id == Host.id)
    .where(CacheVolumeHost.volume_id == CacheVolume.id)
    .correlate(CacheVolume)
    .scalar_subquery()
)
_query = select(*CacheVolume.__table__.columns, _hosts.label("hosts"))
#: They are counted by one request at a time.
_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended('cache volumes ' || :project, 0))")
#: Sessions that an error names.
NAMED = 10


@router.post("", status_code=201, response_model=Envelope[CacheVolumeView])
async def create(
    request: Request, body: CacheVolumeCreate, caller: Annotated[Caller, may("cache-volumes:create")]
) -> Response:
    """Make a cache that sessions of the project can name. It comes to be on a host with the first of them there."""
    volume_id = new_id()
    asked = body.model_dump(mode="json")
    acceptance = Acceptance(request, caller)
    if answered := await acceptance.answered_before(volume_id, asked):
        return _answer(request, await _show(caller, answered.resource_id), 201)
    await caller.execute(_ALONE, {"project": str(caller.project_id)})
    live = (CacheVolume.project_id == caller.project_id) & (CacheVolume.status != CacheVolumeStatus.DELETED)
    if (await caller.execute(select(func.count()).where(live))).scalar_one() >= MOST_VOLUMES:
        raise InUse(f"the project has {MOST_VOLUMES} cache volumes, as many as it may: delete one")
    values = {"id": volume_id, "project_id": caller.project_id, "status": CacheVolumeStatus.READY} | asked
    with unique_name("a cache volume", body.name):
        await caller.execute(insert(CacheVolume).values(**values))
    caller.changed("cache_volume", volume_id, after=asked)
    told = {"name": body.name, "from": None, "to": CacheVolumeStatus.READY}
    await acceptance.record("cache_volume.ready", "cache_volume", volume_id, None, told)
    data = await _show(caller, volume_id)
    await caller.commit()
    return _answer(request, data, 201)


@router.get("", response_model=Envelope[list[CacheVolumeView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("cache-volumes:read")],
    page: Paging,
    status: Annotated[CacheVolumeStatus | None, Query()] = None,
    name: OfName = None,
) -> Response:
    """Cache volumes of the project, newest first; those deleted within 24 hours only with `?status=deleted`."""
    query = listed(_query, CacheVolume, caller, status=status, name=name)
    return await page_of(request, caller, query, CacheVolume.__table__.c.id, page, _view)


@router.get("/{volume_id}", response_model=Envelope[CacheVolumeView])
async def show(request: Request, volume_id: UUID, caller: Annotated[Caller, may("cache-volumes:read")]) -> Response:
    """One cache volume, and on which hosts it is. A deleted one stays readable for 24 hours."""
    return _answer(request, await _show(caller, volume_id))


@router.post("/{volume_id}/clear", status_code=202, response_model=Envelope[CacheVolumeView])
async def clear(
    request: Request,
    volume_id: UUID,
    caller: Annotated[Caller, may("cache-volumes:update")],
    body: Nothing | None = None,
) -> Response:
    """Empty it on all hosts where it is. Sessions that have it go on, and see it empty.

    The workflow fails where a host does not answer in time, and names it; then it may be asked for again.
    """
    acceptance = Acceptance(request, caller)
    volume = await _lock(caller, volume_id)
    if answered := await acceptance.answered_before(volume_id, None):
        return await acceptance.answer(_show, answered)
    check_if_match(request, volume.version)
    if volume.status != CacheVolumeStatus.READY:
        under_way = {} if volume.status != CacheVolumeStatus.CLEARING else {"workflow_id": str(volume.workflow_id)}
        raise InvalidState(
            f"cache volume {volume.name} is {volume.status}, not ready", state=volume.status, **under_way
        )
    order = _order(request, caller, acceptance, CLEAR, volume)
    await _begin(caller, acceptance, volume, order, CacheVolumeStatus.CLEARING)
    return await acceptance.answer(_show)


@router.delete("/{volume_id}", status_code=202, response_model=Envelope[CacheVolumeView])
async def delete(
    request: Request, volume_id: UUID, caller: Annotated[Caller, may("cache-volumes:delete")], force: bool = False
) -> Response:
    """Delete a cache volume, whatever its state, from all hosts where it is. 409 `in_use` while a session has it.

    With `force=true` a host that does not answer is not waited for: its agent removes what is left.
    """
    acceptance = Acceptance(request, caller)
    volume = await _lock(caller, volume_id)
    if volume.status == CacheVolumeStatus.DELETED:
        return _answer(request, await _show(caller, volume_id))
    if volume.status == CacheVolumeStatus.DELETING and not (force and await unforced(caller, volume.workflow_id)):
        check_if_match(request, volume.version, volume.version - 1)
        return await acceptance.answer(_show, Answered(volume_id, volume.workflow_id))
    check_if_match(request, volume.version)
    await _check_unused(caller, volume)
    await cancel_others(caller, acceptance, volume_id)
    order = _order(request, caller, acceptance, DEPROVISION, volume).model_copy(update={"force": force})
    await _begin(caller, acceptance, volume, order, CacheVolumeStatus.DELETING)
    return await acceptance.answer(_show)


async def _check_unused(caller: Caller, volume: Row[Any]) -> None:
    """Raises InUse. Its row is locked, so no session comes to it meanwhile."""
    its = (SessionCacheVolume.session_id == WorkSession.id) & (SessionCacheVolume.volume_id == volume.id)
    have = select(WorkSession.name).join(SessionCacheVolume, its).where(WorkSession.status != SessionStatus.REMOVED)
    if names := list((await caller.execute(have.order_by(WorkSession.name).limit(NAMED))).scalars()):
        raise InUse(
            f"cache volume {volume.name} is of the sessions {', '.join(names)}: delete them first", sessions=names
        )


async def _begin(
    caller: Caller, acceptance: Acceptance, volume: Row[Any], order: Order, status: CacheVolumeStatus
) -> None:
    """The order's workflow owns the volume from here on."""
    values = {"status": status, "workflow_id": order.workflow_id, "version": CacheVolume.version + 1}
    owned = update(CacheVolume).where(CacheVolume.id == volume.id).values(**values, updated_at=func.now())
    await caller.execute(owned)
    data = {"name": volume.name, "from": volume.status, "to": status}
    await acceptance.write(order, f"cache_volume.{status}", data, prior_status=volume.status)


async def _lock(caller: Caller, volume_id: UUID) -> Row[Any]:
    """Its row, which nobody else changes until the commit, and which no new session names. Raises NotFound."""
    locked = select(CacheVolume.__table__).where(_mine(caller, volume_id)).with_for_update()
    return await one(caller, locked, "cache volume", volume_id)


def _order(request: Request, caller: Caller, acceptance: Acceptance, kind: str, volume: Row[Any]) -> Order:
    settings: Settings = request.app.state.settings
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="cache_volume",
        resource_id=volume.id,
        name=volume.name,
        request_id=request.state.request_id,
        deadline_seconds=settings.deadline_delete,
    )


async def _show(caller: Caller, volume_id: UUID) -> dict[str, Any]:
    return _view(await one(caller, _query.where(_mine(caller, volume_id)), "cache volume", volume_id))


def _mine(caller: Caller, volume_id: UUID) -> ColumnElement[bool]:
    return (CacheVolume.project_id == caller.project_id) & (CacheVolume.id == volume_id) & is_readable(CacheVolume)


def _answer(request: Request, data: dict[str, Any], status: int = 200) -> Response:
    return answer(request, data, status, headers={"ETag": etag(data["version"])})


def _view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of a cache volume, from a row of ``_query``."""
    return {name: getattr(row, name) for name in CacheVolumeView.model_fields} | {"hosts": row.hosts or []}
