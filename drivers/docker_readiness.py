"""Whether a container is ready, and what it said last where it never will be."""

from __future__ import annotations

from typing import Any

import docker.errors
from docker import APIClient

from drivers import docker_first
from drivers.docker_engine import pause
from drivers.machines import Check
from model.errors import InstanceExited, NotFound

LOG_LINES = 10


def wait(client: APIClient, engine_id: str, cancelled: Check) -> dict[str, Any]:
    """Its inspection, once it is ready. Raises InstanceExited, NotFound, Cancelled."""
    while True:
        try:
            found = client.inspect_container(engine_id)
        except docker.errors.NotFound as error:
            raise NotFound(f"container {engine_id[:12]} went before it was ready") from error
        state = found["State"]
        ran = docker_first.ran(client, found)
        if ran:
            raise InstanceExited(f"user_data ended with exit code {ran}" + last_words(client, engine_id), exit_code=ran)
        health = (state.get("Health") or {}).get("Status", "none")
        if not state["Running"]:
            raise InstanceExited(
                f"the instance's process ended with exit code {state['ExitCode']} before it was ready"
                + last_words(client, engine_id),
                exit_code=state["ExitCode"],
            )
        if ran is None or state["Restarting"]:
            health = "starting"
        if health in ("none", "healthy"):
            return dict(found)
        if health == "unhealthy":
            raise InstanceExited("the instance's health check failed" + last_words(client, engine_id))
        pause(cancelled)


def last_words(client: APIClient, engine_id: str) -> str:
    """The end of its log, as the end of a message."""
    try:
        log = client.logs(engine_id, tail=LOG_LINES).decode(errors="replace").replace("\x00", "").strip()
    except docker.errors.APIError:
        return ""
    return f"; its last words: {log[-1000:]}" if log else ""
