"""``/v1/projects``: the caller's project, its policies."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select, update

from api.caller import Caller, may
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from model.errors import NotFound
from model.instances import Instance
from model.projects import DriftPolicy, Project

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
    await _project(caller, project_id)
    if body.drift_policy is not None:
        await caller.execute(update(Project).where(Project.id == project_id).values(drift_policy=body.drift_policy))
        # What has drifted already is looked at again, under the new policy.
        drifted = (Instance.project_id == project_id) & Instance.drift.is_not(None)
        await caller.execute(update(Instance).where(drifted).values(updated_at=func.now()))
    return answer(request, await _project(caller, project_id))


async def _project(caller: Caller, project_id: UUID) -> dict[str, Any]:
    found = await caller.execute(
        select(Project.__table__).where(Project.id == project_id, Project.id == caller.project_id)
    )
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no project {project_id}")
    return dict(row._mapping)
