"""Placing an instance on a host, and giving back what it holds there."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, insert, select, true, update
from sqlalchemy.orm import Session, aliased

from activities import no_room
from model import cache_volumes, pools
from model.base import Frozen
from model.errors import CairnError, NoCapacity, NotReady, PortTaken
from model.hosts import LEASE, Host, HostPort, HostState
from model.instances import Instance, Port
from model.networks import Network

#: Ports looked at in one query.
WINDOW = 256


class Capacity(Frozen):
    """The settings that placement goes by."""

    port_range: tuple[int, int]
    overcommit_cpu: float
    overcommit_memory: float
    #: Of a host that was never granted a lease: see ``Host.fence_after``.
    fence_after: float = 30


def has_room(
    vcpus: ColumnElement[float] | float, memory_mb: ColumnElement[int] | int, capacity: Capacity
) -> ColumnElement[bool]:
    """SQL: the host has room for one more of this size."""
    return (Host.allocated_vcpus + vcpus <= Host.cpus * capacity.overcommit_cpu) & (
        Host.allocated_memory_mb + memory_mb <= Host.memory_mb * capacity.overcommit_memory
    )


def eligible(instance: Instance, *, beside: bool) -> ColumnElement[bool]:
    """SQL: the host may take the instance: its engine, its state, its labels, what its agent can
    do, and its name where one is asked for.

    What has to leave its host (``beside``) goes to any other.
    """
    asked: ColumnElement[bool] = true()
    if beside:
        asked = Host.id != instance.host_id
    elif instance.wanted_host:
        asked = Host.name == instance.wanted_host
    return (
        (Host.backend == instance.backend)
        & (Host.state == HostState.READY)
        & Host.labels.contains(instance.wanted_labels)
        & Host.capabilities.contains(
            [
                *Network.model_validate(instance.network).needs,
                *([pools.CAPABILITY] if instance.warm else []),
                *([cache_volumes.CAPABILITY] if instance.caches else []),
            ]
        )
        & asked
    )


#: SQL: the host's lease holds.
leased = Host.last_seen_at > func.now() - LEASE


def place(
    session: Session,
    instance: Instance,
    capacity: Capacity,
    avoid_ports: Iterable[int] = (),
    *,
    beside: bool = False,
) -> Host:
    """Hold capacity and ports on the least loaded host that can take the instance, under a new generation.

    Spreads by free share; members of a group first by how many others of it are there. The instance's row is locked by
    the caller; a chosen host's row is locked here, until the commit: placements on one host happen one after the other.
    Raises NoCapacity, PortTaken where only an explicit port is in the way, or NotReady where all that could take it
    have lost their lease.
    ``beside``: on another host than its own, which it holds too, until ``switch``.
    """
    share = Host.allocated_memory_mb / func.greatest(Host.memory_mb * capacity.overcommit_memory, 1)
    room = has_room(instance.vcpus, instance.memory_mb, capacity)
    together = instance.group_id is not None
    found = session.execute(
        select(Host.id, Host.name, leased.label("leased"))
        .where(eligible(instance, beside=beside), room)
        .order_by(*([_fellows(instance)] if together else []), share, Host.id)
    ).all()
    refusal: CairnError | None = None
    silent = [row.name for row in found if not row.leased]
    if silent:
        refusal = NotReady(f"only hosts that have not been heard of lately have room: {', '.join(silent[:5])}")
    able = [row.id for row in found if row.leased]
    # First those that no other placement holds just now: so the placements of a burst spread, and wait less.
    for candidate, busy_too in [*((id, False) for id in able if len(able) > 1), *((id, True) for id in able)]:
        host = session.scalars(
            select(Host)
            .where(Host.id == candidate, Host.state == HostState.READY, room)
            .with_for_update(skip_locked=not busy_too)
            .execution_options(populate_existing=True)
        ).one_or_none()
        if host is None:
            continue
        try:
            ports = _choose_ports(session, host, instance, capacity.port_range, set(avoid_ports))
        except (PortTaken, NoCapacity) as error:
            refusal = error
            continue
        host.allocated_vcpus += instance.vcpus
        host.allocated_memory_mb += instance.memory_mb
        # An older version counts in the generation alone.
        instance.last_generation = max(instance.last_generation, instance.generation) + 1
        if beside:
            instance.next_host_id, instance.next_generation = host.id, instance.last_generation
            instance.next_ports = [port.model_dump() for port in ports]
        else:
            instance.host_id, instance.generation = host.id, instance.last_generation
            instance.ports = [port.model_dump() for port in ports]
        if ports:
            held = [
                {
                    "host_id": host.id,
                    "protocol": port.protocol,
                    "port": port.host_port,
                    "project_id": instance.project_id,
                    "instance_id": instance.id,
                }
                for port in ports
            ]
            session.execute(insert(HostPort), held)
        return host
    raise refusal or _no_capacity(session, instance, capacity, beside=beside)


def _no_capacity(session: Session, instance: Instance, capacity: Capacity, *, beside: bool) -> NoCapacity:
    asked = no_room.Asked(
        backend=instance.backend,
        vcpus=instance.vcpus,
        memory_mb=instance.memory_mb,
        labels=instance.wanted_labels,
        needs=Network.model_validate(instance.network).needs,
        host=instance.wanted_host,
        leaves=instance.host_id if beside else None,
    )
    hosts = session.execute(no_room.HOSTS).all()
    return NoCapacity(
        no_room.why(hosts, asked, capacity.overcommit_cpu, capacity.overcommit_memory),
        instance_type=instance.instance_type,
        host=instance.wanted_host,
    )


def _fellows(instance: Instance) -> ColumnElement[int]:
    """SQL: how many other members of its group a host has, or is about to have."""
    other = aliased(Instance)
    here = func.coalesce(other.next_host_id, other.host_id) == Host.id
    return (
        select(func.count())
        .where(other.group_id == instance.group_id, other.id != instance.id, here)
        .correlate(Host)
        .scalar_subquery()
    )


def room_beside(session: Session, instance: Instance, capacity: Capacity) -> bool:
    """Whether some host, other than its own, has room for the instance just now. Ports are not looked at."""
    room = has_room(instance.vcpus, instance.memory_mb, capacity)
    found = select(Host.id).where(eligible(instance, beside=True), leased, room).limit(1)
    return session.execute(found).first() is not None


def release(session: Session, instance: Instance) -> None:
    """Give back all capacity and ports. An instance that holds none: nothing happens."""
    release_next(session, instance)
    if instance.host_id is not None:
        _give_back(session, instance, instance.host_id, instance.growth if instance.next_held else (0, 0))
        instance.host_id = None
        instance.next_held = False
        instance.ports = instance.wanted_ports


def release_next(session: Session, instance: Instance) -> None:
    """Give back what it holds where it was moving to."""
    if instance.next_host_id is not None:
        if instance.next_host_id != instance.host_id:  # else: to be made anew where it is
            _give_back(session, instance, instance.next_host_id)
        instance.next_host_id = instance.next_generation = instance.next_ports = None


def switch(session: Session, instance: Instance) -> None:
    """It is where it was moving to; what it held before is given back."""
    if instance.next_host_id is None or instance.next_generation is None:
        raise RuntimeError(f"instance {instance.id} is not moving")
    if instance.host_id is not None and instance.host_id != instance.next_host_id:
        _give_back(session, instance, instance.host_id)
    instance.host_id, instance.generation = instance.next_host_id, instance.next_generation
    instance.ports = instance.next_ports or []
    instance.next_host_id = instance.next_generation = instance.next_ports = None


def anew(instance: Instance) -> None:
    """Where it is, under a new generation, until ``switch``: it holds nothing more. Repeated, nothing happens."""
    if instance.next_host_id is None:
        instance.last_generation = max(instance.last_generation, instance.generation) + 1
        instance.next_host_id, instance.next_generation = instance.host_id, instance.last_generation
        instance.next_ports = instance.ports


def _give_back(session: Session, instance: Instance, host_id: UUID, more: tuple[float, float] = (0, 0)) -> None:
    # A plain UPDATE takes the host's lock last and for as short as can be.
    session.execute(
        update(Host)
        .where(Host.id == host_id)
        .values(
            allocated_vcpus=Host.allocated_vcpus - instance.vcpus - more[0],
            allocated_memory_mb=Host.allocated_memory_mb - instance.memory_mb - more[1],
            # What the host still holds of it is to be looked at.
            reconciled=None,
        )
    )
    session.execute(delete(HostPort).where(HostPort.instance_id == instance.id, HostPort.host_id == host_id))


def _choose_ports(
    session: Session, host: Host, instance: Instance, port_range: tuple[int, int], avoid: set[int]
) -> list[Port]:
    wanted = [Port.model_validate(port) for port in instance.wanted_ports]
    chosen: list[Port] = []
    for port in (p for p in wanted if p.host_port is not None):
        holder = session.execute(
            select(HostPort.instance_id).where(
                HostPort.host_id == host.id, HostPort.protocol == port.protocol, HostPort.port == port.host_port
            )
        ).first()
        if holder is not None:
            raise PortTaken(f"port {port.host_port}/{port.protocol} of host {host.name} is taken", port=port.host_port)
        chosen.append(port)
    for port in (p for p in wanted if p.host_port is None):
        taken = {p.host_port for p in chosen if p.protocol == port.protocol and p.host_port} | avoid
        number = _next_free_port(session, host, port.protocol, port_range, taken)
        if number is None:
            raise NoCapacity(f"host {host.name} has no free port in {port_range[0]}-{port_range[1]}")
        host.next_port = number + 1
        chosen.append(port.model_copy(update={"host_port": number}))
    return chosen


def _next_free_port(
    session: Session, host: Host, protocol: str, port_range: tuple[int, int], taken: set[int]
) -> int | None:
    """The first port that nobody holds, from where the last search ended, once around the range.

    Looked for in windows: the whole range at once costs some 5 ms, a window a tenth of it.
    """
    low, high = port_range
    start = host.next_port if low <= host.next_port <= high else low
    for first, last in _windows(start, high) + _windows(low, start - 1):
        held = set(
            session.scalars(
                select(HostPort.port).where(
                    HostPort.host_id == host.id, HostPort.protocol == protocol, HostPort.port.between(first, last)
                )
            )
        )
        for number in range(first, last + 1):
            if number not in held and number not in taken:
                return number
    return None


def _windows(low: int, high: int) -> list[tuple[int, int]]:
    return [(first, min(first + WINDOW - 1, high)) for first in range(low, high + 1, WINDOW)]
