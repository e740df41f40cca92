"""Containers stopped and removed."""

from __future__ import annotations

import time
from typing import Any

import docker.errors
from docker import APIClient

from drivers.docker_engine import CALL_SECONDS, CONFLICT, NOT_FOUND, POLL_SECONDS, pause
from drivers.machines import Check
from model.errors import EngineUnavailable


def stop(client: APIClient, inspected: dict[str, Any], grace_seconds: float, cancelled: Check) -> None:
    """Ask one that runs to end, and end it after its grace; a paused one is woken to hear it. Raises Cancelled."""
    engine_id, paused = inspected["Id"], bool(inspected["State"]["Paused"])
    # Who gets no time is not woken: what is fenced may run elsewhere already. The engine itself wakes it to die.
    killed = paused and grace_seconds <= 0
    if paused and not killed:
        wake(client, engine_id)
    # Not the engine's own stop: it blocks for the whole grace, deaf to a cancel.
    _signal(client, engine_id, "SIGKILL" if killed else inspected["Config"].get("StopSignal") or "SIGTERM")
    until = time.monotonic() + grace_seconds
    while is_running(client, engine_id):
        if not killed and time.monotonic() >= until:
            _signal(client, engine_id, "SIGKILL")
            killed = True
        pause(cancelled)


def wake(client: APIClient, engine_id: str) -> None:
    """Let a paused one go on. Success where it is not paused (any more): some engines call that a failure of theirs."""
    try:
        client.unpause(engine_id)
    except docker.errors.APIError:
        if client.inspect_container(engine_id)["State"]["Paused"]:
            raise


def is_running(client: APIClient, engine_id: str) -> bool:
    try:
        return bool(client.inspect_container(engine_id)["State"]["Running"])
    except docker.errors.NotFound:  # a delete beside the stop
        return False


def remove(client: APIClient, engine_id: str) -> None:
    """Remove by the engine's id, never by name: the name may belong to another by now. Ends when it is gone."""
    try:
        client.remove_container(engine_id, v=True, force=True)
    except docker.errors.APIError as error:
        if error.status_code not in (NOT_FOUND, CONFLICT):  # conflict: somebody is removing it already
            raise
    until = time.monotonic() + CALL_SECONDS
    while time.monotonic() < until:
        try:
            client.inspect_container(engine_id)
        except docker.errors.NotFound:
            return
        time.sleep(POLL_SECONDS)
    raise EngineUnavailable(f"container {engine_id[:12]} is still there after its removal")


def _signal(client: APIClient, engine_id: str, signal: str) -> None:
    try:
        client.kill(engine_id, signal)
    except docker.errors.APIError as error:
        if error.status_code not in (NOT_FOUND, CONFLICT):  # it is not running any more
            raise
