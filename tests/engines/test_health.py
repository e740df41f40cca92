"""Looks at real containers."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from drivers import docker_health
from drivers.docker import DockerMachines
from model.health import Checked, HealthCheck
from model.lifetimes import IDLE_BYTES
from tests.drivers.conftest import never, spec
from tests.services import until

pytestmark = pytest.mark.engine
#: Other tests run on this engine too.
TRIES = 5
SLOW = "while :; do { read line; sleep 100; } | nc -l -p 80; done"


def checked(machines: DockerMachines, check: dict[str, Any], command: str | None = None) -> Checked:
    wanted = spec(health_check=HealthCheck.model_validate(check), cmd=["/bin/sh", "-c", command] if command else None)
    machines.create(wanted)
    machines.start(wanted.id, never)
    (found,) = [machine for machine in machines.checked() if machine.id == wanted.id]
    assert found.check == wanted.health_check
    return found


@pytest.mark.parametrize(
    "check",
    [
        {"type": "http", "port": 80},
        {"type": "http", "port": 80, "path": "/index.html?a=%20b"},
        {"type": "tcp", "port": 80},
        {"type": "exec", "command": ["/bin/sh", "-c", "test -e /www"]},
    ],
    ids=str,
)
def test_machine_that_is_well(machines: DockerMachines, check: dict[str, Any]) -> None:
    machine = checked(machines, check)
    assert until(lambda: machines.look(machine).failure is None)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"type": "http", "port": 80, "path": "/missing"}, "404"),
        ({"type": "http", "port": 81}, "81"),
        ({"type": "tcp", "port": 81}, "81"),
        ({"type": "exec", "command": ["/bin/sh", "-c", "echo full >&2; exit 4"]}, "exit code 4: full"),
        ({"type": "exec", "command": ["/bin/nonsense"]}, "exit code"),
        ({"type": "exec", "command": ["sleep", "100"], "timeout_seconds": 0.5}, "0.5 s"),
    ],
    ids=str,
)
def test_machine_that_is_not(machines: DockerMachines, check: dict[str, Any], said: str) -> None:
    machine = checked(machines, check)
    assert until(lambda: said in (machines.look(machine).failure or ""))  # as soon as its server listens
    look = machines.look(machine)
    assert look.started_at is not None
    assert abs(look.started_at - time.time()) < 30


def test_server_that_does_not_answer_takes_no_longer_than_its_time_out(machines: DockerMachines) -> None:
    machine = checked(machines, {"type": "http", "port": 80, "timeout_seconds": 0.5}, SLOW)
    took: list[float] = []

    def is_slow() -> bool:
        began = time.monotonic()
        failure = machines.look(machine).failure
        took.append(time.monotonic() - began)
        return failure == "no answer within 0.5 s"

    assert until(is_slow), "as soon as it listens"
    assert took[-1] < 2


def test_only_what_runs_is_looked_at(machines: DockerMachines) -> None:
    machine = checked(machines, {"type": "tcp", "port": 80})
    machines.pause(machine.id)
    assert machines.checked() == []
    machines.stop(machine.id, 0, never)
    assert machines.checked() == []
    look = machines.look(machine)
    assert (look.failure is not None, look.started_at) == (True, None)


def listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, 80)) == 0


def take_over(machines: DockerMachines, address: str) -> bool:
    """Start others until one has this address: the engine gives the lowest that is free. False: what else runs on this
    engine has it."""
    others = [spec() for _ in range(6)]
    for other in others:
        machines.create(other)
        if machines.start(other.id, never).private_ip == address:
            assert until(lambda: listens(address))
            return True
    for other in others:
        machines.delete(other.id)
    return False


@pytest.mark.parametrize("type", ["http", "tcp"])
def test_machine_that_ended_is_not_taken_for_the_one_that_has_its_address_now(
    machines: DockerMachines, type: str
) -> None:
    """Whoever comes next has the address: it may be somebody else's."""
    for _ in range(TRIES):
        machine = checked(machines, {"type": type, "port": 80}, "sleep 1000")
        assert machines.look(machine).failure is not None
        address = machines.start(machine.id, never).private_ip
        assert address is not None
        machines.stop(machine.id, 0, never)
        taken = take_over(machines, address)
        look = machines.look(machine)
        assert (look.failure is not None, look.started_at) == (True, None)
        if taken:
            return
    pytest.fail("others on this engine had the address each time")


@pytest.mark.parametrize("type", ["http", "tcp"])
def test_answer_of_who_got_the_address_during_a_look_is_not_its_own(
    machines: DockerMachines, monkeypatch: pytest.MonkeyPatch, type: str
) -> None:
    ask, taken = docker_health._ask, False

    async def too_late(check: HealthCheck, address: str) -> str | None:
        nonlocal taken
        machines.stop(machine.id, 0, never)
        taken = await asyncio.to_thread(take_over, machines, address)
        assert not taken or await ask(check, address) is None
        return None

    for _ in range(TRIES):
        machine = checked(machines, {"type": type, "port": 80})
        assert until(lambda machine=machine: machines.look(machine).failure is None)
        with monkeypatch.context() as patched:
            patched.setattr(docker_health, "_ask", too_late)
            look = machines.look(machine)
        assert (look.failure is not None, look.started_at) == (True, None)
        if taken:
            return
    pytest.fail("others on this engine had the address each time")


def test_machine_that_waits_to_be_started_again_is_not_well(machines: DockerMachines) -> None:
    wanted = spec(
        health_check=HealthCheck(type="exec", command=["true"]),
        restart_policy="always",
        cmd=["/bin/sh", "-c", "sleep 1; exit 1"],
    )
    machines.create(wanted)
    machines.start(wanted.id, never)
    (found,) = machines.checked()

    def waits() -> bool:
        assert [machine.engine_id for machine in machines.checked()] == [found.engine_id]
        look = machines.look(found)
        return look.failure is not None and look.started_at is not None

    assert until(waits)


def test_command_that_says_too_much_is_not_read_to_its_end(machines: DockerMachines) -> None:
    machine = checked(machines, {"type": "exec", "command": ["yes"], "timeout_seconds": 60})
    began = time.monotonic()
    assert "1024 KiB" in (machines.look(machine).failure or "")
    assert time.monotonic() - began < 20


def test_look_at_a_large_page_is_no_activity(machines: DockerMachines) -> None:
    """An instance that only its health check asks for something is idle."""
    command = "dd if=/dev/zero of=/www/large bs=1024 count=4096 && exec httpd -f -p 80 -h /www"
    machine = checked(machines, {"type": "http", "port": 80, "path": "/large"}, command)
    assert until(lambda: machines.look(machine).failure is None)

    def bytes_so_far() -> int:
        (reading,) = [reading for reading in machines.sample() if reading.id == machine.id]
        return reading.rx_bytes + reading.tx_bytes

    before = bytes_so_far()
    assert machines.look(machine).failure is None
    time.sleep(0.5)
    assert bytes_so_far() - before < IDLE_BYTES
