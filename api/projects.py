"""``/v1/projects``: the caller's project, its policies and its quotas."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, func, select, update

from activities import image_limits
from api.caller import Caller, may
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from model.errors import NotFound
from model.instances import Instance
from model.projects import QUOTAS, DriftPolicy, Project, ProjectQuota

router = APIRouter(prefix="/v1/projects", tags=["projects"], responses=RESPONSES)


class ProjectView(BaseModel):
    id: str
    name: str
    drift_policy: DriftPolicy
    created_at: dt.datetime


class ProjectPatch(BaseModel):
    """``PATCH /v1/projects/{id}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"drift_policy": "heal"}]})

    drift_policy: DriftPolicy | None = None


class QuotaView(BaseModel):
    limit: float | None
    used: float
    reserved: float


@router.get("", response_model=Envelope[list[ProjectView]])
async def index(request: Request, caller: Annotated[Caller, may("project:read")]) -> Response:
    """The project that the key, or `X-Project-ID`, stands for."""
    return answer(request, [await _project(caller, caller.project_id)])


@router.get("/{project_id}", response_model=Envelope[ProjectView])
async def show(request: Request, project_id: UUID, caller: Annotated[Caller, may("project:read")]) -> Response:
    """One project: the caller's."""
    return answer(request, await _project(caller, project_id))


@router.patch("/{project_id}", response_model=Envelope[ProjectView])
async def patch(
    request: Request, project_id: UUID, body: ProjectPatch, caller: Annotated[Caller, may("project:update")]
) -> Response:
    """Change the project. `drift_policy`: `report` shows what differs on the instance, `heal` also mends it."""
    project = await _project(caller, project_id)
    if body.drift_policy is not None:
        before = {"drift_policy": project["drift_policy"]}
        caller.changed("project", project_id, before, {"drift_policy": body.drift_policy})
        await caller.execute(update(Project).where(Project.id == project_id).values(drift_policy=body.drift_policy))
        # What has drifted already is looked at again, under the new policy.
        drifted = (Instance.project_id == project_id) & Instance.drift.is_not(None)
        await caller.execute(update(Instance).where(drifted).values(updated_at=func.now()))
    return answer(request, await _project(caller, project_id))


@router.get("/{project_id}/quotas", response_model=Envelope[dict[str, QuotaView]])
async def quotas(request: Request, project_id: UUID, caller: Annotated[Caller, may("project:read")]) -> Response:
    """What the project may use (`limit`, null: no limit), uses, and has reserved for launches and imports under
    way."""
    await _project(caller, project_id)
    row = (await caller.execute(select(ProjectQuota.__table__).where(ProjectQuota.project_id == project_id))).one()
    columns = ("limit", "used", "reserved")
    data = {what: {column: getattr(row, f"{what}_{column}") for column in columns} for what in QUOTAS}
    data |= await _images(caller, row)
    return answer(request, data)


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


async def _project(caller: Caller, project_id: UUID) -> dict[str, Any]:
    found = await caller.execute(
        select(Project.__table__).where(Project.id == project_id, Project.id == caller.project_id)
    )
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no project {project_id}")
    return dict(row._mapping)
