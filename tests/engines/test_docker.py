"""What the Docker driver promises beyond the machine port: seen in the engine itself."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import docker
import httpx
import pytest

from drivers.docker import DockerMachines
from drivers.machines import Cancelled, Check
from drivers.ownership import machine_name
from model.errors import EngineRefused, ForeignObject, InstanceExited, NeedsStop, NotFound, PortTaken
from model.instances import MachineSpec, Port
from tests.drivers.conftest import free_port, never, spec
from tests.engines.conftest import driver, remove_all
from tests.services import until
from worker import engine

pytestmark = pytest.mark.engine


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


def test_program_that_wants_more_memory_is_killed(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(memory_mb=16, cmd=["/bin/sh", "-c", "sleep 1; tail /dev/zero"])  # tail keeps its last line: all
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert sdk.wait(made, timeout=30)["StatusCode"] == 128 + signal.SIGKILL


def test_program_that_wants_more_processes_gets_none(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(pids=8, cmd=["/bin/sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; wait"])
    made = machines.create(wanted)
    sdk.start(made)
    assert b"can't fork" in until(lambda: sdk.logs(made))


def page(url: str) -> str | None:
    """What answers there."""
    try:
        return httpx.get(url, trust_env=False, timeout=2).raise_for_status().text
    except httpx.TransportError:
        return None


def test_published_ports_lead_to_the_container(machines: DockerMachines) -> None:
    first, second = ports = [
        Port(host_port=free_port(), container_port=80),
        Port(host_port=free_port(), container_port=8080),
    ]
    serve = "echo low > /tmp/index.html; httpd -p 80 -h /tmp; exec httpd -f -p 8080 -h /www"
    wanted = spec(ports=ports, cmd=["/bin/sh", "-c", serve])
    machines.create(wanted)
    state = machines.start(wanted.id, never)
    assert until(lambda: page(f"http://127.0.0.1:{first.host_port}/")) == "low\n"
    assert "launched by Cairn" in until(lambda: page(f"http://127.0.0.1:{second.host_port}/"))
    assert page(f"http://{state.private_ip}/") == "low\n"


def test_published_udp_port(machines: DockerMachines, sdk: docker.APIClient) -> None:
    port = free_port()
    wanted = spec(ports=[Port(host_port=port, container_port=53, protocol="udp")])
    machines.create(wanted)
    machines.start(wanted.id, never)
    published = inspect(sdk, wanted)["NetworkSettings"]["Ports"]["53/udp"]
    assert published == [{"HostIp": "127.0.0.1", "HostPort": str(port)}]


def test_port_that_a_stranger_listens_on(machines: DockerMachines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        wanted = spec(ports=[Port(host_port=port, container_port=80)])
        machines.create(wanted)
        with pytest.raises(PortTaken) as refused:
            machines.start(wanted.id, never)
        assert refused.value.details["port"] == port
    assert machines.start(wanted.id, never).private_ip, "once it is free, the same start succeeds"


def test_port_that_a_strangers_container_has(machines: DockerMachines, sdk: docker.APIClient) -> None:
    port = free_port()
    config = sdk.create_host_config(port_bindings={80: ("127.0.0.1", port)})
    foreign = sdk.create_container(engine.IMAGE, ports=[80], host_config=config)
    wanted = spec(ports=[Port(host_port=port, container_port=80)])
    try:
        sdk.start(foreign["Id"])
        machines.create(wanted)
        with pytest.raises(PortTaken) as refused:
            machines.start(wanted.id, never)
        assert refused.value.details["port"] == port
        assert sdk.inspect_container(foreign["Id"])["State"]["Running"]
    finally:
        sdk.remove_container(foreign["Id"], force=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104 - on purpose
def test_taken_port_is_named_whatever_the_address(machines: DockerMachines, address: str) -> None:
    if ":" in address and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    port = Port(host_port=free_port(), container_port=80)
    first, second = spec(ports=[port]), spec(ports=[port])
    published = driver(owner=machines._owner, publish_address=address)
    for wanted in (first, second):
        published.create(wanted)
    published.start(first.id, never)
    with pytest.raises(PortTaken) as refused:
        published.start(second.id, never)
    assert refused.value.details["port"] == port.host_port


def start_until_refused(machines: DockerMachines, wanted: MachineSpec) -> None:
    """A program that ends at once may be seen while it still runs, and one that is not there before its exec failed:
    the container's first process is the engine's init, which runs before it."""
    for _ in range(20):
        machines.start(wanted.id, never)
        time.sleep(0.1)


def test_program_that_ends_at_once_tells_its_last_words(machines: DockerMachines) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "echo no database; exit 3"])
    machines.create(wanted)
    with pytest.raises(InstanceExited) as refused:
        start_until_refused(machines, wanted)
    assert refused.value.details["exit_code"] == 3
    assert "no database" in refused.value.message


def test_program_that_is_not_there_is_a_final_error(machines: DockerMachines) -> None:
    wanted = spec(cmd=["/no/such/program"])
    machines.create(wanted)
    with pytest.raises(InstanceExited, match="exec /no/such/program failed") as refused:
        start_until_refused(machines, wanted)
    assert not refused.value.retryable


@pytest.fixture
def checked(machines: DockerMachines, sdk: docker.APIClient) -> Iterator[str]:
    """An image whose container is well as soon as /ready is in it."""
    name = f"cairn/checked:{uuid4().hex[:12]}"
    base = sdk.create_container(engine.IMAGE)
    try:
        health = 'HEALTHCHECK --interval=1s --retries=5 CMD ["/bin/busybox", "test", "-e", "/ready"]'
        repository, tag = name.split(":")
        sdk.commit(base["Id"], repository=repository, tag=tag, changes=[health])
        yield name
    finally:
        remove_all(machines)  # an image in use stays
        sdk.remove_container(base["Id"], force=True)
        sdk.remove_image(name, force=True)


def test_start_waits_for_the_health_check(machines: DockerMachines, sdk: docker.APIClient, checked: str) -> None:
    wanted = spec(image=checked, cmd=["/bin/sh", "-c", "sleep 1; touch /ready; exec sleep 100"])
    machines.create(wanted)
    machines.start(wanted.id, never)
    assert inspect(sdk, wanted)["State"]["Health"]["Status"] == "healthy"


def test_failed_health_check_is_a_final_error(machines: DockerMachines, checked: str) -> None:
    wanted = spec(image=checked, cmd=["/bin/sh", "-c", "echo still migrating; exec sleep 100"])
    machines.create(wanted)
    with pytest.raises(InstanceExited, match=r"health check failed.*still migrating") as refused:
        machines.start(wanted.id, never)
    assert not refused.value.retryable


def test_wait_for_health_ends_with_a_cancel_or_a_delete(machines: DockerMachines, checked: str) -> None:
    wanted = spec(image=checked, cmd=["/bin/sleep", "100"])
    machines.create(wanted)
    with pytest.raises(Cancelled):
        machines.start(wanted.id, lambda: True)
    with pytest.raises(NotFound):
        machines.start(wanted.id, deleting(machines, wanted))


def deleting(machines: DockerMachines, wanted: MachineSpec) -> Check:
    """A check that nobody cancels, and that somebody deletes the machine meanwhile."""

    def check() -> bool:
        machines.delete(wanted.id)
        return False

    return check


def ignoring_term(machines: DockerMachines, sdk: docker.APIClient) -> MachineSpec:
    wanted = spec(cmd=["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"])
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: sdk.logs(made)) == b"deaf\n"
    return wanted


def test_stop_gives_the_grace_and_then_kills(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = ignoring_term(machines, sdk)
    began = time.monotonic()
    machines.stop(wanted.id, 1, never)
    assert 1 <= time.monotonic() - began < 6
    assert inspect(sdk, wanted)["State"]["ExitCode"] == 128 + signal.SIGKILL


def test_stop_ends_before_the_grace_where_the_program_obeys(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"])
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: sdk.logs(made))
    began = time.monotonic()
    machines.stop(wanted.id, 60, never)
    assert time.monotonic() - began < 20
    assert inspect(sdk, wanted)["State"]["ExitCode"] == 5


def test_cancel_of_a_stop_leaves_the_grace_at_once(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = ignoring_term(machines, sdk)
    with pytest.raises(Cancelled):
        machines.stop(wanted.id, 60, lambda: True)
    assert inspect(sdk, wanted)["State"]["Running"]


def test_delete_beside_a_stop_ends_it_well(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = ignoring_term(machines, sdk)
    machines.stop(wanted.id, 60, deleting(machines, wanted))
    assert machines.inventory() == []


def test_stop_of_what_ended_by_itself_changes_nothing(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "exit 7"])
    sdk.start(machines.create(wanted))
    assert until(lambda: inspect(sdk, wanted)["State"]["Status"] == "exited")
    before = inspect(sdk, wanted)["State"]
    machines.stop(wanted.id, 60, never)
    assert inspect(sdk, wanted)["State"] == before
    assert before["ExitCode"] == 7


def test_paused_program_that_gets_no_time_does_not_go_on_for_a_moment(
    machines: DockerMachines, sdk: docker.APIClient
) -> None:
    """A fence stops it so: it may run elsewhere already."""
    # Into a file, not a pipe, which the engine would go on reading after the pause.
    wanted = spec(cmd=["/bin/sh", "-c", "while :; do echo on >>/said; done"])
    machines.create(wanted)
    machines.start(wanted.id, never)

    def written() -> int:
        _, found = sdk.get_archive(machine_name(wanted.id), "/said")
        return int(found["size"])

    assert until(lambda: run(sdk, wanted, "cat", "/said").startswith("on"))
    machines.pause(wanted.id)
    before = written()
    time.sleep(0.3)
    assert written() == before
    machines.stop(wanted.id, 0, never)
    assert not inspect(sdk, wanted)["State"]["Running"]
    assert written() - before < 9000, "the engine itself wakes it to die, for some words; a moment is tens of thousands"


@pytest.mark.parametrize("verb", ["start", "resume", "stop"])
def test_one_that_somebody_woke_meanwhile_is_awake(
    machines: DockerMachines, sdk: docker.APIClient, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Engines call it a failure of theirs to wake what is not paused."""
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    machines.pause(wanted.id)
    unpause = machines._client.unpause

    def twice(engine_id: str) -> None:
        unpause(engine_id)
        unpause(engine_id)

    monkeypatch.setattr(machines._client, "unpause", twice)
    if verb == "start":
        machines.start(wanted.id, never)
    elif verb == "resume":
        machines.resume(wanted.id)
    else:
        machines.stop(wanted.id, 1, never)
    state = inspect(sdk, wanted)["State"]
    assert (state["Running"], state["Paused"]) == (verb != "stop", False)


def test_adjust_whose_answer_was_lost_knows_whether_the_program_survived_it(machines: DockerMachines) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    smaller = wanted.model_copy(update={"memory_mb": wanted.memory_mb // 2, "lives": True})
    machines.adjust(smaller)
    machines.adjust(smaller)
    machines.stop(wanted.id, 0, never)  # as a program ends that got too little
    with pytest.raises(InstanceExited):
        machines.adjust(smaller)
    machines.adjust(smaller.model_copy(update={"lives": False}))


def test_start_of_a_paused_container(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    sdk.pause(machine_name(wanted.id))
    machines.start(wanted.id, never)
    assert not inspect(sdk, wanted)["State"]["Paused"]


def test_stop_of_a_paused_container(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    sdk.pause(machine_name(wanted.id))
    machines.stop(wanted.id, 5, never)
    assert not inspect(sdk, wanted)["State"]["Running"]


def test_paused_program_stands_still_and_goes_on(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"])
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: sdk.logs(made))
    machines.pause(wanted.id)
    said = sdk.logs(made)
    time.sleep(0.5)
    assert sdk.logs(made) == said
    machines.resume(wanted.id)
    assert until(lambda: len(sdk.logs(made)) > len(said))
    numbers = [int(line) for line in sdk.logs(made).split()]
    assert numbers == list(range(1, len(numbers) + 1)), "the same program, with its memory"


def test_paused_program_is_asked_to_end_when_it_is_stopped(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(cmd=["/bin/sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done"])
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: sdk.logs(made))
    machines.pause(wanted.id)
    machines.stop(wanted.id, 20, never)
    assert (inspect(sdk, wanted)["State"]["ExitCode"], sdk.logs(made)) == (5, b"ready\nbye\n")


def using_30_mib(machines: DockerMachines, sdk: docker.APIClient) -> MachineSpec:
    """It has a file, and a program that holds so much memory and never ends."""
    hold = "echo kept > /file; mkfifo /f; (sleep 1000 < /f) & exec dd if=/dev/zero bs=30M of=/f"
    wanted = spec(memory_mb=64, cmd=["/bin/sh", "-c", hold])
    machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: machines.sample()[0].memory_bytes > 25 << 20)
    return wanted


def test_limits_change_in_the_kernel_while_it_runs(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(memory_mb=64)
    machines.create(wanted)
    machines.start(wanted.id, never)
    before = inspect(sdk, wanted)["State"]
    machines.adjust(wanted.model_copy(update={"vcpus": 0.5, "memory_mb": 96}))
    limits = run(
        sdk,
        wanted,
        *("/bin/sh", "-c"),
        "cd /sys/fs/cgroup; cat memory.max cpu.max 2>/dev/null || cat memory/memory.limit_in_bytes "
        "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us",
    ).split()
    assert limits == [str(96 << 20), "50000", "100000"]
    assert inspect(sdk, wanted)["State"] == before


@pytest.mark.parametrize("paused", [False, True])
def test_less_memory_than_is_used_needs_a_stop_and_ends_nothing(
    machines: DockerMachines, sdk: docker.APIClient, paused: bool
) -> None:
    wanted = using_30_mib(machines, sdk)
    if paused:
        machines.pause(wanted.id)
    smaller = wanted.model_copy(update={"memory_mb": 16})
    with pytest.raises(NeedsStop, match="uses"):
        machines.adjust(smaller)
    state = inspect(sdk, wanted)
    assert (state["State"]["Running"], state["State"]["Paused"]) == (True, paused)
    assert state["HostConfig"]["Memory"] == 64 << 20
    machines.adjust(wanted.model_copy(update={"memory_mb": 48}))
    machines.stop(wanted.id, 0, never)
    machines.adjust(smaller)
    state = inspect(sdk, wanted)
    assert (state["HostConfig"]["Memory"], state["Id"]) == (16 << 20, state["Id"])
    archive, _ = sdk.get_archive(machine_name(wanted.id), "/file")
    assert b"kept" in b"".join(archive), "what it wrote is still there"


@pytest.mark.parametrize("labels", [{}, {"io.cairn.kind": "instance", "io.cairn.generation": "1"}])
def test_strangers_container_under_our_name_survives(
    machines: DockerMachines, sdk: docker.APIClient, labels: dict[str, str]
) -> None:
    wanted = spec()
    foreign = sdk.create_container(engine.IMAGE, name=machine_name(wanted.id), labels=labels)
    try:
        sdk.start(foreign["Id"])
        with pytest.raises(ForeignObject) as refused:
            machines.create(wanted)
        assert refused.value.details["name"] == machine_name(wanted.id)
        with pytest.raises(NotFound):
            machines.start(wanted.id, never)
        machines.stop(wanted.id, 0, never)
        machines.delete(wanted.id)
        assert machines.inventory() == []
        found = inspect(sdk, wanted)
        assert (found["Id"], found["State"]["Running"]) == (foreign["Id"], True)
    finally:
        sdk.remove_container(foreign["Id"], force=True)


def test_delete_of_a_running_container_beside_another_delete(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = ignoring_term(machines, sdk)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: machines.delete(wanted.id), range(4)))
    assert machines.inventory() == []


def test_engines_refusal_is_final(machines: DockerMachines) -> None:
    with pytest.raises(EngineRefused, match=r"[Mm]emory") as refused:
        machines.create(spec(memory_mb=1))
    assert not refused.value.retryable
    assert machines.inventory() == []


def test_copy_of_a_machine_of_ours_is_not_ours(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    machines.create(wanted)
    repository = f"cairn-copy-{uuid4().hex[:8]}"
    sdk.commit(machine_name(wanted.id), repository=repository, tag="latest")
    copy = sdk.create_container(f"{repository}:latest")
    try:
        assert sdk.inspect_container(copy["Id"])["Config"]["Labels"]["io.cairn.id"] == str(wanted.id)
        assert [machine.id for machine in machines.inventory()] == [wanted.id]
        machines.delete(wanted.id)
        assert machines.inventory() == []
        assert sdk.inspect_container(copy["Id"])["Id"] == copy["Id"]
    finally:
        sdk.remove_container(copy["Id"], force=True)
        sdk.remove_image(f"{repository}:latest", force=True)


def test_usage_of_a_busy_loop_is_its_limit_and_of_an_idle_one_nothing(machines: DockerMachines) -> None:
    busy, idle = spec(vcpus=0.2, cmd=["/bin/sh", "-c", "while :; do :; done"]), spec()
    for wanted in (busy, idle):
        machines.create(wanted)
        machines.start(wanted.id, never)
    before = {reading.id: reading for reading in machines.sample()}
    time.sleep(3)
    after = {reading.id: reading for reading in machines.sample()}
    used = {id: (after[id].cpu_seconds - then.cpu_seconds) / (after[id].at - then.at) for id, then in before.items()}
    assert 0.02 < used[busy.id] < 0.25, "what it may have, or less on a machine that has none to give"
    assert used[idle.id] < 0.01
    assert 0 < after[idle.id].memory_bytes < 64 << 20
    assert after[busy.id].pids >= 1


def test_usage_counts_what_a_machine_sends(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    (before,) = machines.sample()
    run(sdk, wanted, "ping", "-c", "3", "-i", "0.1", "-W", "1", "-s", "1000", "172.17.0.1")
    (after,) = machines.sample()
    assert after.tx_bytes - before.tx_bytes >= 3000


def test_usage_of_many_is_read_in_one_round_and_leaves_no_connection(machines: DockerMachines) -> None:
    many = [spec(memory_mb=16) for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(machines.create, many))
        list(threads.map(lambda wanted: machines.start(wanted.id, never), many))
    machines.sample()
    before = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    assert {reading.id for reading in machines.sample()} == {wanted.id for wanted in many}
    assert time.monotonic() - began < 6, "one after another it would be eight seconds"
    assert len(os.listdir("/proc/self/fd")) <= before


def test_inventory_inspects_nothing_that_was_just_started_and_sees_an_update_all_the_same(
    machines: DockerMachines, sdk: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(memory_mb=64)
    machines.create(wanted)
    machines.start(wanted.id, never)
    inspected: list[str] = []
    inspect_container = machines._client.inspect_container

    def note(engine_id: str) -> Any:
        inspected.append(engine_id)
        return inspect_container(engine_id)

    monkeypatch.setattr(machines._client, "inspect_container", note)
    (found,) = machines.inventory()
    assert (found.memory_mb, found.vcpus, found.image, inspected) == (64, wanted.vcpus, wanted.image, [])
    sdk.update_container(machine_name(wanted.id), mem_limit="128m", memswap_limit="128m")
    assert until(lambda: [machine.memory_mb for machine in machines.inventory()] == [128])
    assert inspected == [found.engine_id]
