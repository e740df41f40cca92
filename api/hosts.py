"""``/v1/hosts`` and ``/v1/instance-types``: where instances run, and how large they are. Read only."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import Row, func, select

from api.caller import Authenticated
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.paging import Paging, page_of
from model.errors import NotFound
from model.hosts import Host, HostPort, InstanceType, is_reachable

router = APIRouter(prefix="/v1", responses=RESPONSES)

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
    allocated: Size
    ports_held: int
    last_seen_at: dt.datetime | None
    created_at: dt.datetime


class InstanceTypeView(BaseModel):
    name: str
    vcpus: float
    memory_mb: int
    disk_gb: int


@router.get("/hosts", tags=["hosts"], response_model=Envelope[list[HostView]])
async def index(request: Request, caller: Authenticated, page: Paging) -> Response:
    """Hosts, with what they have, what is held of it, and how many ports are held."""
    return await page_of(request, caller, _query, Host.__table__.c.id, page, _view)


@router.get("/hosts/{host_id}", tags=["hosts"], response_model=Envelope[HostView])
async def show(request: Request, host_id: UUID, caller: Authenticated) -> Response:
    row = (await caller.execute(_query.where(Host.id == host_id))).one_or_none()
    if row is None:
        raise NotFound(f"there is no host {host_id}")
    return answer(request, _view(row))


@router.get("/instance-types", tags=["instances"], response_model=Envelope[list[InstanceTypeView]])
async def types(request: Request, caller: Authenticated) -> Response:
    """The sizes that instances come in, smallest first."""
    kind = InstanceType
    rows = await caller.execute(select(kind.__table__).order_by(kind.vcpus, kind.memory_mb, kind.disk_gb))
    return answer(request, [dict(row._mapping) for row in rows])


def _view(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "backend": row.backend,
        "state": row.state,
        "reachable": is_reachable(row.last_seen_at),
        "capacity": {"vcpus": row.cpus, "memory_mb": row.memory_mb},
        "allocated": {"vcpus": row.allocated_vcpus, "memory_mb": row.allocated_memory_mb},
        "ports_held": row.ports_held,
        "last_seen_at": row.last_seen_at,
        "created_at": row.created_at,
    }
