"""``/v1/containers/deployments``: an image, so many times. Groups by other names, and with other numbers."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from api import group_changes
from api.accept import etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.group_activities import activities_of
from api.group_configurations import configurations_of
from api.group_rows import find, of_kind, view_of_deployment
from api.group_schemas import (
    ActivityView,
    ConfigurationView,
    DeploymentCreate,
    DeploymentPatch,
    DeploymentScale,
    DeploymentView,
    Rollback,
)
from api.paging import OfName, Paging, WithLabel, page_of
from model.groups import MOST_MEMBERS, Group, GroupStatus, Kind

router = APIRouter(prefix="/v1/containers/deployments", tags=["deployments"], responses=RESPONSES)
KIND: Kind = "deployment"
Reader = Annotated[Caller, may("deployments:read")]
Writer = Annotated[Caller, may("deployments:write")]
Scaler = Annotated[Caller, may("deployments:scale")]


@router.post("", status_code=202, operation_id="create_deployment", response_model=Envelope[DeploymentView])
async def create(request: Request, body: DeploymentCreate, caller: Writer) -> Response:
    """Make a deployment, and launch its replicas."""
    numbers = {"min_instances": 0, "max_instances": MOST_MEMBERS, "desired_count": body.replicas}
    return await group_changes.create(request, caller, KIND, body, numbers)


@router.get("", operation_id="list_deployments", response_model=Envelope[list[DeploymentView]])
async def index(
    request: Request,
    caller: Reader,
    page: Paging,
    status: Annotated[GroupStatus | None, Query()] = None,
    name: OfName = None,
    label: WithLabel = None,
) -> Response:
    """Deployments, newest first; those deleted within 24 hours only with `?status=deleted`."""
    found = of_kind(KIND, caller, status, name, label)
    return await page_of(request, caller, found, Group.__table__.c.id, page, view_of_deployment)


@router.get("/{deployment_id}", operation_id="get_deployment", response_model=Envelope[DeploymentView])
async def show(request: Request, deployment_id: UUID, caller: Reader) -> Response:
    """One deployment. Its replicas are instances: `GET /v1/instances?group_id=`."""
    data = view_of_deployment(await find(caller, KIND, deployment_id))
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.patch(
    "/{deployment_id}",
    status_code=202,
    operation_id="update_deployment",
    summary="Change a deployment",
    response_model=Envelope[DeploymentView],
)
async def patch(request: Request, deployment_id: UUID, body: DeploymentPatch, caller: Writer) -> Response:
    """What is not named stays; null is the default. 200 where nothing has to be done for it.

    Where what members are made from changes, they are replaced, a few at a time: never with more than `max_surge` more
    than desired, nor with more than `max_unavailable` fewer that are ready. Where new members fail, it goes back to
    the configuration that it had, and the workflow fails with the cause.
    """
    wanted = {} if body.replicas is None else {"desired_count": body.replicas}
    return await group_changes.patch(request, caller, KIND, deployment_id, body, wanted)


@router.put(
    "/{deployment_id}/scale", status_code=202, operation_id="scale_deployment", response_model=Envelope[DeploymentView]
)
async def scale(request: Request, deployment_id: UUID, body: DeploymentScale, caller: Scaler) -> Response:
    """Another number of replicas. A newer wish takes the place of one under way. 200 where nothing has to be done for
    it: that number is there, or on its way. Under an `Idempotency-Key` it is done once."""
    return await group_changes.scale(request, caller, KIND, deployment_id, {"desired_count": body.replicas})


@router.post(
    "/{deployment_id}/rollback",
    status_code=202,
    operation_id="roll_back_deployment",
    response_model=Envelope[DeploymentView],
)
async def rollback(request: Request, deployment_id: UUID, caller: Scaler, body: Rollback | None = None) -> Response:
    """Back to an earlier configuration; without `revision` to the one that all members had last."""
    body = body or Rollback()
    return await group_changes.roll_back(request, caller, KIND, deployment_id, body.revision, body)


@router.post("/{deployment_id}/pause", operation_id="pause_deployment", response_model=Envelope[DeploymentView])
async def pause(request: Request, deployment_id: UUID, caller: Scaler, body: Nothing | None = None) -> Response:
    """No member is replaced for its configuration any more. Scaling and the replacement of what fails go on."""
    return await group_changes.pause(request, caller, KIND, deployment_id)


@router.post(
    "/{deployment_id}/resume",
    status_code=202,
    operation_id="resume_deployment",
    response_model=Envelope[DeploymentView],
)
async def resume(request: Request, deployment_id: UUID, caller: Scaler, body: Nothing | None = None) -> Response:
    """Members are replaced for their configuration again."""
    return await group_changes.resume(request, caller, KIND, deployment_id)


@router.get(
    "/{deployment_id}/activities",
    operation_id="list_deployment_activities",
    response_model=Envelope[list[ActivityView]],
)
async def activities(request: Request, deployment_id: UUID, caller: Reader, page: Paging) -> Response:
    """What was done to the deployment, newest first: what, why, and what became of it."""
    return await activities_of(request, caller, KIND, deployment_id, page)


@router.get(
    "/{deployment_id}/configurations",
    operation_id="list_deployment_configurations",
    response_model=Envelope[list[ConfigurationView]],
)
async def configurations(request: Request, deployment_id: UUID, caller: Reader) -> Response:
    """What members are made from, and the earlier ones that a rollback can name, newest first."""
    return await configurations_of(request, caller, KIND, deployment_id)


@router.delete(
    "/{deployment_id}", status_code=202, operation_id="delete_deployment", response_model=Envelope[DeploymentView]
)
async def delete(request: Request, deployment_id: UUID, caller: Writer) -> Response:
    """Delete a deployment with all its replicas. What is under way is called off first."""
    return await group_changes.delete(request, caller, KIND, deployment_id)
