"""The whole platform is away for a while: what runs goes on, and when it is back only what is wrong changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests import invariants
from tests.machine import Machine, token
from tests.stack import IMAGE, Stack, wait_for
from worker import ports

#: Longer than any silence that makes a host lost. With CAIRN_CHAOS=all ten minutes.
AWAY_SECONDS = 600 if os.environ.get("CAIRN_CHAOS") == "all" else 45
RECONCILE_SECONDS = 2
#: Lease and margin, and two ticks: by then what seems lost would move.
JUDGED_SECONDS = 36


@pytest.fixture
def platform() -> Iterator[Stack]:
    taken: set[int] = set()
    api, temporal = (ports.choose("127.0.0.1", taken, (0, 0)) for _ in range(2))
    stack = Stack(
        simulated_hosts=0,
        CAIRN_API_PORT=str(api),
        CAIRN_TEMPORAL_PORT=str(temporal),
        CAIRN_RECONCILE_INTERVAL=str(RECONCILE_SECONDS),
    )
    try:
        yield stack.start().ready()
    finally:
        stack.remove()


@pytest.fixture
def machine(platform: Stack, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(platform, tmp_path)
    yield made
    made.end_all()


def running(stack: Stack) -> dict[str, tuple[str, str]]:
    """By instance: the container, and since when it runs."""
    return {
        container.labels["io.cairn.id"]: (str(container.id), container.attrs["State"]["StartedAt"])
        for container in stack.containers()
        if container.status == "running"
    }


@pytest.mark.timeout(AWAY_SECONDS + 900)
def test_everything_away_for_long_moves_nothing_and_old_generations_go(
    platform: Stack, machine: Machine, docker_engine: docker.DockerClient
) -> None:
    machine.start("joined-1", token(platform), CAIRN_RECONCILE_INTERVAL=str(RECONCILE_SECONDS))
    machine.host("joined-1")
    instances = [
        platform.running(backend="docker", host=host, on_host_lost=policy)
        for host in ("local", "joined-1")
        for policy in ("keep", "replace")
    ]
    gone = platform.running(backend="docker", host="joined-1")
    labels = platform.containers(gone["id"])[0].labels
    platform.completed(platform.act("delete", gone))
    invariants.settle(platform)
    before = running(platform)
    assert set(before) == {instance["id"] for instance in instances}

    assert platform.process is not None
    platform.process.kill()
    platform.process.wait()
    platform.process = None
    # What a create that landed late leaves behind.
    docker_engine.containers.run(IMAGE, name=f"cairn-instance-{gone['id']}", labels=labels, detach=True)
    end = time.monotonic() + AWAY_SECONDS
    while time.monotonic() < end:
        assert {id: now for id, now in running(platform).items() if id != gone["id"]} == before
        time.sleep(1)

    temporal = ports.choose("127.0.0.1", set(), (0, 0))
    platform.start(CAIRN_TEMPORAL_PORT=str(temporal)).ready()
    machine.host("joined-1")  # though Temporal is elsewhere now
    wait_for("what was left behind is gone", lambda: not platform.containers(gone["id"]), 2 * RECONCILE_SECONDS + 3)
    end = time.monotonic() + JUDGED_SECONDS
    while time.monotonic() < end:
        assert running(platform) == before
        time.sleep(1)
    assert platform.get("/workflows", kind="MoveInstance") == []
    assert [platform.instance(instance) for instance in instances] == instances
    assert platform.running(backend="docker", host="joined-1")["host"] == "joined-1"
    invariants.settle(platform)
