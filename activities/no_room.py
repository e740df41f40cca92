"""Why no host takes an instance, in words: what was asked of it, and what the hosts that there are lack of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import select

from model.hosts import Host, HostState

#: Hosts, or labels, that are named.
NAMED = 3
#: All that is said goes by this.
HOSTS = select(
    Host.id,
    Host.name,
    Host.backend,
    Host.state,
    Host.labels,
    Host.capabilities,
    Host.cpus,
    Host.memory_mb,
    Host.allocated_vcpus,
    Host.allocated_memory_mb,
).order_by(Host.name)


class Asked(NamedTuple):
    """What a host must have and be. ``leaves``: the host that it must not be."""

    backend: str
    vcpus: float
    memory_mb: int
    labels: Mapping[str, str]
    #: What its agent has to be capable of.
    needs: Sequence[str] = ()
    host: str | None = None
    leaves: UUID | None = None


def why(hosts: Sequence[Any], asked: Asked, overcommit_cpu: float, overcommit_memory: float) -> str:
    """The first thing that none of the hosts has; ``hosts`` are rows of HOSTS."""
    if asked.host is not None and asked.leaves is None:
        named = next((host for host in hosts if host.name == asked.host), None)
        if named is None:
            return f"there is no host named '{asked.host}': see GET /v1/hosts"
        lacks = _lacks_itself(named, asked) or f"has no {_room([named], asked, overcommit_cpu, overcommit_memory)}"
        return f"host '{asked.host}' {lacks}"
    other = "other " if asked.leaves is not None else ""
    hosts = [host for host in hosts if host.backend == asked.backend and host.id != asked.leaves]
    if not hosts:
        return f"there is no {other}host with the engine {asked.backend}"
    what = f"no {other}{asked.backend} host"
    if missing := _missing(hosts, asked.labels):
        return f"{what} has {missing}"
    hosts = [host for host in hosts if asked.labels.items() <= host.labels.items()]
    what += f" with {_labels(asked.labels)}" if asked.labels else ""
    ready = [host for host in hosts if host.state == HostState.READY]
    if not ready:
        return f"{what} takes placements: {_some([f'{host.name} is {host.state}' for host in hosts])}"
    able = [host for host in ready if set(asked.needs) <= set(host.capabilities)]
    lacking = _room(able, asked, overcommit_cpu, overcommit_memory) if able else _agent(asked)
    return f"{what} that takes placements has {lacking}"


def _lacks_itself(host: Any, asked: Asked) -> str:
    """Of the one that was named, apart from room."""
    if host.backend != asked.backend:
        return f"has the engine {host.backend}, not {asked.backend}"
    if missing := _missing([host], asked.labels):
        return f"does not have {missing}"
    if not set(asked.needs) <= set(host.capabilities):
        return f"does not have {_agent(asked)}"
    return "" if host.state == HostState.READY else f"is {host.state}: it takes no placements"


def _agent(asked: Asked) -> str:
    return f"an agent that can do {_some(asked.needs)} ('cairn host show' and docs/hosts.md say what it takes)"


def _missing(hosts: Sequence[Any], labels: Mapping[str, str]) -> str:
    """Those of the labels that no host has; all, where each has some; nothing where one has all."""
    if any(labels.items() <= host.labels.items() for host in hosts):
        return ""
    nowhere = {k: v for k, v in labels.items() if not any(host.labels.get(k) == v for host in hosts)}
    return _labels(nowhere or labels)


def _labels(labels: Mapping[str, str]) -> str:
    return f"the label{'s' if len(labels) > 1 else ''} {_some([f'{k}={v}' for k, v in sorted(labels.items())])}"


def _room(hosts: Sequence[Any], asked: Asked, overcommit_cpu: float, overcommit_memory: float) -> str:
    """How much is asked for, and how much is left of what the roomiest have."""
    left = [
        (
            max(host.cpus * overcommit_cpu - host.allocated_vcpus, 0),
            max(int(host.memory_mb * overcommit_memory) - host.allocated_memory_mb, 0),
            host.name,
        )
        for host in hosts
    ]
    left.sort(key=lambda of: (-min(of[0], asked.vcpus), -min(of[1], asked.memory_mb), of[2]))
    shown = _some([f"{name} has {vcpus:g} vCPU and {memory_mb} MiB left" for vcpus, memory_mb, name in left])
    return f"room for {asked.vcpus:g} vCPU and {asked.memory_mb} MiB: {shown}"


def _some(words: Sequence[str]) -> str:
    more = len(words) - NAMED
    return ", ".join([*words[:NAMED], *([f"{more} more"] if more > 0 else [])])
