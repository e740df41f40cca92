"""``/v1/autoscaling/groups``: instances from one template, as many as are desired."""

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
from api.group_numbers import NUMBERS
from api.group_rows import find, of_kind, view_of_group
from api.group_schemas import ActivityView, ConfigurationView, GroupCreate, GroupPatch, GroupScale, GroupView, Rollback
from api.paging import OfName, Paging, WithLabel, page_of
from model.groups import Group, GroupStatus, Kind

router = APIRouter(prefix="/v1/autoscaling/groups", tags=["groups"], responses=RESPONSES)
KIND: Kind = "group"
Reader = Annotated[Caller, may("groups:read")]
Writer = Annotated[Caller, may("groups:write")]
Scaler = Annotated[Caller, may("groups:scale")]


@router.post("", status_code=202, operation_id="create_group", response_model=Envelope[GroupView])
async def create(request: Request, body: GroupCreate, caller: Writer) -> Response:
    """Make a group, and launch its members."""
    desired = body.min_instances if body.desired_count is None else body.desired_count
    numbers = {"min_instances": body.min_instances, "max_instances": body.max_instances, "desired_count": desired}
    return await group_changes.create(request, caller, KIND, body, numbers)


@router.get("", operation_id="list_groups", response_model=Envelope[list[GroupView]])
async def index(
    request: Request,
    caller: Reader,
    page: Paging,
    status: Annotated[GroupStatus | None, Query()] = None,
    name: OfName = None,
    label: WithLabel = None,
) -> Response:
    """Groups, newest first; those deleted within 24 hours only with `?status=deleted`."""
    found = of_kind(KIND, caller, status, name, label)
    return await page_of(request, caller, found, Group.__table__.c.id, page, view_of_group)


@router.get("/{group_id}", operation_id="get_group", response_model=Envelope[GroupView])
async def show(request: Request, group_id: UUID, caller: Reader) -> Response:
    """One group. Its members are instances: `GET /v1/instances?group_id=`."""
    data = view_of_group(await find(caller, KIND, group_id))
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.patch(
    "/{group_id}",
    status_code=202,
    operation_id="update_group",
    summary="Change a group",
    response_model=Envelope[GroupView],
)
async def patch(request: Request, group_id: UUID, body: GroupPatch, caller: Writer) -> Response:
    """What is not named stays; null is the default. 200 where nothing has to be done for it.

    Where what members are made from changes, they are replaced, a few at a time: never with more than `max_surge` more
    than desired, nor with more than `max_unavailable` fewer that are ready. Where new members fail, the group goes back
    to the configuration that it had, and the workflow fails with the cause.
    """
    wanted = body.model_dump(include=set(NUMBERS), exclude_none=True)
    return await group_changes.patch(request, caller, KIND, group_id, body, wanted)


@router.put("/{group_id}/scale", status_code=202, operation_id="scale_group", response_model=Envelope[GroupView])
async def scale(request: Request, group_id: UUID, body: GroupScale, caller: Scaler) -> Response:
    """Another number of members, within the group's least and most; or other bounds. A newer wish takes the place of
    one under way. 200 where nothing has to be done for it: that number is there, or on its way. Under an
    `Idempotency-Key` it is done once."""
    if body.bounds:
        caller.require("groups:write")
    return await group_changes.scale(request, caller, KIND, group_id, body.model_dump(exclude_none=True))


@router.post(
    "/{group_id}/rollback", status_code=202, operation_id="roll_back_group", response_model=Envelope[GroupView]
)
async def rollback(request: Request, group_id: UUID, caller: Scaler, body: Rollback | None = None) -> Response:
    """Back to an earlier configuration; without `revision` to the one that all members had last."""
    body = body or Rollback()
    return await group_changes.roll_back(request, caller, KIND, group_id, body.revision, body)


@router.post("/{group_id}/pause", operation_id="pause_group", response_model=Envelope[GroupView])
async def pause(request: Request, group_id: UUID, caller: Scaler, body: Nothing | None = None) -> Response:
    """No member is replaced for its configuration any more. Scaling and the replacement of what fails go on."""
    return await group_changes.pause(request, caller, KIND, group_id)


@router.post("/{group_id}/resume", status_code=202, operation_id="resume_group", response_model=Envelope[GroupView])
async def resume(request: Request, group_id: UUID, caller: Scaler, body: Nothing | None = None) -> Response:
    """Members are replaced for their configuration again."""
    return await group_changes.resume(request, caller, KIND, group_id)


@router.get("/{group_id}/activities", operation_id="list_group_activities", response_model=Envelope[list[ActivityView]])
async def activities(request: Request, group_id: UUID, caller: Reader, page: Paging) -> Response:
    """What was done to the group, newest first: what, why, and what became of it."""
    return await activities_of(request, caller, KIND, group_id, page)


@router.get(
    "/{group_id}/configurations",
    operation_id="list_group_configurations",
    response_model=Envelope[list[ConfigurationView]],
)
async def configurations(request: Request, group_id: UUID, caller: Reader) -> Response:
    """What members are made from, and the earlier ones that a rollback can name, newest first."""
    return await configurations_of(request, caller, KIND, group_id)


@router.delete("/{group_id}", status_code=202, operation_id="delete_group", response_model=Envelope[GroupView])
async def delete(request: Request, group_id: UUID, caller: Writer) -> Response:
    """Delete a group with all its members. What is under way is called off first."""
    return await group_changes.delete(request, caller, KIND, group_id)
