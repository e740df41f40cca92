"""``/v1/instances``: launch, read, start, stop, delete."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import insert, null
from sqlalchemy.exc import IntegrityError

from api import lifetimes, vault
from api.accept import Acceptance, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_changes import change, name_taken, order_of, patch
from api.instance_rows import own, query, view
from api.instance_rows import show as show_row
from api.instance_schemas import InstanceCreate, InstancePatch, InstanceResize, InstanceView, Tag
from api.launches import template_of
from api.paging import OfName, Paging, WithLabel, labelled, page_of
from api.quotas import reserve
from api.resources import listed
from model.base import new_id
from model.instances import Instance, Status

router = APIRouter(prefix="/v1/instances", tags=["instances"], responses=RESPONSES)

_INSERT = insert(Instance.__table__).returning(  # type: ignore[arg-type]  # a Table, typed as FromClause
    *own, null().label("host"), null().label("last_seen_at")
)


@router.post("", status_code=202, response_model=Envelope[InstanceView])
async def launch(
    request: Request, body: InstanceCreate, caller: Annotated[Caller, may("instances:create")]
) -> Response:
    """Launch an instance: 202 with its id and its workflow's; `Prefer: wait=N` waits for it to run."""
    acceptance = Acceptance(request, caller, created=True)
    instance_id = new_id()
    asked = [body.model_dump(mode="json", exclude_unset=True)]
    if body.user_data is not None:
        asked = vault.fingerprinted(vault.keyring(request), caller, asked[0], "user_data")
    if answered := await acceptance.answered_before(instance_id, *asked):
        return await acceptance.answer(show_row, answered)
    template = await template_of(request, caller, body)
    order = order_of(request, caller, acceptance, "ProvisionInstance", instance_id, body.name)
    ports = [port.model_dump() for port in template.wanted_ports]
    order = order.model_copy(update={"fixed_ports": [port["host_port"] for port in ports if port["host_port"]]})
    values = template.columns() | {
        "id": instance_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": Status.PENDING,
        "workflow_id": order.workflow_id,
        "idle_stop_seconds": body.idle_stop_seconds,
        **await lifetimes.ttl(caller, body.ttl_seconds),
    }
    try:
        row = (await caller.execute(_INSERT, values)).one()
    except IntegrityError as error:
        raise await name_taken(caller, error, body.name) from error
    if body.user_data is not None:
        await vault.keep(caller, vault.keyring(request), body.user_data, instance_id=instance_id)
    # Of what it is given, what can hold secrets is left out.
    told = {"image": body.image, "instance_type": body.instance_type, "backend": body.backend, "host": body.host}
    caller.changed("instance", instance_id, after=told)
    await acceptance.write(order, "instance.pending", {"name": body.name, "from": None, "to": Status.PENDING})
    await reserve(caller, instances=1, vcpus=template.vcpus, memory_mb=template.memory_mb)
    return await acceptance.answer(show_row, view=view(row))


@router.get("", response_model=Envelope[list[InstanceView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("instances:read")],
    page: Paging,
    status: Annotated[Status | None, Query()] = None,
    name: OfName = None,
    label: WithLabel = None,
    tag: Annotated[list[Tag], Query(max_length=16)] = [],  # noqa: B006 - FastAPI copies it
    group_id: UUID | None = None,
) -> Response:
    """Instances, newest first; those deleted within 24 hours only with `?status=deleted`.

    Of several `tag` an instance has all. `group_id`: the members of a group or deployment.
    """
    found = listed(query, Instance, caller, status=status, name=name)
    if label is not None:
        found = found.where(Instance.labels.contains(labelled(label)))
    if group_id is not None:
        found = found.where(Instance.group_id == group_id)
    if tag:
        found = found.where(Instance.tags.contains(tag))
    return await page_of(request, caller, found, Instance.__table__.c.id, page, view)


@router.get("/{instance_id}", response_model=Envelope[InstanceView])
async def show(request: Request, instance_id: UUID, caller: Annotated[Caller, may("instances:read")]) -> Response:
    """One instance. A deleted one stays readable for 24 hours."""
    data = await show_row(caller, instance_id)
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.post("/{instance_id}/start", status_code=202, response_model=Envelope[InstanceView])
async def start(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:operate")],
    body: Nothing | None = None,
) -> Response:
    """Start a stopped instance."""
    return await change(request, caller, instance_id, "StartInstance")


@router.post("/{instance_id}/stop", status_code=202, response_model=Envelope[InstanceView])
async def stop(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:operate")],
    body: Nothing | None = None,
) -> Response:
    """Stop a running or paused instance; it keeps its files, its host and its ports.

    A paused one goes on for that: it is asked to end, and ended after its grace.
    """
    return await change(request, caller, instance_id, "StopInstance")


@router.post(
    "/{instance_id}/restart", status_code=202, summary="Restart an instance", response_model=Envelope[InstanceView]
)
async def restart(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:operate")],
    body: Nothing | None = None,
) -> Response:
    """Stop a running instance and start it again, as one workflow; it keeps its files, its host and its ports.

    One that does not start again is `stopped`, with the cause in its `error`.
    """
    return await change(request, caller, instance_id, "RestartInstance")


@router.post(
    "/{instance_id}/pause", status_code=202, summary="Pause an instance", response_model=Envelope[InstanceView]
)
async def pause(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:operate")],
    body: Nothing | None = None,
) -> Response:
    """Hold the processes of a running instance. They keep their memory, and the instance its place and its quota.

    A paused instance can be resumed, stopped, resized or deleted.
    """
    return await change(request, caller, instance_id, "PauseInstance")


@router.post(
    "/{instance_id}/resume", status_code=202, summary="Resume an instance", response_model=Envelope[InstanceView]
)
async def resume(
    request: Request,
    instance_id: UUID,
    caller: Annotated[Caller, may("instances:operate")],
    body: Nothing | None = None,
) -> Response:
    """Let the processes of a paused instance go on."""
    return await change(request, caller, instance_id, "ResumeInstance")


@router.post(
    "/{instance_id}/resize", status_code=202, summary="Resize an instance", response_model=Envelope[InstanceView]
)
async def resize(
    request: Request, instance_id: UUID, body: InstanceResize, caller: Annotated[Caller, may("instances:update")]
) -> Response:
    """Give an instance that runs, is stopped or is paused another instance type, on the host where it is.

    The larger of both sizes is held until it has the new one: 429 `quota_exceeded`, 409 `no_capacity`. It runs on
    where its engine can do that; where not (`needs_stop`: it uses more memory than it is to get, say), it is stopped
    for it and started again. Its files, host and ports stay. An engine that has to make another machine for it
    (`needs_recreate`) does that only with `recreate: true`: what the instance wrote outside of volumes is lost then.
    """
    return await change(request, caller, instance_id, "ResizeInstance", resize=body)


@router.patch("/{instance_id}", summary="Change an instance's name and labels", response_model=Envelope[InstanceView])
async def update(
    request: Request, instance_id: UUID, body: InstancePatch, caller: Annotated[Caller, may("instances:update")]
) -> Response:
    """Change `name`, `labels`, `metadata` or `tags`, in any state; 409 `name_taken`. What is not named stays.

    Labels and metadata are merged (RFC 7396): a name with a value is set, one with null is removed, null for all of
    them removes all. Tags are replaced. What the engine shows on its own object are the labels at launch.
    """
    return await patch(request, caller, instance_id, body)


@router.delete("/{instance_id}", status_code=202, response_model=Envelope[InstanceView])
async def delete(
    request: Request, instance_id: UUID, caller: Annotated[Caller, may("instances:delete")], force: bool = False
) -> Response:
    """Delete an instance, whatever its state: the workflow in the way is cancelled and undone first.

    With `force=true` an engine that does not answer is not waited for: its host removes what is left.
    """
    return await change(request, caller, instance_id, "DeprovisionInstance", force=force)
