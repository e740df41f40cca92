"""Placing an instance on a host, and giving back what it holds there."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from model.base import Frozen
from model.errors import CairnError, NoCapacity, PortTaken
from model.hosts import Host, HostPort, HostState
from model.instances import Instance, Port

#: Ports looked at in one query.
WINDOW = 256


class Capacity(Frozen):
    """The settings that placement goes by."""

    port_range: tuple[int, int]
    overcommit_cpu: float
    overcommit_memory: float


def has_room(
    vcpus: ColumnElement[float] | float, memory_mb: ColumnElement[int] | int, capacity: Capacity
) -> ColumnElement[bool]:
    """SQL: the host has room for one more of this size."""
    return (Host.allocated_vcpus + vcpus <= Host.cpus * capacity.overcommit_cpu) & (
        Host.allocated_memory_mb + memory_mb <= Host.memory_mb * capacity.overcommit_memory
    )


def eligible(backend: str, wanted_host: str | None) -> ColumnElement[bool]:
    """SQL: the host may take instances of this backend (and is the one asked for)."""
    asked = Host.name == wanted_host if wanted_host else text("true")
    return (Host.backend == backend) & (Host.state == HostState.READY) & asked


def place(session: Session, instance: Instance, capacity: Capacity, avoid: Iterable[int]) -> Host:
    """Hold capacity and ports on the least loaded host that can take the instance.

    Spreads by free share. The instance's row is locked by the caller; a chosen host's row is locked
    here, until the commit: placements on one host happen one after the other. Raises NoCapacity, or
    PortTaken where only an explicit port is in the way.
    """
    share = Host.allocated_memory_mb / func.greatest(Host.memory_mb * capacity.overcommit_memory, 1)
    room = has_room(instance.vcpus, instance.memory_mb, capacity)
    candidates = session.scalars(
        select(Host.id).where(eligible(instance.backend, instance.wanted_host), room).order_by(share, Host.id)
    ).all()
    refusal: CairnError = NoCapacity(
        f"no {instance.backend} host has room for {instance.vcpus:g} vCPU and {instance.memory_mb} MiB",
        instance_type=instance.instance_type,
        host=instance.wanted_host,
    )
    for candidate in candidates:
        host = session.scalars(
            select(Host).where(Host.id == candidate, room).with_for_update().execution_options(populate_existing=True)
        ).one_or_none()
        if host is None:
            continue
        try:
            ports = _choose_ports(session, host, instance, capacity.port_range, set(avoid))
        except (PortTaken, NoCapacity) as error:
            refusal = error
            continue
        host.allocated_vcpus += instance.vcpus
        host.allocated_memory_mb += instance.memory_mb
        instance.host_id = host.id
        instance.generation += 1
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
    raise refusal


def release(session: Session, instance: Instance) -> None:
    """Give back capacity and ports. An instance that holds none: nothing happens."""
    if instance.host_id is None:
        return
    # A plain UPDATE takes the host's lock last and for as short as can be.
    session.execute(
        update(Host)
        .where(Host.id == instance.host_id)
        .values(
            allocated_vcpus=Host.allocated_vcpus - instance.vcpus,
            allocated_memory_mb=Host.allocated_memory_mb - instance.memory_mb,
        )
    )
    session.execute(delete(HostPort).where(HostPort.instance_id == instance.id))
    instance.host_id = None
    instance.ports = instance.wanted_ports


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
