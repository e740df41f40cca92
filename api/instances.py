"""``/v1/instances``: launch, read, start, stop, delete."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row, bindparam, func, insert, null, select, text, update
from sqlalchemy.exc import IntegrityError

from activities.placement import Capacity
from api import lifetimes
from api.accept import Acceptance, Answered, check_if_match, etag
from api.caller import Authenticated, Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import InstanceCreate, InstanceView
from api.paging import Paging, page_of
from model.base import new_id
from model.errors import (
    InvalidState,
    NameTaken,
    NoCapacity,
    NotFound,
    PortTaken,
    QuotaExceeded,
    ValidationFailed,
)
from model.hosts import Host, HostState, is_reachable
from model.instances import STABLE, VERBS, Instance, Status
from model.projects import QUOTAS, ProjectQuota
from model.settings import Settings
from model.workflows import NEVER_STARTED, Order, State, Workflow

router = APIRouter(prefix="/v1/instances", tags=["instances"], responses=RESPONSES)

_DEADLINES = {
    "ProvisionInstance": "deadline_launch",
    "StartInstance": "deadline_start",
    "StopInstance": "deadline_stop",
    "DeprovisionInstance": "deadline_delete",
}
# All but a script, which nobody but its agent reads.
_OWN = [column for column in Instance.__table__.columns if column.name != "user_data"]
_columns = [*_OWN, Host.name.label("host"), Host.last_seen_at]
_query = select(*_columns).select_from(Instance).outerjoin(Host, Host.id == Instance.host_id)

# Built once: on the paths that every client waits for, building a statement costs more than running it.
readable = (Instance.status != Status.DELETED) | (Instance.deleted_at > func.now() - text("interval '24 hours'"))
MINE = (Instance.project_id == bindparam("project_id")) & (Instance.id == bindparam("instance_id")) & readable
_BY_ID = _query.where(MINE)
_LOCK = select(*_OWN).where(MINE).with_for_update()
_INSERT = insert(Instance.__table__).returning(  # type: ignore[arg-type]  # a Table, typed as FromClause
    *_OWN, null().label("host"), null().label("last_seen_at")
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
    WHERE t.name = :type
    GROUP BY t.name
    """
)

_RESERVE = update(ProjectQuota).where(ProjectQuota.project_id == bindparam("project"))
for _what in QUOTAS:
    _limit, _used, _reserved = (getattr(ProjectQuota, f"{_what}_{column}") for column in ("limit", "used", "reserved"))
    _RESERVE = _RESERVE.where(_limit.is_(None) | (_used + _reserved + bindparam(_what) <= _limit))
    _RESERVE = _RESERVE.values({f"{_what}_reserved": _reserved + bindparam(_what)})


@router.post("", status_code=202, response_model=Envelope[InstanceView])
async def launch(request: Request, body: InstanceCreate, caller: Authenticated) -> Response:
    """Launch an instance: 202 with its id and its workflow's; `Prefer: wait=N` waits for it to run."""
    acceptance = Acceptance(request, caller, created=True)
    instance_id = new_id()
    asked = body.model_dump(mode="json", exclude_unset=True)
    if answered := await acceptance.answered_before(instance_id, asked):
        return await acceptance.answer(_show, answered)
    size = await _check_possible(request, caller, body)
    order = _order(request, caller, acceptance, "ProvisionInstance", instance_id, body.name)
    ports = [port.model_dump() for port in body.wanted_ports()]
    order = order.model_copy(update={"fixed_ports": [port["host_port"] for port in ports if port["host_port"]]})
    values = {
        "id": instance_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": Status.PENDING,
        "image": body.image,
        "instance_type": body.instance_type,
        "vcpus": size.vcpus,
        "memory_mb": size.memory_mb,
        "env": body.env,
        "cmd": body.cmd,
        "ports": ports,
        "wanted_ports": ports,
        "labels": body.labels,
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
        if "uq_instances_live_name" in str(error.orig):
            raise NameTaken(f"there is an instance named '{body.name}' already", name=body.name) from error
        raise
    await acceptance.write(order, "instance.pending", {"name": body.name, "from": None, "to": Status.PENDING})
    # Last: every request of the project waits for this row. One conditional update, no read before it.
    sizes = {"instances": 1, "vcpus": size.vcpus, "memory_mb": size.memory_mb}
    if (await caller.execute(_RESERVE, {"project": caller.project_id, **sizes})).rowcount == 0:
        raise QuotaExceeded("the project's quota does not allow this; see GET /v1/projects/{id}/quotas", **sizes)
    return await acceptance.answer(_show, view=view(row))


@router.get("", response_model=Envelope[list[InstanceView]])
async def index(
    request: Request,
    caller: Authenticated,
    page: Paging,
    status: Annotated[Status | None, Query()] = None,
    name: Annotated[str | None, Query(max_length=63, pattern=r"^[^\x00]*$")] = None,
    label: Annotated[str | None, Query(max_length=320, pattern=r"^[^=\x00]+=[^\x00]*$")] = None,
) -> Response:
    """Instances, newest first; those deleted within 24 hours only with `?status=deleted`."""
    query = _query.where(Instance.project_id == caller.project_id)
    query = query.where(Instance.status == status) if status else query.where(Instance.status != Status.DELETED)
    if status == Status.DELETED:
        query = query.where(readable)
    if name is not None:
        query = query.where(Instance.name == name)
    if label is not None:
        key, _, value = label.partition("=")
        query = query.where(Instance.labels.contains({key: value}))
    return await page_of(request, caller, query, Instance.__table__.c.id, page, view)


@router.get("/{instance_id}", response_model=Envelope[InstanceView])
async def show(request: Request, instance_id: UUID, caller: Authenticated) -> Response:
    """One instance. A deleted one stays readable for 24 hours."""
    data = await _show(caller, instance_id)
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.post("/{instance_id}/start", status_code=202, response_model=Envelope[InstanceView])
async def start(request: Request, instance_id: UUID, caller: Authenticated, body: Nothing | None = None) -> Response:
    """Start a stopped instance."""
    return await _change(request, caller, instance_id, "StartInstance")


@router.post("/{instance_id}/stop", status_code=202, response_model=Envelope[InstanceView])
async def stop(request: Request, instance_id: UUID, caller: Authenticated, body: Nothing | None = None) -> Response:
    """Stop a running instance; it keeps its files, its host and its ports."""
    return await _change(request, caller, instance_id, "StopInstance")


@router.delete("/{instance_id}", status_code=202, response_model=Envelope[InstanceView])
async def delete(request: Request, instance_id: UUID, caller: Authenticated, force: bool = False) -> Response:
    """Delete an instance, whatever its state: the workflow in the way is cancelled and undone first.

    With `force=true` an engine that does not answer is not waited for: its host removes what is left.
    """
    return await _change(request, caller, instance_id, "DeprovisionInstance", force=force)


async def _change(request: Request, caller: Caller, instance_id: UUID, kind: str, *, force: bool = False) -> Response:
    """Accept a workflow on an existing instance."""
    acceptance = Acceptance(request, caller)
    instance = await _lock(caller, instance_id)
    if request.method == "POST" and (answered := await acceptance.answered_before(instance_id, None)):
        return await acceptance.answer(_show, answered)
    verb = VERBS[kind]
    if verb.done is Status.DELETED:
        if instance.status == Status.DELETED:
            return answer(request, await _show(caller, instance_id), headers={"ETag": etag(instance.version)})
        if instance.status == Status.DELETING and not (force and await _unforced(caller, instance.workflow_id)):
            return await acceptance.answer(_show, Answered(instance_id, instance.workflow_id))
    check_if_match(request, instance.version)
    if instance.status not in verb.allowed:
        raise InvalidState(
            f"instance {instance.name} is {instance.status}, not {' or '.join(sorted(verb.allowed))}",
            state=instance.status,
            **({} if instance.status in STABLE else {"workflow_id": str(instance.workflow_id)}),
        )
    if verb.done is Status.DELETED:
        await _cancel_others(caller, acceptance, instance_id)
    order = _order(request, caller, acceptance, kind, instance_id, instance.name)
    order = order.model_copy(update={"force": force})
    await caller.execute(
        update(Instance)
        .where(Instance.id == instance_id)
        .values(
            status=verb.during,
            workflow_id=order.workflow_id,
            version=Instance.version + 1,
            updated_at=func.now(),
        )
    )
    data = {"name": instance.name, "from": instance.status, "to": verb.during}
    await acceptance.write(order, f"instance.{verb.during}", data, prior_status=instance.status)
    return await acceptance.answer(_show)


async def _unforced(caller: Caller, workflow_id: UUID) -> bool:
    """Whether the delete under way is one that waits for its engine: a forced one may take its place."""
    order = select(Workflow.order).where(Workflow.project_id == caller.project_id, Workflow.id == workflow_id)
    return not Order.model_validate((await caller.execute(order)).scalar_one()).force


async def _lock(caller: Caller, instance_id: UUID) -> Row[Any]:
    found = await caller.execute(_LOCK, {"project_id": caller.project_id, "instance_id": instance_id})
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no instance {instance_id}")
    return row


async def _cancel_others(caller: Caller, acceptance: Acceptance, instance_id: UUID) -> None:
    """Ask every unfinished workflow of the instance to end. One that has not started ends here."""
    accepted = Workflow.state == State.ACCEPTED
    mine = (Workflow.project_id == caller.project_id) & (Workflow.resource_id == instance_id)
    called_off = {"state": State.CANCELLED, "error": NEVER_STARTED.model_dump()}
    ended = await caller.execute(
        update(Workflow)
        .where(mine, accepted)
        .values(**called_off, finished_at=func.now(), cancel_requested_at=func.now())
        .returning(Workflow.__table__)
    )
    for row in ended.all():
        await acceptance.ended(row)
    running = await caller.execute(
        update(Workflow)
        .where(mine, Workflow.state == State.RUNNING)
        .values(cancel_requested_at=func.now())
        .returning(Workflow.id)
    )
    for (workflow_id,) in running:
        acceptance.cancels(workflow_id)


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


def _order(request: Request, caller: Caller, acceptance: Acceptance, kind: str, instance_id: UUID, name: str) -> Order:
    settings: Settings = request.app.state.settings
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="instance",
        resource_id=instance_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=getattr(settings, _DEADLINES[kind]),
        grace_seconds=settings.stop_grace,
    )


async def _show(caller: Caller, instance_id: UUID) -> dict[str, Any]:
    found = await caller.execute(_BY_ID, {"project_id": caller.project_id, "instance_id": instance_id})
    row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no instance {instance_id}")
    return view(row)


def view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of an instance, from a row of ``_query``."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "name": row.name,
        "status": row.status,
        "image": row.image,
        "instance_type": row.instance_type,
        "vcpus": row.vcpus,
        "memory_mb": row.memory_mb,
        "env": row.env,
        "cmd": row.cmd,
        "ports": row.ports,
        "labels": row.labels,
        "metadata": row.metadata,
        "backend": row.backend,
        "host": row.host,
        "reachable": None if row.host is None else is_reachable(row.last_seen_at),
        "container_id": row.container_id,
        "private_ip": row.private_ip,
        "generation": row.generation,
        "version": row.version,
        "error": row.error,
        "on_host_lost": row.on_host_lost,
        "host_labels": row.wanted_labels,
        "drift": row.drift,
        **lifetimes.view(row),
        "workflow_id": row.workflow_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "deleted_at": row.deleted_at,
    }
