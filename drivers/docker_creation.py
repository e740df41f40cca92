"""A container as it is created: its limits, ports, labels and program."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from docker import APIClient
from docker.types import LogConfig, Mount, Ulimit

from drivers import docker_first, docker_names
from drivers.cache_trees import CacheTrees
from drivers.docker_facts import CPU_PERIOD
from drivers.machines import Secrets
from drivers.ownership import Owner, machine_name
from drivers.secret_files import SecretFiles
from drivers.session_trees import SessionTrees
from drivers.warm_trees import WarmTrees
from model.cache_volumes import CacheSpec
from model.errors import EngineUnavailable, ImageNotFound
from model.instances import MachineSpec
from model.sessions import PLACE
from model.vault import FOLDER

#: Files and sockets that each of its processes may have open. Below what engines commonly have themselves.
FILES = 16384


class Given(NamedTuple):
    """The values of a container's secrets, and where those that come as files are kept."""

    files: SecretFiles
    secrets: Secrets
    trees: SessionTrees | None = None
    warm: WarmTrees | None = None
    cached: CacheTrees | None = None

    def write(self, spec: MachineSpec) -> list[Mount]:
        """Keep those that come as files, and say where its container sees them. Raises EngineUnavailable."""
        names = self._of(spec, "file")
        if not names:
            return []
        folder = self.files.write(spec.id, spec.generation, names)
        return [Mount(target=FOLDER, source=str(folder), type="bind", read_only=True)]

    def tree(self, spec: MachineSpec) -> list[Mount]:
        """The files of the session whose sandbox it is, or the place where they will come in. Raises EngineUnavailable
        where they are not mounted."""
        if spec.tree is None and not spec.warm:
            return []
        if self.trees is None or self.warm is None:
            raise EngineUnavailable("this agent keeps no files of sessions")
        if spec.warm or spec.tree is None:
            return [Mount(target=PLACE, source=str(self.warm.make(spec.id)), type="bind", propagation="rslave")]
        return [Mount(target=PLACE, source=str(self.trees.mount(spec.tree).absolute()), type="bind")]

    def caches(self, spec: MachineSpec) -> list[Mount]:
        """The cache volumes of its session. Raises EngineUnavailable."""
        if spec.caches and self.cached is None:
            raise EngineUnavailable("this agent keeps no cache volumes")
        if self.cached is None:
            return []
        of = {cache.path: CacheSpec(id=cache.id, project_id=spec.project_id) for cache in spec.caches}
        return [Mount(target=path, source=str(self.cached.make(of[path]).absolute()), type="bind") for path in of]

    def environment(self, spec: MachineSpec) -> dict[str, str]:
        """Where its program finds the files, and what comes as a variable itself, which the engine shows."""
        where = {f"{name}_FILE": f"{FOLDER}/{name}" for name, how in spec.secrets.items() if how == "file"}
        return where | {name: value.decode() for name, value in self._of(spec, "env").items()}

    def _of(self, spec: MachineSpec, delivery: str) -> dict[str, bytes]:
        try:
            return {name: self.secrets[name] for name, how in spec.secrets.items() if how == delivery}
        except KeyError as error:
            raise EngineUnavailable("the values of its secrets are missing") from error


def create(client: APIClient, owner: Owner, spec: MachineSpec, publish_address: str, given: Given) -> str:
    """Its engine's id. Ports are published on ``publish_address`` alone. Raises ImageNotFound."""
    image = docker_names.find(client, spec.wanted_image)
    if image is None:
        raise ImageNotFound(f"image {spec.image} is not on the engine", image=spec.image)
    exposed = [(port.container_port, port.protocol) for port in spec.ports]
    bindings: dict[int | str, Any] = {
        f"{port.container_port}/{port.protocol}": [(publish_address, port.host_port)] for port in spec.ports
    }
    host_config = client.create_host_config(
        **limits_of(spec),
        pids_limit=spec.pids,
        ulimits=[Ulimit(name="nofile", soft=FILES, hard=FILES)],
        # Nothing but a loopback; what an allow-list lets out comes in from outside (docker_egress).
        network_mode=None if spec.network.mode == "open" else "none",
        init=True,
        security_opt=["no-new-privileges"],
        port_bindings=bindings,
        log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
        restart_policy=docker_first.restart_policy(spec),
        mounts=[*given.write(spec), *given.tree(spec), *given.caches(spec)],
    )
    made = client.create_container(
        image["Id"],
        **docker_first.program(image, spec),
        working_dir=PLACE if spec.tree is not None or spec.warm else None,
        name=machine_name(spec.id),
        hostname=re.sub(r"[^a-zA-Z0-9-]", "-", spec.name)[:63],
        environment=spec.network.variables | spec.env | given.environment(spec),
        labels=owner.labels(spec),
        ports=exposed,
        host_config=host_config,
    )
    return str(made["Id"])


def limits_of(spec: MachineSpec) -> dict[str, Any]:
    """What it may use, for its creation and for a later change."""
    memory = f"{spec.memory_mb}m"
    return {
        # Quota and period, not nano_cpus: these may exceed the host's CPUs, and be changed later.
        "cpu_period": CPU_PERIOD,
        "cpu_quota": int(spec.vcpus * CPU_PERIOD),
        "mem_limit": memory,
        "memswap_limit": memory,
    }
