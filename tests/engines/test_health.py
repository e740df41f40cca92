"""Looks at real containers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from drivers.docker import DockerMachines
from model.health import Checked, HealthCheck
from tests.drivers.conftest import never, spec
from tests.services import until

pytestmark = pytest.mark.engine
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
    look = machines.look(machine)
    assert look.failure is not None
    assert said in look.failure
    assert look.started_at is not None
    assert abs(look.started_at - time.time()) < 30


def test_server_that_does_not_answer_takes_no_longer_than_its_time_out(machines: DockerMachines) -> None:
    machine = checked(machines, {"type": "http", "port": 80, "timeout_seconds": 0.5}, SLOW)
    time.sleep(0.3)
    began = time.monotonic()
    assert machines.look(machine).failure == "no answer within 0.5 s"
    assert time.monotonic() - began < 2


def test_only_what_runs_is_looked_at(machines: DockerMachines) -> None:
    machine = checked(machines, {"type": "tcp", "port": 80})
    machines.pause(machine.id)
    assert machines.checked() == []
    machines.stop(machine.id, 0, never)
    assert machines.checked() == []
    assert machines.look(machine).started_at is None
