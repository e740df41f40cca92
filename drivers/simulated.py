"""Machines on the simulated engine: a separate process with its own durable state (cairn-simulator)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson
import urllib3

from drivers import faults
from drivers.machines import Cancelled, Check, Secrets
from drivers.ownership import FENCED, HEALTH, PREFIX, Owner, machine_name, told
from model.errors import (
    EngineRefused,
    EngineUnavailable,
    InstanceExited,
    NeedsRecreate,
    NeedsStop,
    NotFound,
    PortTaken,
)
from model.health import Checked, HealthCheck, Look
from model.instances import MachineSpec, MachineState, OwnedMachine, Port
from model.restores import FoundMachine
from model.samples import Reading

CALL_SECONDS = 9
POLL_SECONDS = 0.05
NOT_FOUND, CONFLICT, LEAST_ERROR, SERVER_ERROR = 404, 409, 400, 500


class SimulatedEngine:
    """One host of the simulated engine, over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url
        # urllib3 itself: a call costs a third of what it costs through a larger client.
        self._http = urllib3.PoolManager(maxsize=64, retries=False, timeout=CALL_SECONDS)

    def call(self, method: str, path: str) -> Any:
        """The answer; None where it is not there."""
        status, answer = self.request(method, path, None)
        if status == NOT_FOUND:
            return None
        if status >= LEAST_ERROR:
            raise _error(status, answer)
        return answer

    def request(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        try:
            response = self._http.request(
                method, f"{self._url}/{path}", body=None if body is None else orjson.dumps(body)
            )
        except urllib3.exceptions.HTTPError as error:
            raise EngineUnavailable(f"the simulated engine does not answer: {error}") from error
        return response.status, orjson.loads(response.data or b"null")


class SimulatedMachines:
    """The machine port on one host of the simulated engine, for one owner."""

    name = "simulated"

    def __init__(self, url: str, *, installation: UUID, host_id: UUID, host_name: str) -> None:
        self._engine = SimulatedEngine(f"{url}/hosts/{host_name}")
        self._owner = Owner(installation=installation, host_id=host_id)

    def create(
        self,
        spec: MachineSpec,
        user_data: Callable[[], bytes] | None = None,
        secrets: Callable[[], Secrets] | None = None,
    ) -> str:
        # Nothing runs in these machines, so nothing becomes of user data and keys. Of secrets it is looked at whether
        # they came.
        if spec.secrets:
            self.give(spec, secrets() if secrets is not None else {})
        wanted = {
            "labels": self._owner.labels(spec),
            "image": spec.image,
            "vcpus": spec.vcpus,
            "memory_mb": spec.memory_mb,
            "ports": [[port.host_port, port.protocol] for port in spec.ports],
        }
        path = f"machines/{machine_name(spec.id)}"
        for _ in range(3):
            status, answer = self._engine.request("POST", path, wanted)
            if status < LEAST_ERROR:
                faults.reached("after_effect")
                return str(answer["id"])
            if status != CONFLICT:
                raise _error(status, answer)
            found = self._engine.call("GET", path)
            if found is None:
                continue
            if self._owner.check_adoptable(spec, found["labels"]):
                return str(found["id"])
            self._engine.call("DELETE", f"machines/{found['id']}")
        raise EngineUnavailable(f"{machine_name(spec.id)} keeps changing under our hands")

    def give(self, spec: MachineSpec, secrets: Secrets) -> None:
        if missing := spec.secrets.keys() - secrets.keys():
            raise EngineUnavailable(f"the values of its secrets are missing: {', '.join(sorted(missing))}")

    def start(self, machine: UUID, cancelled: Check) -> MachineState:
        found = self._own(machine)
        if found is None:
            raise NotFound(f"{machine_name(machine)} is not on the engine")
        if found["state"] != "running":
            status, answer = self._engine.request("POST", f"machines/{found['id']}/start", None)
            if status == CONFLICT:
                port = answer.get("port")
                raise PortTaken(f"host port {port} is taken by something else on the host", port=port)
            if status >= LEAST_ERROR:
                raise _error(status, answer)
            faults.reached("after_effect")
            found = answer
        return self._ready(found, cancelled)

    def ready(self, machine: UUID, cancelled: Check) -> MachineState:
        found = self._own(machine)
        if found is None:
            raise NotFound(f"{machine_name(machine)} is not on the engine")
        return self._ready(found, cancelled)

    def _ready(self, found: dict[str, Any], cancelled: Check) -> MachineState:
        while found["state"] == "starting":
            if cancelled():
                raise Cancelled
            time.sleep(POLL_SECONDS)
            found = self._engine.call("GET", f"machines/{found['id']}") or {"state": "gone"}
        if found["state"] != "running":
            raise InstanceExited(f"the machine is {found['state']}, before it was ready")
        return MachineState(engine_id=found["id"], private_ip=found["ip"])

    def adjust(self, spec: MachineSpec) -> None:
        found = self._own(spec.id)
        if found is None:
            raise NotFound(f"{machine_name(spec.id)} is not on the engine")
        if (found["vcpus"], found["memory_mb"]) != (spec.vcpus, spec.memory_mb):
            size = {"vcpus": spec.vcpus, "memory_mb": spec.memory_mb}
            status, answer = self._engine.request("POST", f"machines/{found['id']}/resize", size)
            if status == CONFLICT:
                kind = NeedsStop if answer["needs"] == "stop" else NeedsRecreate
                raise kind(f"the simulated engine says that it needs a {answer['needs']}")
            if status >= LEAST_ERROR:
                raise _error(status, answer)
            faults.reached("after_effect")

    def pause(self, machine: UUID) -> None:
        self._hold(machine, "pause", "paused")

    def resume(self, machine: UUID) -> None:
        self._hold(machine, "resume", "running")

    def _hold(self, machine: UUID, verb: str, wanted: str) -> None:
        found = self._own(machine)
        if found is None:
            raise NotFound(f"{machine_name(machine)} is not on the engine")
        if found["state"] not in ("running", "paused"):
            raise InstanceExited(f"the machine is {found['state']}: there is nothing to {verb}")
        if found["state"] != wanted:
            self._engine.call("POST", f"machines/{found['id']}/{verb}")
            faults.reached("after_effect")

    def stop(self, machine: UUID, grace_seconds: float, cancelled: Check) -> None:
        found = self._own(machine)
        if found is not None and found["state"] != "stopped":
            self._engine.call("POST", f"machines/{found['id']}/stop")
            faults.reached("after_effect")

    def delete(self, machine: UUID, generation: int | None = None) -> None:
        found = self._own(machine)
        if found is None or (generation is not None and int(found["labels"][f"{PREFIX}.generation"]) > generation):
            return
        self._engine.call("DELETE", f"machines/{found['id']}")
        faults.reached("after_effect")

    def inventory(self) -> list[OwnedMachine]:
        machines = []
        for found in self._engine.call("GET", "machines") or []:
            ours = self._owner.owned(found["name"], found["labels"])
            if ours is not None:
                machines.append(
                    OwnedMachine(
                        engine_id=found["id"],
                        id=ours[0],
                        generation=ours[1],
                        running=found["state"] == "running",
                        image=found["image"],
                        vcpus=found["vcpus"],
                        memory_mb=found["memory_mb"],
                        fenced=FENCED in found["labels"],
                        paused=found["state"] == "paused",
                    )
                )
        return machines

    def survey(self, machine: UUID | None = None) -> list[FoundMachine]:
        surveyed = []
        for found in self._engine.call("GET", "machines") or []:
            ours = self._owner.owned(found["name"], found["labels"])
            if ours is None or machine not in (None, ours[0]):
                continue
            surveyed.append(
                FoundMachine(
                    engine_id=found["id"],
                    id=ours[0],
                    generation=ours[1],
                    running=found["state"] == "running",
                    image=found["image"],
                    vcpus=found["vcpus"],
                    memory_mb=found["memory_mb"],
                    paused=found["state"] == "paused",
                    private_ip=found["ip"],
                    # It keeps of a port where it is on the host.
                    ports=[Port(host_port=number, container_port=number, protocol=p) for number, p in found["ports"]],
                    **told(found["labels"]),
                )
            )
        return surveyed

    def sample(self) -> list[Reading]:
        readings = []
        for found in self._engine.call("GET", "usage") or []:
            ours = self._owner.owned_of(found["name"], found["labels"])
            if ours is not None:
                id, generation, project_id = ours
                usage = {name: value for name, value in found.items() if name not in ("name", "labels")}
                readings.append(Reading(id=id, generation=generation, project_id=project_id, **usage))
        return readings

    def checked(self) -> list[Checked]:
        machines = []
        for found in self._engine.call("GET", "machines") or []:
            owned = self._owner.owned_of(found["name"], found["labels"])
            if owned is not None and found["state"] == "running" and HEALTH in found["labels"]:
                id, generation, project_id = owned
                check = HealthCheck.model_validate_json(found["labels"][HEALTH])
                who = {"engine_id": found["id"], "id": id, "project_id": project_id, "generation": generation}
                machines.append(Checked(**who, check=check))
        return machines

    def look(self, machine: Checked) -> Look:
        found = self._engine.call("GET", f"machines/{machine.engine_id}/health") or {}
        if found.get("healthy"):
            return Look()
        return Look(failure="it was set to be unhealthy", started_at=found.get("started_at"))

    def _own(self, machine: UUID) -> dict[str, Any] | None:
        """What has the machine's name and our labels."""
        found = self._engine.call("GET", f"machines/{machine_name(machine)}")
        ours = self._owner.owned(machine_name(machine), found["labels"]) if found else None
        return found if ours is not None else None


def _error(status: int, answer: Any) -> Exception:
    kind = EngineUnavailable if status >= SERVER_ERROR else EngineRefused
    return kind(f"the simulated engine answered {status}: {answer}")
