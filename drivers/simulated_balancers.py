"""Proxies of balancers on the simulated engine: the machine keeps what it was told, and does nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drivers import faults
from drivers.machines import Check
from drivers.ownership import BALANCER, Owner, machine_name
from drivers.simulated import SimulatedEngine
from model.balancers import AppliedSpec, BalancerReading, BalancerSpec, DrainRequest, ServerReading
from model.errors import InstanceExited, NotFound


class SimulatedBalancers:
    """The balancer port on one host of the simulated engine, for one owner."""

    name = "simulated"

    def __init__(self, url: str, *, installation: UUID, host_id: UUID, host_name: str) -> None:
        self._engine = SimulatedEngine(f"{url}/hosts/{host_name}")
        self._owner = Owner(installation=installation, host_id=host_id)

    def apply(self, spec: BalancerSpec, cancelled: Check) -> AppliedSpec:
        found = self._running(spec.machine.id)
        there = int(found.get("proxy", {}).get("revision", 0))
        if there < spec.revision:
            told = {"revision": spec.revision, "text": spec.text, "weights": spec.weights}
            self._engine.request("PUT", f"machines/{found['id']}", {"proxy": told})
            faults.reached("after_effect")
        return AppliedSpec(engine_id=found["id"], revision=max(there, spec.revision))

    def drained(self, request: DrainRequest) -> bool:
        """As its field ``sessions`` says; without one, nobody is connected."""
        return not self._running(request.machine.id).get("sessions", 0)

    def read(self) -> list[BalancerReading]:
        readings = []
        none = dict.fromkeys(("sessions", "requests", "bytes_in", "bytes_out", "errors"), 0)
        for found in self._engine.call("GET", "machines") or []:
            owned = self._owner.owned_of(found["name"], found["labels"])
            if owned is None or found["state"] != "running" or BALANCER not in found["labels"]:
                continue
            weights: dict[str, int] = found.get("proxy", {}).get("weights", {})
            servers = [
                ServerReading(name=name, health="up" if weight else "draining", check=None, **none)
                for name, weight in weights.items()
            ]
            who = {"id": owned[0], "generation": owned[1], "project_id": owned[2]}
            readings.append(BalancerReading(**who, pid=1, servers=servers, **none))
        return readings

    def _running(self, machine: UUID) -> dict[str, Any]:
        name = machine_name(machine)
        found: dict[str, Any] | None = self._engine.call("GET", f"machines/{name}")
        if found is None or self._owner.owned(name, found["labels"]) is None:
            raise NotFound(f"{name} is not on the engine")
        if found["state"] != "running":
            raise InstanceExited("the machine of the load balancer does not run")
        return found
