"""What a Docker engine's answers say of a container."""

from __future__ import annotations

import re
from typing import Any

import docker.errors

from drivers.docker_engine import CONFLICT, SERVER_ERROR, said
from drivers.ownership import IMAGE
from model.errors import EngineRefused, PortTaken
from model.instances import Port

CPU_PERIOD = 100_000

# Why a start failed is in the engine's text alone: it answers 500 for a port that is taken as for any
# failure of its network. Both texts come from libnetwork and name the port.
_PORT_TAKEN = re.compile(r"(?:port is already allocated|address already in use)")
_PORT = re.compile(r"(?:Bind for \S*)?:(\d{1,5})(?:/\w+)?(?:\s|:| failed|$)")


def limits(inspected: dict[str, Any]) -> tuple[float, int]:
    """vCPUs and MiB; 0: no limit."""
    config = inspected["HostConfig"]
    quota, period = config.get("CpuQuota") or 0, config.get("CpuPeriod") or CPU_PERIOD
    vcpus = quota / period if quota > 0 else (config.get("NanoCpus") or 0) / 1e9
    return round(vcpus, 3), (config.get("Memory") or 0) >> 20


def observed(inspected: dict[str, Any]) -> dict[str, Any]:
    """What an inventory says of a container beyond that it is there."""
    vcpus, memory_mb = limits(inspected)
    ports = [
        Port(host_port=int(binding["HostPort"] or 0), container_port=int(inside), protocol=protocol)
        for name, bindings in (inspected["HostConfig"].get("PortBindings") or {}).items()
        for inside, _, protocol in [name.partition("/")]
        for binding in bindings or []
    ]
    config = inspected["Config"]
    # By its name, but for what an earlier version made.
    image = (config["Labels"] or {}).get(IMAGE, config["Image"])
    return {"image": image, "vcpus": vcpus, "memory_mb": memory_mb, "ports": ports}


def refusal_of(error: docker.errors.APIError) -> Exception | None:
    """Why a start will not succeed however often it is tried; None: it may."""
    text = said(error)
    if _PORT_TAKEN.search(text):
        ports = [int(port) for port in _PORT.findall(text) if int(port)]
        port = ports[0] if ports else None
        return PortTaken(f"host port {port} is taken by something else on the host", port=port)
    if error.status_code is not None and error.status_code < SERVER_ERROR and error.status_code != CONFLICT:
        # 400: the program of the image cannot be run at all.
        return EngineRefused(f"the engine cannot start the instance: {text}")
    return None
