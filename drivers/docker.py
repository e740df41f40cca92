"""Containers on a Docker engine."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import docker
import docker.errors
import orjson
from docker import APIClient
from docker.types import LogConfig
from docker.utils import convert_filters

from drivers import docker_first, docker_health, docker_names, docker_usage, faults
from drivers.docker_details import Details
from drivers.docker_engine import CALL_SECONDS, CONFLICT, NOT_FOUND, DockerEngine, calling
from drivers.docker_facts import CPU_PERIOD, limits, refusal_of
from drivers.docker_streams import DockerStreams
from drivers.machines import Cancelled, Check
from drivers.ownership import FENCED, Owner, machine_name
from model.errors import (
    EngineUnavailable,
    ImageNotFound,
    InstanceExited,
    NeedsStop,
    NotFound,
)
from model.health import Checked, Look
from model.instances import MachineSpec, MachineState, OwnedMachine
from model.samples import Reading

#: Changing calls at once: more only wait inside the engine, past their time-out.
CHANGES = threading.BoundedSemaphore(8)
ROOM_SECONDS = 30
POLL_SECONDS = 0.05
PROVEN = 256
LOG_LINES = 10


class DockerMachines:
    """The machine port on one Docker engine, for one owner."""

    name = "docker"

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID, publish_address: str) -> None:
        self._owner = Owner(installation=installation, host_id=host_id)
        self._engine = DockerEngine(base_url, self._owner)
        self._inside = DockerStreams(base_url, installation=installation, host_id=host_id)
        self._publish_address = publish_address
        self._listening: APIClient | None = None
        # Containers that this process made: an engine's id is never given twice, so their
        # start needs no second proof of ownership. Small, and lost with the process, as it may be.
        self._proven: dict[UUID, str] = {}
        self._details = Details()
        self._asked_at = int(time.time())

    @property
    def _client(self) -> APIClient:
        return self._engine.client

    def create(self, spec: MachineSpec, user_data: bytes | None = None) -> str:
        with calling(), _changing():
            until = time.monotonic() + CALL_SECONDS
            while time.monotonic() < until:
                try:
                    made = self._create(spec)
                    faults.reached("after_effect")
                    docker_first.fill(self._client, made, spec, user_data)
                    self._remember(spec.id, made)
                    return made
                except docker.errors.ImageNotFound as error:
                    raise ImageNotFound(f"image {spec.image} is not on the engine", image=spec.image) from error
                except docker.errors.APIError as error:
                    if error.status_code != CONFLICT:
                        raise
                found = self._engine.find(spec.id)
                if found is None:
                    time.sleep(POLL_SECONDS)  # it went meanwhile, or another create has the name and is not done
                    continue
                if self._owner.check_adoptable(spec, found["Config"]["Labels"] or {}):
                    if docker_first.is_new(found):
                        docker_first.fill(self._client, found["Id"], spec, user_data)
                    return str(found["Id"])
                self._remove(found["Id"])
        raise EngineUnavailable(f"{machine_name(spec.id)} keeps changing under our hands")

    def _create(self, spec: MachineSpec) -> str:
        exposed = [(port.container_port, port.protocol) for port in spec.ports]
        bindings: dict[int | str, Any] = {
            f"{port.container_port}/{port.protocol}": [(self._publish_address, port.host_port)] for port in spec.ports
        }
        host_config = self._client.create_host_config(
            # Quota and period, not nano_cpus: these may exceed the host's CPUs, and be changed later.
            cpu_period=CPU_PERIOD,
            cpu_quota=int(spec.vcpus * CPU_PERIOD),
            mem_limit=f"{spec.memory_mb}m",
            memswap_limit=f"{spec.memory_mb}m",
            pids_limit=spec.pids,
            init=True,
            security_opt=["no-new-privileges"],
            port_bindings=bindings,
            log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
            restart_policy=docker_first.restart_policy(spec),
        )
        image = docker_names.find(self._client, spec.wanted_image)
        if image is None:
            raise ImageNotFound(f"image {spec.image} is not on the engine", image=spec.image)
        made = self._client.create_container(
            image["Id"],
            **docker_first.program(image, spec),
            name=machine_name(spec.id),
            hostname=re.sub(r"[^a-zA-Z0-9-]", "-", spec.name)[:63],
            environment=spec.env,
            labels=self._owner.labels(spec),
            ports=exposed,
            host_config=host_config,
        )
        return str(made["Id"])

    def start(self, machine: UUID, cancelled: Check) -> MachineState:
        with calling():
            engine_id = self._proven.pop(machine, None)
            if engine_id is None:
                found = self._engine.own(machine)
                if found is None:
                    raise NotFound(f"{machine_name(machine)} is not on the engine")
                engine_id = str(found["Id"])
                if found["State"]["Paused"]:
                    self._client.unpause(engine_id)
                if found["State"]["Running"]:
                    return self._ready(engine_id, cancelled)
            with _changing(cancelled):
                try:
                    self._client.start(engine_id)
                except docker.errors.NotFound as error:
                    raise NotFound(f"{machine_name(machine)} is not on the engine any more") from error
                except docker.errors.APIError as error:
                    if (refusal := refusal_of(error)) is not None:
                        raise refusal from error
                    raise
                faults.reached("after_effect")
            return self._ready(engine_id, cancelled)

    def ready(self, machine: UUID, cancelled: Check) -> MachineState:
        with calling():
            found = self._engine.own(machine)
            if found is None:
                raise NotFound(f"{machine_name(machine)} is not on the engine")
            return self._ready(str(found["Id"]), cancelled)

    def _ready(self, engine_id: str, cancelled: Check) -> MachineState:
        while True:
            try:
                found = self._client.inspect_container(engine_id)
            except docker.errors.NotFound as error:
                raise NotFound(f"container {engine_id[:12]} went before it was ready") from error
            state = found["State"]
            ran = docker_first.ran(self._client, found)
            if ran:
                raise InstanceExited(
                    f"user_data ended with exit code {ran}" + self._last_words(engine_id), exit_code=ran
                )
            health = (state.get("Health") or {}).get("Status", "none")
            if not state["Running"]:
                raise InstanceExited(
                    f"the instance's process ended with exit code {state['ExitCode']} before it was ready"
                    + self._last_words(engine_id),
                    exit_code=state["ExitCode"],
                )
            if ran is None or state["Restarting"]:
                health = "starting"
            if health in ("none", "healthy"):
                networks = found["NetworkSettings"]["Networks"].values()
                self._details.note(engine_id, found)
                addresses = [network["IPAddress"] for network in networks if network["IPAddress"]]
                return MachineState(engine_id=engine_id, private_ip=addresses[0] if addresses else None)
            if health == "unhealthy":
                raise InstanceExited("the instance's health check failed" + self._last_words(engine_id))
            _pause(cancelled)

    def _remember(self, machine: UUID, engine_id: str) -> None:
        while len(self._proven) >= PROVEN:
            self._proven.pop(next(iter(self._proven)), None)
        self._proven[machine] = engine_id

    def _last_words(self, engine_id: str) -> str:
        try:
            log = self._client.logs(engine_id, tail=LOG_LINES).decode(errors="replace").replace("\x00", "").strip()
        except docker.errors.APIError:
            return ""
        return f"; its last words: {log[-1000:]}" if log else ""

    def adjust(self, spec: MachineSpec) -> None:
        with calling(), _changing():
            found = self._engine.own(spec.id)
            if found is None:
                raise NotFound(f"{machine_name(spec.id)} is not on the engine")
            if limits(found) == (spec.vcpus, spec.memory_mb):
                return
            lives = bool(found["State"]["Running"])
            if lives and spec.memory_mb < limits(found)[1]:
                self._check_fits(found["Id"], spec)
            memory = f"{spec.memory_mb}m"
            self._client.update_container(
                found["Id"],
                cpu_period=CPU_PERIOD,
                cpu_quota=int(spec.vcpus * CPU_PERIOD),
                mem_limit=memory,
                memswap_limit=memory,
            )
            self._details.forget(found["Id"])
            faults.reached("after_effect")
            if lives and not self._is_running(found["Id"]):
                raise InstanceExited(
                    f"the instance's program ended as it got {spec.memory_mb} MiB" + self._last_words(found["Id"])
                )

    def _check_fits(self, engine_id: str, spec: MachineSpec) -> None:
        """One engine refuses less memory than is used, with a text for people; another ends the program."""
        for _, usage in docker_usage.read(self._client, [engine_id]):
            if usage["memory_bytes"] > spec.memory_mb << 20:
                raise NeedsStop(
                    f"the instance uses {usage['memory_bytes'] >> 20} MiB, and is to get {spec.memory_mb}: "
                    "that is possible only while it is stopped",
                    memory_mb=spec.memory_mb,
                )

    def pause(self, machine: UUID) -> None:
        with calling():
            found = self._living(machine)
            if not found["State"]["Paused"]:
                self._client.pause(found["Id"])
                faults.reached("after_effect")

    def resume(self, machine: UUID) -> None:
        with calling():
            found = self._living(machine)
            if found["State"]["Paused"]:
                self._client.unpause(found["Id"])
                faults.reached("after_effect")

    def _living(self, machine: UUID) -> dict[str, Any]:
        """A container whose processes are there, running or paused."""
        found = self._engine.own(machine)
        if found is None:
            raise NotFound(f"{machine_name(machine)} is not on the engine")
        if not found["State"]["Running"]:
            raise InstanceExited("the instance's process has ended", exit_code=found["State"]["ExitCode"])
        return found

    def stop(self, machine: UUID, grace_seconds: float, cancelled: Check) -> None:
        with calling():
            found = self._engine.own(machine)
            if found is None or not found["State"]["Running"]:
                return
            if found["State"]["Paused"]:
                self._client.unpause(found["Id"])
            # Not the engine's own stop: it blocks for the whole grace, deaf to a cancel.
            self._signal(found["Id"], found["Config"].get("StopSignal") or "SIGTERM")
            until = time.monotonic() + grace_seconds
            killed = False
            while self._is_running(found["Id"]):
                if not killed and time.monotonic() >= until:
                    self._signal(found["Id"], "SIGKILL")
                    killed = True
                _pause(cancelled)
            faults.reached("after_effect")

    def _is_running(self, engine_id: str) -> bool:
        try:
            return bool(self._client.inspect_container(engine_id)["State"]["Running"])
        except docker.errors.NotFound:  # a delete beside the stop
            return False

    def _signal(self, engine_id: str, signal: str) -> None:
        try:
            self._client.kill(engine_id, signal)
        except docker.errors.APIError as error:
            if error.status_code not in (NOT_FOUND, CONFLICT):  # it is not running any more
                raise

    def delete(self, machine: UUID, generation: int | None = None) -> None:
        with calling():
            found = self._engine.find(machine)
            ours = self._owner.owned(machine_name(machine), found["Config"]["Labels"] or {}) if found else None
            if found is None or ours is None:
                return
            if generation is not None and ours[1] > generation:
                return
            with _changing():
                self._remove(found["Id"])
                faults.reached("after_effect")

    def _remove(self, engine_id: str) -> None:
        """Remove by the engine's id, never by name: the name may belong to another by now."""
        try:
            self._client.remove_container(engine_id, v=True, force=True)
        except docker.errors.APIError as error:
            if error.status_code not in (NOT_FOUND, CONFLICT):  # conflict: somebody is removing it already
                raise
        until = time.monotonic() + CALL_SECONDS
        while time.monotonic() < until:
            try:
                self._client.inspect_container(engine_id)
            except docker.errors.NotFound:
                return
            time.sleep(POLL_SECONDS)
        raise EngineUnavailable(f"container {engine_id[:12]} is still there after its removal")

    def inventory(self) -> list[OwnedMachine]:
        with calling():
            self._forget_updated()
            seen: set[str] = set()
            machines = []
            for found in self._client.containers(all=True, filters={"label": self._owner.filters()}):
                ours = self._owner.owned(found["Names"][0].removeprefix("/"), found["Labels"] or {})
                if ours is None:
                    continue
                details = self._details.get(found["Id"])
                if details is None:
                    try:
                        inspected = self._client.inspect_container(found["Id"])
                    except docker.errors.NotFound:
                        continue
                    details = self._details.note(found["Id"], inspected)
                seen.add(found["Id"])
                machines.append(
                    OwnedMachine(
                        engine_id=found["Id"],
                        id=ours[0],
                        generation=ours[1],
                        running=found["State"] in ("running", "restarting"),
                        fenced=FENCED in found["Labels"],
                        paused=found["State"] == "paused",
                        **details,
                    )
                )
            self._details.keep(seen)
            return machines

    def _forget_updated(self) -> None:
        """Look anew at what the engine says was updated: a list of containers does not show their limits."""
        now = int(time.time())
        since, self._asked_at = self._asked_at, now
        filters: dict[str, Any] = {"type": "container", "event": "update", "label": self._owner.filters()}
        asked: dict[str, Any] = {"since": since - 1, "until": now, "filters": convert_filters(filters)}
        # Not the SDK's own call: it would wait for a silent engine for ever.
        url = f"{self._client.base_url}/v{self._client.api_version}/events"
        answer = self._client.get(url, params=asked, timeout=CALL_SECONDS)
        answer.raise_for_status()
        for line in answer.content.splitlines():
            self._details.forget(orjson.loads(line)["id"])

    def sample(self) -> list[Reading]:
        with calling():
            filters = {"label": self._owner.filters(), "status": "running"}
            ours = {}
            for found in self._client.containers(filters=filters):
                owned = self._owner.owned_of(found["Names"][0].removeprefix("/"), found["Labels"] or {})
                if owned is not None:
                    ours[str(found["Id"])] = owned
            if self._listening is None:
                # Of its own: many streams at once would put the connections of steps out of their pool.
                self._listening = APIClient(
                    self._engine.base_url, version=self._client.api_version, max_pool_size=docker_usage.AT_ONCE
                )
            return [
                Reading(engine_id=engine_id, id=id, generation=generation, project_id=project_id, **usage)
                for engine_id, usage in docker_usage.read(self._listening, list(ours))
                for id, generation, project_id in [ours[engine_id]]
            ]

    def checked(self) -> list[Checked]:
        return docker_health.checked(self._engine)

    def look(self, machine: Checked) -> Look:
        return docker_health.look(self._engine, self._inside, machine)


def _pause(cancelled: Check) -> None:
    if cancelled():
        raise Cancelled
    time.sleep(POLL_SECONDS)


@contextmanager
def _changing(cancelled: Check = lambda: False) -> Iterator[None]:
    """Take part in the changing calls; gives up where others, of an engine that hangs, make no room."""
    until = time.monotonic() + ROOM_SECONDS
    while not CHANGES.acquire(timeout=POLL_SECONDS):
        if cancelled():
            raise Cancelled
        if time.monotonic() > until:
            raise EngineUnavailable("the engine is busy with earlier calls")
    try:
        yield
    finally:
        CHANGES.release()
