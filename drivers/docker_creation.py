"""A container as it is created: its limits, ports, labels and program."""

from __future__ import annotations

import re
from typing import Any

from docker import APIClient
from docker.types import LogConfig

from drivers import docker_first, docker_names
from drivers.docker_facts import CPU_PERIOD
from drivers.ownership import Owner, machine_name
from model.errors import ImageNotFound
from model.instances import MachineSpec


def create(client: APIClient, owner: Owner, spec: MachineSpec, publish_address: str) -> str:
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
        init=True,
        security_opt=["no-new-privileges"],
        port_bindings=bindings,
        log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
        restart_policy=docker_first.restart_policy(spec),
    )
    made = client.create_container(
        image["Id"],
        **docker_first.program(image, spec),
        name=machine_name(spec.id),
        hostname=re.sub(r"[^a-zA-Z0-9-]", "-", spec.name)[:63],
        environment=spec.env,
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
