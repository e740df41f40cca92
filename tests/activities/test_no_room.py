"""What is said where no host takes an instance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from activities.no_room import Asked, why
from model.base import new_id

LEAVES = new_id()
ZONE_A = {"zone": "a"}


def host(name: str, **over: Any) -> Any:
    """With room for 4 vCPU, of which 1 is held, and 1024 MiB, of which 512 are."""
    size = {"cpus": 2.0, "memory_mb": 1024, "allocated_vcpus": 1.0, "allocated_memory_mb": 512}
    shape = {"id": new_id(), "name": name, "backend": "docker", "state": "ready", "labels": {}, "capabilities": []}
    return SimpleNamespace(**shape | size | over)


def asked(**over: Any) -> Asked:
    return Asked(**{"backend": "docker", "vcpus": 1.0, "memory_mb": 1024, "labels": {}} | over)


FLEET = [
    host("one", id=LEAVES, labels={"disk": "ssd"}),
    host("two", labels={"zone": "b"}),
    host("six", backend="other"),
]


@pytest.mark.parametrize(
    ("hosts", "wanted", "said"),
    [
        (FLEET, asked(host="nohost"), "there is no host named 'nohost': see GET /v1/hosts"),
        (FLEET, asked(host="six"), "host 'six' has the engine other, not docker"),
        (FLEET, asked(host="two", labels=ZONE_A), "host 'two' does not have the label zone=a"),
        ([host("one", state="cordoned")], asked(host="one"), "host 'one' is cordoned: it takes no placements"),
        (FLEET, asked(host="two"), "host 'two' has no room for 1 vCPU and 1024 MiB: two has 3 vCPU and 512 MiB left"),
        (FLEET, asked(backend="none"), "there is no host with the engine none"),
        (FLEET, asked(labels=ZONE_A), "no docker host has the label zone=a"),
        (FLEET, asked(labels={"disk": "ssd", "zone": "b"}), "no docker host has the labels disk=ssd, zone=b"),
        (FLEET, asked(labels={"disk": "ssd"}, leaves=LEAVES), "no other docker host has the label disk=ssd"),
        (FLEET[:1], asked(leaves=LEAVES), "there is no other host with the engine docker"),
        (
            [host("one", labels=ZONE_A, state="draining"), host("two")],
            asked(labels=ZONE_A),
            "no docker host with the label zone=a takes placements: one is draining",
        ),
        (
            [host("one", allocated_vcpus=4.0), host("two"), host("six", state="cordoned")],
            asked(),
            "no docker host that takes placements has room for 1 vCPU and 1024 MiB: "
            "two has 3 vCPU and 512 MiB left, one has 0 vCPU and 512 MiB left",
        ),
    ],
)
def test_what_none_of_them_has_is_named(hosts: list[Any], wanted: Asked, said: str) -> None:
    assert why(hosts, wanted, 2.0, 1.0) == said


def test_of_a_large_fleet_the_roomiest_are_named() -> None:
    fleet = [host(f"rack-{n}", allocated_memory_mb=24 * n) for n in range(10, 40)]
    assert why(fleet, asked(), 2.0, 1.0).endswith("rack-12 has 3 vCPU and 736 MiB left, 27 more")
