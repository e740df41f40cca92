"""A sandbox that takes all that it can get takes nothing of its neighbour's, or of the host's: on a real engine."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator

import docker
import httpx
import pytest

from drivers.docker import DockerMachines
from drivers.ownership import machine_name
from model.instances import MachineSpec, Port
from tests.drivers.conftest import free_port, never, spec
from tests.engines.conftest import remove_all
from tests.services import until
from worker import agent_image, engine

pytestmark = pytest.mark.engine

#: How long it is at it, and within what the neighbour answers all the while, on a machine that does much else.
SECONDS, ANSWER_SECONDS = 8.0, 5.0
PIDS, MEMORY_MB = 200, 256
#: Each goes on until the kernel refuses more, tells how far it came, and stays there.
HOGS = {
    "processes": """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
    except OSError:
        print(made, flush=True)
        time.sleep(0.01)
""",
    "descriptors": """
import os, time
for _ in range(100):
    if os.fork() == 0:
        break
files = []
while True:
    try:
        files.append(os.open("/etc/hostname", os.O_RDONLY))
    except OSError:
        print(len(files), flush=True)
        time.sleep(600)
""",
    "memory": """
taken = []
while True:
    taken.append(b"x" * (1 << 20))
    if len(taken) % 16 == 0:
        print(len(taken), flush=True)
""",
}


@pytest.fixture
def neighbour(machines: DockerMachines) -> Iterator[str]:
    """Where an instance beside it serves a page."""
    port = free_port()
    wanted = spec(ports=[Port(host_port=port, container_port=80)])
    machines.create(wanted)
    machines.start(wanted.id, never)
    url = f"http://127.0.0.1:{port}/"
    assert until(lambda: answers(url), 30)
    yield url
    remove_all(machines)


def answers(url: str) -> float:
    """Seconds that its answer took; 0: none came."""
    began = time.monotonic()
    try:
        httpx.get(url, trust_env=False, timeout=ANSWER_SECONDS).raise_for_status()
    except httpx.HTTPError:
        return 0.0
    return time.monotonic() - began


def most(sdk: docker.APIClient, hog: MachineSpec) -> int:
    said = sdk.logs(machine_name(hog.id)).decode().split()
    return max(map(int, said), default=0)


@pytest.mark.parametrize("what", HOGS)
def test_neighbour_and_host_go_on(machines: DockerMachines, sdk: docker.APIClient, neighbour: str, what: str) -> None:
    agent_image.image.ensure(engine.SOCKET, print)
    quiet = statistics.median(answers(neighbour) for _ in range(10))
    command = ["/usr/bin/python3", "-c", HOGS[what]]
    hog = spec(image=agent_image.IMAGE, vcpus=0.5, memory_mb=MEMORY_MB, pids=PIDS, cmd=command)
    machines.create(hog)
    machines.start(hog.id, never)
    assert until(lambda: most(sdk, hog), 60), sdk.logs(machine_name(hog.id))
    took = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        took.append(answers(neighbour))
        # The host itself has processes and files left, and a good part of its memory.
        subprocess.run(["true"], check=True, timeout=ANSWER_SECONDS)
        os.close(os.open("/etc/hostname", os.O_RDONLY))
        time.sleep(0.1)
    assert all(took), f"{took.count(0.0)} of {len(took)} requests were not answered"
    assert statistics.median(took) < 20 * quiet + 0.1, (quiet, took)
    reached = most(sdk, hog)
    if what == "processes":
        # One is the engine's own, which reaps the others.
        assert PIDS - 5 <= reached <= PIDS, reached
    elif what == "descriptors":
        assert 1000 < reached <= 16_384, reached
    else:
        killed = sdk.inspect_container(machine_name(hog.id))["State"]
        assert (killed["OOMKilled"], killed["Running"]) == (True, False), killed
        assert reached < MEMORY_MB, reached
    machines.delete(hog.id)
    assert hog.id not in [machine.id for machine in machines.inventory()]
