"""``/v1/projects/{id}/quotas``: what a project may have, and has."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, update

from activities import image_limits
from api.caller import ENTER, Caller, may
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from model.errors import NotFound
from model.projects import QUOTAS, Project, ProjectQuota

router = APIRouter(prefix="/v1/projects", tags=["projects"], responses=RESPONSES)

#: Of the database's columns.
_MOST, _MOST_BYTES = 2**31 - 1, 2**63 - 1


class QuotaView(BaseModel):
    limit: float | None
    used: float
    reserved: float


class Limit(BaseModel):
    """null: no limit."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=0, le=_MOST, strict=True)] | None


class LimitOfVcpus(BaseModel):
    """null: no limit."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[float, Field(ge=0, le=_MOST, strict=True, allow_inf_nan=False)] | None


class LimitOfBytes(BaseModel):
    """null: no limit."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=0, le=_MOST_BYTES, strict=True)] | None


class QuotasPatch(BaseModel):
    """``PATCH /v1/projects/{id}/quotas``: what is not named stays."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"instances": {"limit": 50}, "vcpus": {"limit": 100}}]}
    )

    instances: Limit | None = None
    vcpus: LimitOfVcpus | None = None
    memory_mb: Limit | None = None
    images: Limit | None = None
    image_bytes: LimitOfBytes | None = None


@router.get("/{project_id}/quotas", response_model=Envelope[dict[str, QuotaView]])
async def quotas(request: Request, project_id: UUID, caller: Annotated[Caller, may("project:read")]) -> Response:
    """What the project may use (`limit`, null: no limit), uses, and has reserved for launches and imports under
    way."""
    if project_id != caller.project_id:
        raise NotFound(f"there is no project {project_id}")
    return answer(request, await _quotas(caller, project_id))


@router.patch("/{project_id}/quotas", response_model=Envelope[dict[str, QuotaView]])
async def patch(
    request: Request, project_id: UUID, body: QuotasPatch, caller: Annotated[Caller, may("projects:manage")]
) -> Response:
    """Change the limits of any project, as an administrator of the platform. A limit that is lowered below what is
    used ends nothing: nothing more is accepted until less is used."""
    known = select(Project.id).where(Project.id == project_id, Project.deleted_at.is_(None))
    if (await caller.execute(known)).one_or_none() is None:
        raise NotFound(f"there is no project {project_id}")
    await caller.execute(ENTER, {"project": str(project_id)})
    limits = {f"{name}_limit": new.limit for name, new in body if name in body.model_fields_set and new is not None}
    if limits:
        await caller.execute(update(ProjectQuota).where(ProjectQuota.project_id == project_id).values(**limits))
    return answer(request, await _quotas(caller, project_id))


async def _quotas(caller: Caller, project_id: UUID) -> dict[str, Any]:
    row = (await caller.execute(select(ProjectQuota.__table__).where(ProjectQuota.project_id == project_id))).one()
    columns = ("limit", "used", "reserved")
    data = {what: {column: getattr(row, f"{what}_{column}") for column in columns} for what in QUOTAS}
    held = (await caller.execute(image_limits.HELD, {"project": project_id, "but": None})).one()
    for what, there, coming in (
        ("images", held.images, held.images_coming),
        ("image_bytes", held.bytes, held.bytes_coming),
    ):
        limit = getattr(row, f"{what}_limit")
        data[what] = {"limit": limit, "used": there - coming, "reserved": coming}
    return data
