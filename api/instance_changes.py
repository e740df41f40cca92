"""Accepting changes of instances that there are: the verbs, and what only rows hold."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response
from sqlalchemy import Row, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from activities.placement import Capacity
from api import lifetimes
from api.accept import Acceptance, Answered, check_if_match, etag
from api.caller import Caller
from api.envelope import answer
from api.instance_rows import check_unmanaged, lock, show
from api.instance_schemas import InstancePatch, InstanceResize
from api.quotas import reserve
from api.resources import violated
from model.errors import InvalidState, NameTaken, NoCapacity, ValidationFailed
from model.instances import STABLE, VERBS, Instance, Status
from model.settings import Settings
from model.workflows import NEVER_STARTED, Event, Order, State, Workflow

_DEADLINES = {
    "ProvisionInstance": "deadline_launch",
    "StartInstance": "deadline_start",
    "StopInstance": "deadline_stop",
    "RestartInstance": "deadline_start",
    "PauseInstance": "deadline_stop",
    "ResumeInstance": "deadline_start",
    # It may have to stop and to start the machine, or to make another.
    "ResizeInstance": "deadline_launch",
    "DeprovisionInstance": "deadline_delete",
}
_SIZE = text(
    """
    SELECT t.vcpus, t.memory_mb, h.name AS host,
        greatest(t.vcpus - :vcpus, 0) AS more_vcpus, greatest(t.memory_mb - :memory_mb, 0) AS more_memory_mb,
        (t.vcpus <= :vcpus OR h.allocated_vcpus + t.vcpus - :vcpus <= h.cpus * :cpu)
        AND (t.memory_mb <= :memory_mb OR h.allocated_memory_mb + t.memory_mb - :memory_mb <= h.memory_mb * :memory)
        AS room
    FROM instance_types t LEFT JOIN hosts h ON h.id = :host_id
    WHERE t.name = :type AND t.retired_at IS NULL
    """
)
#: Labels, and entries of the metadata, that an instance may have.
MOST = 64


async def change(
    request: Request,
    caller: Caller,
    instance_id: UUID,
    kind: str,
    *,
    force: bool = False,
    resize: InstanceResize | None = None,
) -> Response:
    """Accept a workflow on an existing instance."""
    acceptance = Acceptance(request, caller)
    instance = await lock(caller, instance_id)
    asked = resize.model_dump(mode="json", exclude_unset=True) if resize else None
    if request.method == "POST" and (answered := await acceptance.answered_before(instance_id, asked)):
        return await acceptance.answer(show, answered)
    await check_unmanaged(caller, instance)
    verb = VERBS[kind]
    if verb.done is Status.DELETED:
        if instance.status == Status.DELETED:
            return answer(request, await show(caller, instance_id), headers={"ETag": etag(instance.version)})
        if instance.status == Status.DELETING and not (force and await unforced(caller, instance.workflow_id)):
            # The same request again names the version before it.
            check_if_match(request, instance.version, instance.version - 1)
            return await acceptance.answer(show, Answered(instance_id, instance.workflow_id))
    check_if_match(request, instance.version)
    if instance.status not in verb.allowed:
        raise InvalidState(
            f"instance {instance.name} is {instance.status}, not {' or '.join(sorted(verb.allowed))}",
            state=instance.status,
            **({} if instance.status in STABLE else {"workflow_id": str(instance.workflow_id)}),
        )
    if verb.done is Status.DELETED:
        await cancel_others(caller, acceptance, instance_id)
    order = order_of(request, caller, acceptance, kind, instance_id, instance.name)
    order = order.model_copy(update={"force": force})
    values: dict[str, Any] = {}
    size = None
    if resize is not None:
        size = await _check_size(request, caller, instance, resize)
        order = order.model_copy(update={"instance_type": resize.instance_type, "recreate": resize.recreate})
        caller.changed(
            "instance", instance_id, {"instance_type": instance.instance_type}, {"instance_type": resize.instance_type}
        )
        values = {"next_type": resize.instance_type, "next_vcpus": size.vcpus, "next_memory_mb": size.memory_mb}
    await caller.execute(
        update(Instance)
        .where(Instance.id == instance_id)
        .values(
            status=verb.during,
            workflow_id=order.workflow_id,
            version=Instance.version + 1,
            updated_at=func.now(),
            **values,
        )
    )
    data = {"name": instance.name, "from": instance.status, "to": verb.during}
    await acceptance.write(order, f"instance.{verb.during}", data, prior_status=instance.status)
    if size is not None and (size.more_vcpus or size.more_memory_mb):
        await reserve(caller, instances=0, vcpus=size.more_vcpus, memory_mb=size.more_memory_mb)
    return await acceptance.answer(show)


async def _check_size(request: Request, caller: Caller, instance: Row[Any], resize: InstanceResize) -> Row[Any]:
    """The new size, and whether the instance's host has room for it now: one read, that holds nothing."""
    capacity: Capacity = request.app.state.capacity
    asked = {
        "type": resize.instance_type,
        "host_id": instance.host_id,
        "vcpus": instance.vcpus,
        "memory_mb": instance.memory_mb,
        "cpu": capacity.overcommit_cpu,
        "memory": capacity.overcommit_memory,
    }
    size = (await caller.execute(_SIZE, asked)).one_or_none()
    if size is None:
        raise ValidationFailed(
            f"there is no instance type '{resize.instance_type}'",
            fields=[{"field": "instance_type", "message": "see GET /v1/instance-types"}],
        )
    if size.room is False:  # None: it is on no host, and its run says so
        raise NoCapacity(
            f"host '{size.host}' has no room for {size.more_vcpus:g} vCPU and {size.more_memory_mb} MiB more",
            instance_type=resize.instance_type,
            host=size.host,
        )
    return size


async def patch(request: Request, caller: Caller, instance_id: UUID, body: InstancePatch) -> Response:
    """Change what only the row holds. What changes nothing leaves the version as it is, and is no event."""
    instance = await lock(caller, instance_id)
    await check_unmanaged(caller, instance)
    check_if_match(request, instance.version)
    if instance.status == Status.DELETED:
        raise InvalidState(f"instance {instance.name} is deleted", state=instance.status)
    if instance.status == Status.DELETING and body.model_fields_set & {"ttl_seconds", "idle_stop_seconds"}:
        raise InvalidState(
            f"instance {instance.name} is being deleted: it has no longer to live",
            state=instance.status,
            workflow_id=str(instance.workflow_id),
        )
    changed: dict[str, Any] = {}
    for field in sorted(body.model_fields_set):
        asked = getattr(body, field)
        if field in ("labels", "metadata"):
            asked = _merged(field, getattr(instance, field), asked)
        elif field == "tags":
            asked = asked or []
        elif asked is None and getattr(instance, field) is None:
            continue
        elif field == "ttl_seconds":
            changed |= await lifetimes.ttl(caller, asked)
            continue
        elif field == "idle_stop_seconds":
            changed |= lifetimes.idle_stop(asked)
            continue
        if asked != getattr(instance, field):
            changed[field] = asked
    if changed:
        row = Instance.__table__
        values = {row.c[field]: value for field, value in changed.items()}
        values |= {row.c.version: row.c.version + 1, row.c.updated_at: func.now()}
        try:
            await caller.execute(update(Instance).where(Instance.id == instance_id).values(values))
        except IntegrityError as error:
            raise await name_taken(caller, error, changed["name"]) from error
        data = {"name": changed.get("name", instance.name), "changed": sorted(body.model_fields_set & changed.keys())}
        if "name" in changed:
            data["from"] = instance.name
        told = {"name": instance.name} | body.model_dump(include=changed.keys() & body.model_fields_set, mode="json")
        caller.changed("instance", instance_id, {name: getattr(instance, name) for name in told}, told)
        await caller.execute(
            insert(Event).values(
                project_id=caller.project_id,
                type="instance.updated",
                resource_type="instance",
                resource_id=instance_id,
                data=data,
            )
        )
    data = await show(caller, instance_id)
    await caller.commit()
    request.app.state.bells.ring("")
    return answer(request, data, headers={"ETag": etag(data["version"])})


def _merged(field: str, before: dict[str, Any], asked: dict[str, Any] | None) -> dict[str, Any]:
    """RFC 7396: what is named is set, or with null removed, and everything else stays; null for all removes all."""
    if asked is None:
        return {}
    merged = {name: value for name, value in (before | asked).items() if value is not None}
    if len(merged) > MOST:
        message = f"{len(merged)} together with those that are there; at most {MOST}"
        raise ValidationFailed(f"{field}: {message}", fields=[{"field": field, "message": message}])
    return merged


async def name_taken(caller: Caller, error: IntegrityError, name: str) -> Exception:
    """What an INSERT or UPDATE of an instance was refused for. The transaction, which has failed, is over then."""
    if violated(error) != "uq_instances_live_name":
        return error
    await caller.connection.rollback()
    await caller.connection.close()
    holder = select(Instance.status).where(
        Instance.project_id == caller.project_id, Instance.name == name, Instance.status != Status.DELETED
    )
    async with caller.again() as connection:
        state = (await connection.execute(holder)).scalar_one_or_none()
    if state == Status.ERROR:
        said = f"there is an instance named '{name}' already, which is in error: delete it, and the name is free"
        return NameTaken(said, name=name, state=state)
    return NameTaken(f"there is an instance named '{name}' already", name=name)


async def unforced(caller: Caller, workflow_id: UUID) -> bool:
    """Whether the delete under way is one that waits for its engine: a forced one may take its place."""
    order = select(Workflow.order).where(Workflow.project_id == caller.project_id, Workflow.id == workflow_id)
    return not Order.model_validate((await caller.execute(order)).scalar_one()).force


async def cancel_others(caller: Caller, acceptance: Acceptance, instance_id: UUID) -> None:
    """Ask every unfinished workflow of the resource to end. One that has not started ends here."""
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


def order_of(
    request: Request, caller: Caller, acceptance: Acceptance, kind: str, instance_id: UUID, name: str
) -> Order:
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
