"""The size that an instance is to get: held beside its own, then taken or given up. Once, whoever ends the run.

Accepting a resize writes the size into the instance's row (``next_…``) and reserves in the quota what it is more than
the present one. That row is the record of what is held: whoever empties it gives back, under the row's lock.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, true, update
from sqlalchemy.orm import Session

from activities.database import at_last
from activities.placement import Capacity
from model.errors import NoCapacity
from model.hosts import Host
from model.instances import Instance
from model.projects import ProjectQuota


def hold(session: Session, instance: Instance, capacity: Capacity) -> None:
    """Hold on its host what the instance is to get beyond its own size. Repeated, nothing happens.

    Raises NoCapacity. What does not grow needs no room, also on a host that has less than it gave.
    """
    if instance.next_held or instance.host_id is None:
        return
    vcpus, memory_mb = instance.growth
    instance.next_held = True
    if not vcpus and not memory_mb:
        return
    room: ColumnElement[bool] = true()
    if vcpus:
        room &= Host.allocated_vcpus + vcpus <= Host.cpus * capacity.overcommit_cpu
    if memory_mb:
        room &= Host.allocated_memory_mb + memory_mb <= Host.memory_mb * capacity.overcommit_memory
    held = session.execute(
        update(Host)
        .where(Host.id == instance.host_id, room)
        .values(allocated_vcpus=Host.allocated_vcpus + vcpus, allocated_memory_mb=Host.allocated_memory_mb + memory_mb)
        .returning(Host.id)
    ).one_or_none()
    if held is None:
        raise NoCapacity(
            f"its host has no room for {vcpus:g} vCPU and {memory_mb} MiB more", instance_type=instance.next_type
        )


def take(session: Session, instance: Instance) -> str | None:
    """The instance has the size that it was to get; the type that it had before. None: that was so already."""
    if instance.next_type is None or instance.next_vcpus is None or instance.next_memory_mb is None:
        return None
    before = instance.instance_type
    more = instance.next_vcpus - instance.vcpus, instance.next_memory_mb - instance.memory_mb
    growth = instance.growth
    held = growth if instance.next_held else (0, 0)
    _change(session, instance, (more[0] - held[0], more[1] - held[1]), more, growth)
    instance.instance_type, instance.vcpus, instance.memory_mb = (
        instance.next_type,
        instance.next_vcpus,
        instance.next_memory_mb,
    )
    _forget(instance)
    return before


def give_up(session: Session, instance: Instance) -> None:
    """It keeps its size; what was held for another is given back. One that is to get none: nothing happens."""
    if instance.next_type is not None:
        vcpus, memory_mb = instance.growth
        on_host = (-vcpus, -memory_mb) if instance.next_held else (0, 0)
        _change(session, instance, on_host, (0, 0), (vcpus, memory_mb))
        _forget(instance)


def _forget(instance: Instance) -> None:
    instance.next_type = instance.next_vcpus = instance.next_memory_mb = None
    instance.next_held = False


def _change(
    session: Session,
    instance: Instance,
    on_host: tuple[float, float],
    in_use: tuple[float, float],
    reserved: tuple[float, float],
) -> None:
    """Add to what its host holds, now; and, at last, to what its project uses. Take from what is reserved."""
    session.flush()
    if instance.host_id is not None and any(on_host):
        session.execute(
            update(Host)
            .where(Host.id == instance.host_id)
            .values(
                allocated_vcpus=Host.allocated_vcpus + on_host[0],
                allocated_memory_mb=Host.allocated_memory_mb + on_host[1],
            )
        )
    changes: dict[str, Any] = {}
    for what, used, less in zip(("vcpus", "memory_mb"), in_use, reserved, strict=True):
        for column, change in ((instance.quota, used), ("reserved", -less)):
            if column != "none" and change:
                name = f"{what}_{column}"
                changes[name] = changes.get(name, getattr(ProjectQuota, name)) + change
    if changes:
        mine = ProjectQuota.project_id == instance.project_id
        at_last(session, instance.project_id, update(ProjectQuota).where(mine).values(**changes))
