"""``/v1/projects/{id}/quotas``: what a project may use, and uses."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from sqlalchemy import Row, func, select, update

from activities import image_limits
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.resources import one
from model.balancers import BalancerStatus, LoadBalancer
from model.projects import QUOTAS, Project, ProjectQuota

router = APIRouter(prefix="/v1/projects", tags=["projects"], responses=RESPONSES)

_MOST, _MOST_BYTES = 2**31 - 1, 2**63 - 1  # of the database's columns
Whole = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
Vcpus = Annotated[float, Field(strict=True, ge=0, le=_MOST, allow_inf_nan=False)]
Bytes = Annotated[int, Field(strict=True, ge=0, le=_MOST_BYTES)]
N = TypeVar("N")


class As(BaseModel, Generic[N]):
    """A limit in the form in which it is shown."""

    model_config = ConfigDict(extra="forbid")

    limit: N | None


def _form(value: Any) -> str:
    """By which of the two a wrong limit is told what is wrong with it."""
    return "union[object]" if isinstance(value, dict | As) else "union[number]"


#: These are no names of anybody's (``api/problems.py``).
_NUMBER, _OBJECT, _EITHER = Tag("union[number]"), Tag("union[object]"), Discriminator(_form)
WholeLimit = Annotated[Annotated[Whole, _NUMBER] | Annotated[As[Whole], _OBJECT], _EITHER]
VcpuLimit = Annotated[Annotated[Vcpus, _NUMBER] | Annotated[As[Vcpus], _OBJECT], _EITHER]
ByteLimit = Annotated[Annotated[Bytes, _NUMBER] | Annotated[As[Bytes], _OBJECT], _EITHER]


class QuotaView(BaseModel):
    limit: float | None
    used: float
    reserved: float


class QuotaPatch(BaseModel):
    """``PATCH /v1/projects/{id}/quotas``: what is not named stays; null: no limit. A limit is a number, or an object as
    ``GET`` shows it: ``{"limit": 50}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"instances": 50, "vcpus": None}]})

    instances: WholeLimit | None = None
    vcpus: VcpuLimit | None = None
    memory_mb: WholeLimit | None = None
    images: WholeLimit | None = None
    image_bytes: ByteLimit | None = None
    load_balancers: WholeLimit | None = None


@router.get("/{project_id}/quotas", response_model=Envelope[dict[str, QuotaView]])
async def show(request: Request, project_id: UUID, caller: Annotated[Caller, may("project:read")]) -> Response:
    """What the project may use (`limit`, null: no limit), uses, and has reserved for launches and imports under
    way."""
    return answer(request, await _quotas(caller, project_id))


@router.patch("/{project_id}/quotas", response_model=Envelope[dict[str, QuotaView]])
async def patch(
    request: Request, project_id: UUID, body: QuotaPatch, caller: Annotated[Caller, may("projects:manage")]
) -> Response:
    """Set limits. What is used beyond a new one stays, and nothing is added to it."""
    within = await caller.within(project_id)
    before = await _quotas(within, project_id)
    new = {what: getattr(body, what) for what in body.model_fields_set}
    limits = {what: limit.limit if isinstance(limit, As) else limit for what, limit in new.items()}
    caller.changed("quota", project_id, {what: before[what]["limit"] for what in limits}, limits)
    values = {f"{what}_limit": limit for what, limit in limits.items()}
    if values:
        await within.execute(update(ProjectQuota).where(ProjectQuota.project_id == project_id).values(**values))
    return answer(request, await _quotas(within, project_id))


async def _quotas(caller: Caller, project_id: UUID) -> dict[str, Any]:
    query = select(ProjectQuota.__table__).join(Project, Project.id == ProjectQuota.project_id)
    query = query.where(Project.id == project_id, Project.deleted_at.is_(None))
    row = await one(caller, query, "project", project_id)
    columns = ("limit", "used", "reserved")
    data = {what: {column: getattr(row, f"{what}_{column}") for column in columns} for what in QUOTAS}
    return data | await _images(caller, row) | {"load_balancers": await _balancers(caller, row)}


async def _balancers(caller: Caller, limits: Row[Any]) -> dict[str, Any]:
    live = (LoadBalancer.project_id == caller.project_id) & (LoadBalancer.status != BalancerStatus.DELETED)
    creating = func.count().filter(LoadBalancer.status == BalancerStatus.CREATING)
    held = (await caller.execute(select(func.count().label("all"), creating.label("coming")).where(live))).one()
    return {"limit": limits.load_balancers_limit, "used": held.all - held.coming, "reserved": held.coming}


async def _images(caller: Caller, limits: Row[Any]) -> dict[str, dict[str, Any]]:
    held = (await caller.execute(image_limits.HELD, {"project": caller.project_id, "but": None})).one()
    return {
        "images": {
            "limit": limits.images_limit,
            "used": held.images - held.images_coming,
            "reserved": held.images_coming,
        },
        "image_bytes": {
            "limit": limits.image_bytes_limit,
            "used": held.bytes - held.bytes_coming,
            "reserved": held.bytes_coming,
        },
    }
