"""What the Docker driver promises beyond the machine port: seen in the engine itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import docker
import httpx
import pytest

from drivers.docker import CALL_SECONDS, DockerMachines
from drivers.machines import Cancelled
from drivers.ownership import machine_name
from model.errors import EngineUnavailable, ForeignObject, InstanceExited, PortTaken
from model.instances import MachineSpec, Port
from tests.drivers.conftest import free_port, never, spec
from tests.services import until
from worker import engine

pytestmark = pytest.mark.engine


@pytest.fixture
def sdk() -> Iterator[docker.APIClient]:
    client = docker.APIClient(engine.SOCKET, timeout=30)
    yield client
    client.close()


def driver(url: str = engine.SOCKET, owner: tuple[UUID, UUID] | None = None) -> DockerMachines:
    installation, host_id = owner or (uuid4(), uuid4())
    return DockerMachines(url, installation=installation, host_id=host_id, publish_address="127.0.0.1")


@pytest.fixture
def machines() -> Iterator[DockerMachines]:
    made = driver()
    yield made
    for machine in made.inventory():
        made.delete(machine.id)


def inspect(sdk: docker.APIClient, wanted: MachineSpec) -> dict[str, Any]:
    found: dict[str, Any] = sdk.inspect_container(machine_name(wanted.id))
    return found


def run(sdk: docker.APIClient, wanted: MachineSpec, *command: str) -> str:
    made = sdk.exec_create(machine_name(wanted.id), list(command))
    said: bytes = sdk.exec_start(made["Id"])
    return said.decode()


def test_container_is_what_was_asked_for(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(
        vcpus=0.5,
        memory_mb=48,
        pids=77,
        env={"COLOUR": "red"},
        cmd=["/bin/sh", "-c", "echo $COLOUR; exec sleep 100"],
        labels={"team": "a"},
    )
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    found = inspect(sdk, wanted)
    assert found["Id"] == made
    limits = found["HostConfig"]
    assert (limits["CpuQuota"], limits["CpuPeriod"]) == (50_000, 100_000)
    assert (limits["Memory"], limits["MemorySwap"], limits["PidsLimit"]) == (48 << 20, 48 << 20, 77)
    assert "no-new-privileges" in limits["SecurityOpt"]
    assert not limits["Privileged"]
    labels = found["Config"]["Labels"]
    assert labels["io.cairn.id"] == str(wanted.id)
    assert labels["io.cairn.project"] == str(wanted.project_id)
    assert labels["io.cairn.generation"] == "1"
    assert labels["io.cairn.user.team"] == "a"
    assert until(lambda: sdk.logs(made)) == b"red\n"


def test_limits_hold_in_the_kernel(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(vcpus=0.5, memory_mb=48, pids=77)
    machines.create(wanted)
    machines.start(wanted.id, never)
    # As the container sees its own control group: version 2 first, version 1 else.
    limits = run(
        sdk,
        wanted,
        *("/bin/sh", "-c"),
        "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max 2>/dev/null || cat memory/memory.limit_in_bytes "
        "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max",
    ).split()
    assert limits == [str(48 << 20), "50000", "100000", "77"]


def test_published_port_answers(machines: DockerMachines) -> None:
    port = free_port()
    wanted = spec(ports=[Port(host_port=port, container_port=80)])
    machines.create(wanted)
    state = machines.start(wanted.id, never)
    assert until(lambda: _status(f"http://127.0.0.1:{port}/")) is not None
    assert _status(f"http://{state.private_ip}/") is not None


def _status(url: str) -> int | None:
    try:
        return httpx.get(url, trust_env=False, timeout=2).status_code
    except httpx.TransportError:
        return None


def test_port_that_a_stranger_listens_on(machines: DockerMachines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        wanted = spec(ports=[Port(host_port=port, container_port=80)])
        machines.create(wanted)
        with pytest.raises(PortTaken) as refused:
            machines.start(wanted.id, never)
        assert refused.value.details["port"] == port


def test_program_that_ends_at_once_tells_its_last_words(machines: DockerMachines) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "echo no database; exit 3"])
    machines.create(wanted)
    with pytest.raises(InstanceExited) as refused:
        for _ in range(20):  # it may have been seen while it still ran
            machines.start(wanted.id, never)
            time.sleep(0.1)
    assert refused.value.details["exit_code"] == 3
    assert "no database" in refused.value.message


def test_program_that_is_not_there_is_a_final_error(machines: DockerMachines) -> None:
    wanted = spec(cmd=["/no/such/program"])
    machines.create(wanted)
    with pytest.raises(InstanceExited, match="exec /no/such/program failed") as refused:
        machines.start(wanted.id, never)
    assert not refused.value.retryable


def test_start_waits_for_the_health_check(machines: DockerMachines, sdk: docker.APIClient) -> None:
    checked = f"cairn/checked:{uuid4().hex[:12]}"
    base = sdk.create_container(engine.IMAGE)
    try:
        health = 'HEALTHCHECK --interval=1s --retries=3 CMD ["/bin/busybox", "test", "-e", "/ready"]'
        repository, tag = checked.split(":")
        sdk.commit(base["Id"], repository=repository, tag=tag, changes=[health])
        well = spec(image=checked, cmd=["/bin/sh", "-c", "sleep 1; touch /ready; exec sleep 100"])
        ill = spec(image=checked, cmd=["/bin/sleep", "100"])
        machines.create(well)
        machines.start(well.id, never)
        assert inspect(sdk, well)["State"]["Health"]["Status"] == "healthy"
        machines.create(ill)
        with pytest.raises(InstanceExited, match="health check failed"):
            machines.start(ill.id, never)
        machines.delete(ill.id)
        machines.create(ill)
        with pytest.raises(Cancelled):
            machines.start(ill.id, lambda: True)
    finally:
        for machine in machines.inventory():
            machines.delete(machine.id)
        sdk.remove_container(base["Id"], force=True)
        sdk.remove_image(checked, force=True)


def test_stop_gives_the_grace_and_then_kills(machines: DockerMachines, sdk: docker.APIClient) -> None:
    deaf = spec(cmd=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    machines.create(deaf)
    machines.start(deaf.id, never)
    time.sleep(0.5)  # its trap is set
    began = time.monotonic()
    machines.stop(deaf.id, 1, never)
    assert 1 <= time.monotonic() - began < 4
    assert inspect(sdk, deaf)["State"]["ExitCode"] == 137


def test_cancel_of_a_stop_leaves_the_grace_at_once(machines: DockerMachines, sdk: docker.APIClient) -> None:
    deaf = spec(cmd=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    machines.create(deaf)
    machines.start(deaf.id, never)
    time.sleep(0.5)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        machines.stop(deaf.id, 60, lambda: time.monotonic() - began > 0.5)
    assert time.monotonic() - began < 3
    assert inspect(sdk, deaf)["State"]["Running"]


def test_stop_of_a_paused_container(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    sdk.pause(machine_name(wanted.id))
    machines.stop(wanted.id, 5, never)
    assert not inspect(sdk, wanted)["State"]["Running"]


def test_strangers_container_under_our_name_survives(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    foreign = sdk.create_container(engine.IMAGE, name=machine_name(wanted.id))
    try:
        with pytest.raises(ForeignObject):
            machines.create(wanted)
        machines.stop(wanted.id, 0, never)
        machines.delete(wanted.id)
        assert inspect(sdk, wanted)["Id"] == foreign["Id"]
        assert machines.inventory() == []
    finally:
        sdk.remove_container(foreign["Id"], force=True)


class Proxy:
    """A socket before the engine's own, that can swallow answers or cut connections."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.silent = threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                target = socket.socket(socket.AF_UNIX)
                target.connect(engine.SOCKET.removeprefix("unix://"))
                self._open += [client, target]
                for source, sink, answers in ((client, target, False), (target, client, True)):
                    threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (answers and self.silent.is_set()):
                    sink.sendall(data)

    def cut(self) -> None:
        """Every connection breaks; new ones work."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.cut()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    one = Proxy(tmp_path / "e.sock")
    yield one
    one.close()


def test_engine_that_falls_silent_is_given_up_within_the_time_of_a_call_and_adopted_later(
    machines: DockerMachines, proxy: Proxy
) -> None:
    owner = (machines._owner.installation, machines._owner.host_id)
    slow, wanted = driver(proxy.url, owner), spec()
    slow.ensure_image(wanted.image, never)
    proxy.silent.set()
    began = time.monotonic()
    with pytest.raises(EngineUnavailable):
        slow.create(wanted)
    assert time.monotonic() - began < CALL_SECONDS + 2
    proxy.silent.clear()
    proxy.cut()
    (made,) = machines.inventory()
    assert slow.create(wanted) == made.engine_id, "the engine had done it, though nobody heard"


def test_connections_that_broke_meanwhile_are_replaced(machines: DockerMachines, proxy: Proxy) -> None:
    owner = (machines._owner.installation, machines._owner.host_id)
    cut, wanted = driver(proxy.url, owner), spec()
    cut.ensure_image(wanted.image, never)
    proxy.cut()
    with contextlib.suppress(EngineUnavailable):
        cut.create(wanted)
    cut.create(wanted)
    cut.start(wanted.id, never)
    assert [m.running for m in machines.inventory()] == [True]


def test_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable):
        driver(f"unix://{tmp_path}/none.sock").inventory()
