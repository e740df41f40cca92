"""``/v1/instances``: launch, read, start, stop, delete."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row, insert, null, select, text
from sqlalchemy.exc import IntegrityError

from activities.placement import Capacity
from api import lifetimes, secrets
from api.accept import Acceptance, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.image_names import named_image
from api.instance_changes import change, name_taken, order_of, patch
from api.instance_rows import own, query, view
from api.instance_rows import show as show_row
from api.instance_schemas import InstanceCreate, InstancePatch, InstanceResize, InstanceView, Tag
from api.paging import OfName, Paging, page_of
from api.quotas import reserve
from api.resources import listed
from model.base import new_id
from model.errors import NoCapacity, PortTaken, ValidationFailed
from model.hosts import Host, HostState
from model.instances import Instance, Status

router = APIRouter(prefix="/v1/instances", tags=["instances"], responses=RESPONSES)

_INSERT = insert(Instance.__table__).returning(  # type: ignore[arg-type]  # a Table, typed as FromClause
    *own, null().label("host"), null().label("last_seen_at")
)
_POSSIBLE = text(
    """
    SELECT t.vcpus, t.memory_mb, count(clash) > 0 AS room, count(*) FILTER (WHERE NOT clash) > 0 AS ports
    FROM instance_types t LEFT JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM host_ports p JOIN unnest(cast(:ports AS int[]), cast(:protocols AS text[])) AS w(port, protocol)
            ON p.port = w.port AND p.protocol = w.protocol WHERE p.host_id = h.id
        ) AS clash
        FROM hosts h
        WHERE h.backend = :backend AND h.state = 'ready' AND (cast(:host AS text) IS NULL OR h.name = :host)
          AND h.labels @> cast(:labels AS jsonb)
          AND h.allocated_vcpus + t.vcpus <= h.cpus * :cpu
          AND h.allocated_memory_mb + t.memory_mb <= h.memory_mb * :memory
    ) AS fitting ON true
    WHERE t.name = :type AND t.retired_at IS NULL
    GROUP BY t.name
    """
)


@router.post("", status_code=202, response_model=Envelope[InstanceView])
async def launch(
    request: Request, body: InstanceCreate, caller: Annotated[Caller, may("instances:create")]
) -> Response:
    """Launch an instance: 202 with its id and its workflow's; `Prefer: wait=N` waits for it to run."""
    acceptance = Acceptance(request, caller, created=True)
    instance_id = new_id()
    asked = body.model_dump(mode="json", exclude_unset=True)
    if answered := await acceptance.answered_before(instance_id, asked):
        return await acceptance.answer(show_row, answered)
    named = await named_image(caller, body.image, body.backend)
    size = await _check_possible(request, caller, body)
    order = order_of(request, caller, acceptance, "ProvisionInstance", instance_id, body.name)
    ports = [port.model_dump() for port in body.wanted_ports()]
    order = order.model_copy(update={"fixed_ports": [port["host_port"] for port in ports if port["host_port"]]})
    values = {
        "id": instance_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": Status.PENDING,
        "image": body.image,
        **named,
        "instance_type": body.instance_type,
        "vcpus": size.vcpus,
        "memory_mb": size.memory_mb,
        "env": body.plain_env(),
        "secrets": await secrets.uses(caller, body),
        "cmd": body.cmd,
        "ports": ports,
        "wanted_ports": ports,
        "labels": body.labels,
        "tags": body.tags,
        "metadata": body.metadata,
        "backend": body.backend,
        "wanted_host": body.host,
        "wanted_labels": body.host_labels,
        "on_host_lost": body.on_host_lost,
        "workflow_id": order.workflow_id,
        **await lifetimes.columns(caller, body),
    }
    try:
        row = (await caller.execute(_INSERT, values)).one()
    except IntegrityError as error:
        raise name_taken(error, body.name) from error
    # Of what it is given, what can hold secrets is left out.
    told = {"image": body.image, "instance_type": body.instance_type, "backend": body.backend, "host": body.host}
    caller.changed("instance", instance_id, after=told)
    await acceptance.write(order, "instance.pending", {"name": body.name, "from": None, "to": Status.PENDING})
    await reserve(caller, instances=1, vcpus=size.vcpus, memory_mb=size.memory_mb)
    return await acceptance.answer(show_row, view=view(row))


@router.get("", response_model=Envelope[list[InstanceView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("instances:read")],
    page: Paging,
    status: Annotated[Status | None, Query()] = None,
    name: OfName = None,
    label: Annotated[str | None, Query(max_length=320, pattern=r"^[^=\x00]+=[^\x00]*$")] = None,
    tag: Annotated[list[Tag], Query(max_length=16)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Instances, newest first; those deleted within 24 hours only with `?status=deleted`.

    Of several `tag` an instance has all.
    """
    found = listed(query, Instance, caller, status=status, name=name)
    if label is not None:
        key, _, value = label.partition("=")
        found = found.where(Instance.labels.contains({key: value}))
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


async def _check_possible(request: Request, caller: Caller, body: InstanceCreate) -> Row[Any]:
    """The instance type, and whether any host could take the launch now: one read, that holds nothing."""
    capacity: Capacity = request.app.state.capacity
    fixed = [(port.host_port, port.protocol) for port in body.ports if port.host_port]
    asked = {
        "type": body.instance_type,
        "backend": body.backend,
        "host": body.host,
        "labels": orjson.dumps(body.host_labels).decode(),
        "cpu": capacity.overcommit_cpu,
        "memory": capacity.overcommit_memory,
        "ports": [port for port, _ in fixed],
        "protocols": [protocol for _, protocol in fixed],
    }
    row = (await caller.execute(_POSSIBLE, asked)).one_or_none()
    if row is None:
        raise ValidationFailed(
            f"there is no instance type '{body.instance_type}'",
            fields=[{"field": "instance_type", "message": "see GET /v1/instance-types"}],
        )
    if not row.room:
        raise NoCapacity(
            await _why_no_room(caller, body),
            instance_type=body.instance_type,
            backend=body.backend,
            host=body.host,
        )
    if not row.ports:
        raise PortTaken("no host has these ports free", ports=[port for port, _ in fixed])
    return row


async def _why_no_room(caller: Caller, body: InstanceCreate) -> str:
    if body.host is None:
        wanted = f" with the labels {body.host_labels}" if body.host_labels else ""
        return f"no {body.backend} host{wanted} that takes placements has room for this instance"
    host = (await caller.execute(select(Host.__table__).where(Host.name == body.host))).one_or_none()
    if host is None:
        return f"there is no host named '{body.host}'"
    if host.backend != body.backend:
        return f"host '{body.host}' has the engine {host.backend}, not {body.backend}"
    if host.state != HostState.READY:
        return f"host '{body.host}' is {host.state}: it takes no placements"
    if not body.host_labels.items() <= host.labels.items():
        return f"host '{body.host}' has not all of the labels {body.host_labels}"
    return f"host '{body.host}' has no room for this instance"
