"""What counts as drift."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import orjson
import pytest

from model.base import new_id
from model.drift import LONGEST_PAUSE, Drift, compare
from model.instances import OwnedMachine, Port, Status, digest_of

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PORTS = [Port(host_port=20000, container_port=80), Port(host_port=20001, container_port=53, protocol="udp")]


def machine(**more: Any) -> OwnedMachine:
    values: dict[str, Any] = {
        "engine_id": "e",
        "id": new_id(),
        "generation": 1,
        "running": True,
        "image": "a",
        "vcpus": 1,
        "memory_mb": 512,
        "ports": PORTS[::-1],
    }
    return OwnedMachine(**(values | more))


def drift(found: OwnedMachine | None, status: Status = Status.RUNNING) -> Drift | None:
    return compare(found, status=status, images=["a@sha256:1", "a"], vcpus=1, memory_mb=512, ports=PORTS, now=NOW)


def test_what_is_as_it_should_be_has_not_drifted() -> None:
    assert drift(machine()) is None
    assert drift(machine(running=False), Status.STOPPED) is None
    assert drift(machine(running=False, paused=True), Status.PAUSED) is None
    assert drift(machine(image=None, vcpus=None, memory_mb=None, ports=None)) is None


@pytest.mark.parametrize(
    ("found", "status", "kind"),
    [
        (None, "running", "missing"),
        (None, "stopped", "missing"),
        (None, "paused", "missing"),
        ({"running": False}, "running", "stopped"),
        ({"running": False}, "paused", "stopped"),
        ({"running": False, "paused": True}, "running", "paused"),
        ({"running": False, "paused": True}, "stopped", "paused"),
        ({}, "stopped", "running"),
        ({}, "paused", "running"),
    ],
)
def test_state_that_differs(found: dict[str, Any] | None, status: str, kind: str) -> None:
    seen = drift(machine(**found) if found is not None else None, Status(status))
    assert seen is not None
    assert (seen.kind, seen.changes) == (kind, {})


@pytest.mark.parametrize(
    ("field", "actual"), [("image", "b"), ("vcpus", 0.5), ("memory_mb", 300), ("ports", PORTS[:1])]
)
def test_field_that_differs_is_named_with_both_values(field: str, actual: Any) -> None:
    seen = drift(machine(**{field: actual}))
    assert seen is not None
    assert seen.kind == "changed"
    assert list(seen.changes) == [field]
    assert seen.changes[field]["expected"] != seen.changes[field]["actual"]


def test_healing_is_tried_less_and_less_often() -> None:
    seen = drift(None)
    pauses = []
    for _ in range(10):
        assert seen is not None
        seen = seen.tried(NOW)
        assert seen.heal_after is not None
        pauses.append((seen.heal_after - NOW).total_seconds())
    assert pauses[:3] == [10, 20, 40]
    assert pauses[-1] == LONGEST_PAUSE


def test_digest_does_not_depend_on_the_order_and_shows_any_difference() -> None:
    one, two = machine(), machine()
    assert digest_of([one, two]) == digest_of([two, one])
    for change in ({"running": False}, {"memory_mb": 1}, {"generation": 2}, {"ports": []}, {"paused": True}):
        assert digest_of([one, two]) != digest_of([one, two.model_copy(update=change)])
    assert digest_of([]) != digest_of([one])


def test_agent_of_an_older_version_has_the_same_digest_for_the_same_machines() -> None:
    told = machine()
    as_it_was = {name: value for name, value in told.model_dump(mode="json").items() if name != "paused"}
    line = orjson.dumps(as_it_was, option=orjson.OPT_SORT_KEYS)
    assert digest_of([told]) == hashlib.sha256(line).hexdigest()
