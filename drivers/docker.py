"""Containers on a Docker engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import docker.errors
from docker import APIClient

from drivers import (
    docker_creation,
    docker_ends,
    docker_first,
    docker_health,
    docker_readiness,
    docker_survey,
    docker_usage,
    faults,
)
from drivers.cache_trees import CacheTrees
from drivers.docker_engine import CALL_SECONDS, CONFLICT, POLL_SECONDS, DockerEngine, calling, changing
from drivers.docker_facts import limits, refusal_of
from drivers.docker_inventory import DockerInventory
from drivers.docker_streams import DockerStreams
from drivers.egress import Egress
from drivers.machines import Check, Secrets
from drivers.ownership import NETWORK, Owner, machine_name
from drivers.secret_files import SecretFiles, default_folder
from drivers.session_trees import SessionTrees
from drivers.warm_trees import WarmTrees
from model.errors import EngineUnavailable, ImageNotFound, InstanceExited, NeedsStop, NotFound
from model.health import Checked, Look
from model.instances import MachineSpec, MachineState, OwnedMachine
from model.restores import FoundMachine
from model.samples import Reading

PROVEN = 256


class DockerMachines:
    """The machine port on one Docker engine, for one owner."""

    name = "docker"

    def __init__(
        self,
        base_url: str,
        *,
        installation: UUID,
        host_id: UUID,
        publish_address: str,
        secrets_dir: Path | None = None,
        trees: SessionTrees | None = None,
        warm: WarmTrees | None = None,
        caches: CacheTrees | None = None,
        egress: Egress | None = None,
    ) -> None:
        """``secrets_dir``: a folder in memory, of this process's user. ``trees``: where the files of sessions are;
        ``warm``: where they come in later; ``caches``: what they share. ``egress``: what serves their proxies."""
        self._owner = Owner(installation=installation, host_id=host_id)
        self._engine = DockerEngine(base_url, self._owner)
        self._inside = DockerStreams(base_url, installation=installation, host_id=host_id)
        self._inventory = DockerInventory(self._engine)
        self._files = SecretFiles(secrets_dir or default_folder(), host_id)
        self._publish_address = publish_address
        self._trees = trees
        self._warm = warm
        self._caches = caches
        self._egress = egress
        # Containers that this process made: an engine's id is never given twice, so their
        # start needs no second proof of ownership. Small, and lost with the process, as it may be.
        self._proven: dict[UUID, str] = {}

    @property
    def _client(self) -> APIClient:
        return self._engine.client

    def create(
        self,
        spec: MachineSpec,
        user_data: Callable[[], bytes] | None = None,
        secrets: Callable[[], Secrets] | None = None,
    ) -> str:
        if (user_data is not None or secrets is not None) and (started := self._started(spec)) is not None:
            return started
        # Not while others wait for room to change something.
        script = user_data() if user_data is not None else None
        values = secrets() if secrets is not None else {}
        given = docker_creation.Given(self._files, values, self._trees, self._warm, self._caches)
        with calling(), changing():
            until = time.monotonic() + CALL_SECONDS
            while time.monotonic() < until:
                try:
                    made = docker_creation.create(self._client, self._owner, spec, self._publish_address, given)
                    faults.reached("after_effect")
                    docker_first.fill(self._client, made, spec, script)
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
                        docker_first.fill(self._client, found["Id"], spec, script)
                    return str(found["Id"])
                docker_ends.remove(self._client, found["Id"])
                self._files.remove(spec.id, spec.generation - 1)
        raise EngineUnavailable(f"{machine_name(spec.id)} keeps changing under our hands")

    def give(self, spec: MachineSpec, secrets: Secrets) -> None:
        docker_creation.Given(self._files, secrets).write(spec)
        faults.reached("after_effect")

    def _started(self, spec: MachineSpec) -> str | None:
        """Its container, where it was started before: nobody need be asked for what it was filled with."""
        with calling():
            found = self._engine.own(spec.id)
        if found is None or docker_first.is_new(found):
            return None
        adoptable = self._owner.check_adoptable(spec, found["Config"]["Labels"] or {})
        return str(found["Id"]) if adoptable else None

    def _remember(self, machine: UUID, engine_id: str) -> None:
        while len(self._proven) >= PROVEN:
            self._proven.pop(next(iter(self._proven)), None)
        self._proven[machine] = engine_id

    def start(self, machine: UUID, cancelled: Check) -> MachineState:
        with calling():
            engine_id = self._proven.pop(machine, None)
            if engine_id is None:
                found = self._engine.require(machine)
                engine_id = str(found["Id"])
                if found["State"]["Paused"]:
                    docker_ends.wake(self._client, engine_id)
                if found["State"]["Running"]:
                    return self._ready(engine_id, machine, cancelled)
            with changing(cancelled):
                try:
                    self._client.start(engine_id)
                except docker.errors.NotFound as error:
                    raise NotFound(f"{machine_name(machine)} is not on the engine any more") from error
                except docker.errors.APIError as error:
                    if (refusal := refusal_of(error)) is not None:
                        raise refusal from error
                    raise
                faults.reached("after_effect")
            return self._ready(engine_id, machine, cancelled)

    def ready(self, machine: UUID, cancelled: Check) -> MachineState:
        with calling():
            return self._ready(str(self._engine.require(machine)["Id"]), machine, cancelled)

    def _ready(self, engine_id: str, machine: UUID, cancelled: Check) -> MachineState:
        found = docker_readiness.wait(self._client, engine_id, cancelled)
        self._inventory.details.note(engine_id, found)
        if self._egress is not None and NETWORK in (found["Config"]["Labels"] or {}):
            self._egress.follow(machine, cancelled)
        networks = found["NetworkSettings"]["Networks"].values()
        addresses = [network["IPAddress"] for network in networks if network["IPAddress"]]
        return MachineState(engine_id=engine_id, private_ip=addresses[0] if addresses else None)

    def adjust(self, spec: MachineSpec) -> None:
        with calling(), changing():
            found = self._engine.require(spec.id)
            lives = bool(found["State"]["Running"])
            if limits(found) == (spec.vcpus, spec.memory_mb):
                # Also what an attempt whose answer was lost did.
                self._check_survived(found["Id"], spec, lived=spec.lives)
                return
            if lives and spec.memory_mb < limits(found)[1]:
                self._check_fits(found["Id"], spec)
            self._client.update_container(found["Id"], **docker_creation.limits_of(spec))
            self._inventory.details.forget(found["Id"])
            faults.reached("after_effect")
            self._check_survived(found["Id"], spec, lived=lives)

    def _check_survived(self, engine_id: str, spec: MachineSpec, *, lived: bool) -> None:
        if lived and not docker_ends.is_running(self._client, engine_id):
            raise InstanceExited(
                f"the instance's program ended as it got {spec.memory_mb} MiB"
                + docker_readiness.last_words(self._client, engine_id)
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
                docker_ends.wake(self._client, found["Id"])
                faults.reached("after_effect")

    def _living(self, machine: UUID) -> dict[str, Any]:
        """A container whose processes are there, running or paused."""
        found = self._engine.require(machine)
        if not found["State"]["Running"]:
            raise InstanceExited("the instance's process has ended", exit_code=found["State"]["ExitCode"])
        return found

    def stop(self, machine: UUID, grace_seconds: float, cancelled: Check) -> None:
        with calling():
            found = self._engine.own(machine)
            if found is None or not found["State"]["Running"]:
                return
            docker_ends.stop(self._client, found, grace_seconds, cancelled)
            faults.reached("after_effect")

    def delete(self, machine: UUID, generation: int | None = None) -> None:
        with calling():
            found = self._engine.find(machine)
            ours = self._owner.owned(machine_name(machine), found["Config"]["Labels"] or {}) if found else None
            if found is not None and ours is not None and (generation is None or ours[1] <= generation):
                with changing():
                    docker_ends.remove(self._client, found["Id"])
                    faults.reached("after_effect")
        # Of what was never created too.
        self._files.remove(machine, generation)

    def inventory(self) -> list[OwnedMachine]:
        with calling():
            found = self._inventory.machines()
        self._files.sweep({(machine.id, machine.generation) for machine in found})
        if self._warm is not None:
            self._warm.sweep({machine.id for machine in found})
        return found

    def survey(self, machine: UUID | None = None) -> list[FoundMachine]:
        with calling():
            return docker_survey.machines(self._engine, machine)

    def sample(self) -> list[Reading]:
        with calling():
            return self._inventory.sample()

    def checked(self) -> list[Checked]:
        return docker_health.checked(self._engine)

    def look(self, machine: Checked) -> Look:
        return docker_health.look(self._engine, self._inside, machine)
