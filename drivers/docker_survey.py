"""Everything that a Docker engine can tell of what its containers of ours were made from."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import docker.errors

from drivers.docker_engine import DockerEngine
from drivers.docker_facts import observed
from drivers.ownership import SECRETS, USER_DATA, told
from model.restores import FoundMachine


def machines(engine: DockerEngine, machine: UUID | None) -> list[FoundMachine]:
    """All of the owner's, or one; each is inspected now."""
    surveyed = []
    for listed in engine.client.containers(all=True, filters={"label": engine.owner.filters()}):
        ours = engine.owner.owned(listed["Names"][0].removeprefix("/"), listed["Labels"] or {})
        if ours is None or machine not in (None, ours[0]):
            continue
        try:
            found = engine.client.inspect_container(listed["Id"])
        except docker.errors.NotFound:
            continue
        surveyed.append(_of(found, *ours))
    return surveyed


def _of(found: dict[str, Any], id: UUID, generation: int) -> FoundMachine:
    config, state = found["Config"], found["State"]
    labels = config["Labels"] or {}
    networks = found["NetworkSettings"]["Networks"].values()
    addresses = [network["IPAddress"] for network in networks if network["IPAddress"]]
    restarts = found["HostConfig"].get("RestartPolicy") or {}
    most = restarts.get("MaximumRetryCount") or 0
    name = {"unless-stopped": "always", "": "no"}.get(restarts.get("Name", ""), restarts.get("Name", "no"))
    return FoundMachine(
        engine_id=found["Id"],
        id=id,
        generation=generation,
        running=bool(state["Running"]) and not state["Paused"],
        paused=bool(state["Paused"]),
        private_ip=addresses[0] if addresses else None,
        env=_environment(config),
        # With user data its program is our wrapper; what it wraps comes from the image then.
        cmd=None if USER_DATA in labels else config.get("Cmd"),
        restart_policy=f"{name}:{most}" if most else name,
        **observed(found),
        **({"name": config.get("Hostname")} | {k: v for k, v in told(labels).items() if v is not None}),
    )


def _environment(config: dict[str, Any]) -> dict[str, str]:
    """But for what stands for secrets: it goes into histories and rows."""
    secret = (config["Labels"] or {}).get(SECRETS, "").split(",")
    hidden = {*secret, *(f"{name}_FILE" for name in secret)}
    env = dict(line.partition("=")[::2] for line in config.get("Env") or [])
    # What its network class gives it, it is given anew.
    proxy = told(config["Labels"] or {})["network"].variables.items()
    return {name: value for name, value in env.items() if name not in hidden and (name, value) not in proxy}
