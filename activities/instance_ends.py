"""How runs on instances end: the state, the size, the placement and the quota that they leave behind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from activities import lifetimes, secrets, sizes
from activities.caches import note_cached
from activities.database import at_last
from activities.placement import release, release_next
from activities.runs import RunEnded, end, record
from model.errors import HostIsBack, NoCapacity
from model.instances import STABLE, VERBS, Instance, Ready, Status
from model.projects import ProjectQuota
from model.workflows import Failure, Order, Outcome, Step, Workflow


def settle_instance(
    session: Session,
    order: Order,
    outcome: Outcome,
    failure: Failure | None,
    steps: list[Step] | None,
    facts: Ready | None = None,
    *,
    undone: bool = True,
) -> None:
    """End a run, with its instance's state, quota, placement and events. Once: a row that ended is left alone.

    ``undone`` False: a change was brought to an end instead of being taken back.
    """
    instance = lock(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    status = _leads_to(row, outcome, undone=undone)
    launch = order.kind == "ProvisionInstance"
    release_next(session, instance)  # what a move held, whose run was ended from outside
    gone = (launch and outcome != "completed") or status is Status.DELETED
    if gone:
        release(session, instance)
    events = _settle_size(session, instance, order, outcome)
    if gone:
        count(session, instance, "none")
    secrets.keep(session, instance, [] if gone else [instance.generation])
    # A delete that came meanwhile owns the instance now, and decides about its state.
    if instance.workflow_id == order.workflow_id:
        if facts is not None:
            instance.container_id, instance.private_ip = facts.engine_id, facts.private_ip
            # Once it is known it stays: what the instance is made of changes with nobody's tag.
            instance.image_digest = instance.image_digest or facts.image_digest
            note_cached(session, instance)
        if launch and status is Status.RUNNING:
            count(session, instance, "used")
        lifetimes.settled(instance, order, status, outcome, started=facts is not None)
        if status in (Status.ERROR, Status.DELETED, Status.STOPPED):
            instance.private_ip = None
        if launch and status is Status.ERROR:
            instance.container_id = None
        # Where a drain found it no room it is as well as before: the drain says what it could not move.
        past = [HostIsBack.code, *([NoCapacity.code] if order.kind == "MoveInstance" and row.parent_id else [])]
        instance.error = failure.model_dump() if failure and failure.code not in past else None
        if order.kind != "HealInstance":  # that is looked at again, and counted
            instance.drift = None
        if status is Status.DELETED:
            instance.deleted_at = func.now()
            secrets.forget(session, instance)
        events.append(move(instance, status))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _leads_to(row: Workflow, outcome: Outcome, *, undone: bool) -> Status:
    """The state that the end of a run leaves its instance in."""
    verb = VERBS[row.kind]
    prior = Status(row.prior_status or Status.ERROR)
    if outcome == "completed":
        moved = row.kind == "MoveInstance" and prior is Status.PAUSED
        return verb.done or (Status.STOPPED if moved else prior)
    interrupted = outcome == "failed" or prior not in STABLE
    if row.kind == "ProvisionInstance" or (verb.done is Status.DELETED and interrupted):
        return Status.ERROR
    return prior if undone else verb.stranded or prior


def _settle_size(session: Session, instance: Instance, order: Order, outcome: Outcome) -> list[tuple[str, Any]]:
    """Take the size that a resize made, or give up what it held; of a delete, what one held that had not begun."""
    if order.kind == "ResizeInstance" and outcome == "completed":
        before = sizes.take(session, instance)
        return [resized(instance, before)] if before is not None else []
    if order.kind == "ResizeInstance" or instance.workflow_id == order.workflow_id:
        sizes.give_up(session, instance)
    return []


def lock(session: Session, order: Order) -> Instance:
    """The row of the order's instance, which nobody else changes until the commit."""
    found = session.scalars(
        select(Instance)
        .where(Instance.project_id == order.project_id, Instance.id == order.resource_id)
        .with_for_update()
    ).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no instance {order.resource_id}")
    return found


def move(instance: Instance, status: Status, **data: Any) -> tuple[str, dict[str, Any]]:
    """Move the instance; the event that says so."""
    previous = instance.status
    instance.status = status
    instance.version += 1
    instance.updated_at = func.now()
    return f"instance.{status}", {"name": instance.name, "from": previous, "to": status, **data}


def resized(instance: Instance, before: str) -> tuple[str, dict[str, Any]]:
    """The event of an instance that has another size."""
    return "instance.resized", {"name": instance.name, "from": before, "to": instance.instance_type}


def count(session: Session, instance: Instance, where: str) -> None:
    """Move the instance to another column of its project's quota: none, reserved or used."""
    changes: dict[str, Any] = {}
    sizes = {"instances": 1, "vcpus": instance.vcpus, "memory_mb": instance.memory_mb}
    for what, size in sizes.items():
        for column, sign in ((instance.quota, -1), (where, 1)):
            if column != "none" and instance.quota != where:
                name = f"{what}_{column}"
                changes[name] = getattr(ProjectQuota, name) + sign * size
    if changes:
        mine = ProjectQuota.project_id == instance.project_id
        at_last(session, instance.project_id, update(ProjectQuota).where(mine).values(**changes))
        instance.quota = where
