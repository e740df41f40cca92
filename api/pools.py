"""``/v1/pools``: sandboxes that run before a session asks for one. Groups, whose members sessions claim."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row, select

from api import group_changes
from api.accept import etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.group_rows import find, of_kind
from api.paging import OfName, Paging, page_of
from api.pool_schemas import PoolCreate, PoolPatch, PoolView, check_sizes, pool_view
from model.errors import ValidationFailed
from model.groups import Group, GroupStatus, Kind
from model.hosts import Host
from model.settings import Settings

router = APIRouter(prefix="/v1/pools", tags=["pools"], responses=RESPONSES)
KIND: Kind = "pool"
USUAL = "docker"


@router.post("", status_code=202, operation_id="create_pool", response_model=Envelope[PoolView])
async def create(request: Request, body: PoolCreate, caller: Annotated[Caller, may("pools:create")]) -> Response:
    """Make a pool, and launch its sandboxes. They count in the project's quota like others."""
    settings: Settings = request.app.state.settings
    backend = USUAL
    if body.host is not None:
        found = await caller.execute(select(Host.backend).where(Host.name == body.host))
        backend = found.scalar_one_or_none() or USUAL
    numbers = {"min_instances": body.size, "max_instances": body.most, "desired_count": body.size}
    return await group_changes.create(request, caller, KIND, body.members(settings.session_image, backend), numbers)


@router.get("", operation_id="list_pools", response_model=Envelope[list[PoolView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("pools:read")],
    page: Paging,
    status: Annotated[GroupStatus | None, Query()] = None,
    name: OfName = None,
) -> Response:
    """Pools, newest first; those deleted within 24 hours only with `?status=deleted`."""
    found = of_kind(KIND, caller, status, name)
    return await page_of(request, caller, found, Group.__table__.c.id, page, pool_view)


@router.get("/{pool_id}", operation_id="get_pool", response_model=Envelope[PoolView])
async def show(request: Request, pool_id: UUID, caller: Annotated[Caller, may("pools:read")]) -> Response:
    """One pool. Its sandboxes that nobody has are instances: `GET /v1/instances?group_id=`."""
    data = pool_view(await find(caller, KIND, pool_id))
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.patch(
    "/{pool_id}",
    status_code=202,
    operation_id="update_pool",
    summary="Change how many sandboxes a pool keeps ready",
    response_model=Envelope[PoolView],
)
async def patch(
    request: Request, pool_id: UUID, body: PoolPatch, caller: Annotated[Caller, may("pools:update")]
) -> Response:
    """What is not named stays. Sandboxes that are more than are wanted go, but for those that sessions have."""
    return await group_changes.resize(request, caller, KIND, pool_id, lambda pool: _numbers(pool, body))


@router.delete("/{pool_id}", status_code=202, operation_id="delete_pool", response_model=Envelope[PoolView])
async def delete(request: Request, pool_id: UUID, caller: Annotated[Caller, may("pools:delete")]) -> Response:
    """Delete a pool with the sandboxes that nobody has; those of sessions stay with these."""
    return await group_changes.delete(request, caller, KIND, pool_id)


def _numbers(pool: Row[Any], body: PoolPatch) -> dict[str, int]:
    """Raises ValidationFailed."""
    size = pool.min_instances if body.size is None else body.size
    most = max(size, pool.max_instances) if body.max_size is None else body.max_size
    try:
        check_sizes(size, most)
    except ValueError as error:
        raise ValidationFailed(str(error), fields=[{"field": "size", "message": str(error)}]) from None
    desired = min(most, max(size, pool.desired_count if body.size is None else size))
    return {"min_instances": size, "max_instances": most, "desired_count": desired}
