"""What goes out to agents, also to those that know less."""

from __future__ import annotations

from uuid import uuid4

import pytest
from pydantic import ValidationError

from model.health import HealthCheck
from model.instances import MachineSpec

PLAIN = {"id": uuid4(), "project_id": uuid4(), "generation": 1, "name": "web", "image": "a", "vcpus": 1, "memory_mb": 1}


def test_what_says_nothing_new_is_as_an_agent_of_an_older_version_knows_it() -> None:
    told = MachineSpec.model_validate(PLAIN).model_dump(mode="json")
    assert set(told) == {*PLAIN, "pids", "env", "cmd", "ports", "labels", "fenced"}
    assert MachineSpec.model_validate(told) == MachineSpec.model_validate(PLAIN)


def test_what_does_comes_whole() -> None:
    check = HealthCheck(type="tcp", port=80, interval_seconds=3)
    new = {"restart_policy": "always", "health_check": check, "user_data": "ab", "authorized_key": "k"}
    new["caches"] = [{"id": uuid4(), "path": "/root/.npm"}]
    spec = MachineSpec.model_validate(PLAIN | new)
    assert MachineSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "check",
    [
        {},
        {"type": "ping"},
        {"type": "http"},
        {"type": "http", "port": 0},
        {"type": "http", "port": 80, "path": "ready"},
        {"type": "http", "port": 80, "path": "/a b"},
        {"type": "http", "port": 80, "path": "/a\r\nHost: b"},
        {"type": "tcp", "port": 80, "path": "/"},
        {"type": "exec"},
        {"type": "exec", "command": []},
        {"type": "exec", "command": ["a"], "port": 1},
        {"type": "exec", "command": ["a\x00"]},
        {"type": "tcp", "port": 80, "interval_seconds": 0.1},
        {"type": "tcp", "port": 80, "timeout_seconds": 0},
        {"type": "tcp", "port": 80, "retries": 0},
        {"type": "tcp", "port": 80, "start_period_seconds": float("inf")},
    ],
    ids=str,
)
def test_checks_that_make_no_sense(check: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HealthCheck.model_validate(check)
