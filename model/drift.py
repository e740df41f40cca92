"""Drift: how a machine differs from what it should be. Pure rules."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any, Literal

from model.base import Frozen
from model.instances import OwnedMachine, Port, Status

Kind = Literal["missing", "stopped", "running", "paused", "changed"]
#: Of what should run: nothing of it answers, and what it had may be another's by now.
DEAD: frozenset[Kind] = frozenset({"missing", "stopped"})
#: Healing is tried again after 10 s, then twice as long each time, at most every ten minutes.
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0


class Drift(Frozen):
    """What was found, and how often it was tried to mend."""

    kind: Kind
    #: Of ``changed``: field → {"expected": …, "actual": …}.
    changes: dict[str, dict[str, Any]] = {}
    detected_at: dt.datetime
    heals: int = 0
    heal_after: dt.datetime | None = None

    def same_as(self, other: Drift) -> bool:
        return (self.kind, self.changes) == (other.kind, other.changes)

    def tried(self, now: dt.datetime) -> Drift:
        """After one more attempt to mend it."""
        pause = min(FIRST_PAUSE * 2**self.heals, LONGEST_PAUSE)
        return self.model_copy(update={"heals": self.heals + 1, "heal_after": now + dt.timedelta(seconds=pause)})


def compare(
    machine: OwnedMachine | None,
    *,
    status: Status,
    images: Collection[str],
    vcpus: float,
    memory_mb: int,
    ports: list[Port],
    now: dt.datetime,
) -> Drift | None:
    """How the machine differs from one that is ``status``; None: not at all. What a driver cannot tell counts as
    equal.

    ``images``: the names by which an engine may know its image, first the one that it is told now.
    """
    if machine is None:
        return Drift(kind="missing", detected_at=now)
    state: Literal["running", "paused", "stopped"] = (
        "running" if machine.running else "paused" if machine.paused else "stopped"
    )
    if state != status:
        return Drift(kind=state, detected_at=now)
    changes: dict[str, dict[str, Any]] = {}
    if machine.image is not None and machine.image not in images:
        changes["image"] = {"expected": next(iter(images)), "actual": machine.image}
    for field, expected, actual in (
        ("vcpus", vcpus, machine.vcpus),
        ("memory_mb", memory_mb, machine.memory_mb),
    ):
        if actual is not None and actual != expected:
            changes[field] = {"expected": expected, "actual": actual}
    if machine.ports is not None and _sorted(machine.ports) != _sorted(ports):
        changes["ports"] = {"expected": _sorted(ports), "actual": _sorted(machine.ports)}
    return Drift(kind="changed", changes=changes, detected_at=now) if changes else None


def _sorted(ports: list[Port]) -> list[list[Any]]:
    return sorted([port.host_port or 0, port.container_port, port.protocol] for port in ports)
