"""What agents count of their balancers, over every process that a reload has started."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from model import haproxy
from model.balancers import BalancerReading, ServerReading
from model.metrics import REGISTRY
from worker.balancers import Counted

TARGET = UUID(int=5)
NAME = haproxy.server_name(str(TARGET), 3)
FIGURES = ("sessions", "requests", "bytes_in", "bytes_out", "errors")


def reading(requests: int, pid: int = 7, health: str = "up") -> BalancerReading:
    figures = dict.fromkeys(FIGURES, 0) | {"requests": requests}
    server: dict[str, Any] = {"name": NAME, "health": health, "check": "L4OK", **figures}
    who = {"id": UUID(int=1), "project_id": UUID(int=2), "generation": 1}
    return BalancerReading(**who, pid=pid, servers=[ServerReading(**server)], **figures)


def test_sums_are_of_what_came_since_the_reading_before() -> None:
    counted, before = Counted(), REGISTRY.get_sample_value("cairn_lb_requests_total") or 0
    told = []
    for now in (reading(100), reading(130), reading(130), reading(20, pid=8), reading(25, pid=8)):
        counted.take(now)
        told.append(counted.told(now)["requests"])
    # Nothing is known of when the first hundred came; a new process counts from nothing.
    assert told == [0, 30, 30, 50, 55]
    (target,) = counted.told(reading(25, pid=8, health="down"))["targets"]
    assert (target["instance_id"], target["generation"], target["health"]) == (str(TARGET), 3, "down")
    assert target["requests"] == 55
    counted.sums.clear()
    counted.take(reading(26, pid=8))
    assert counted.told(reading(26, pid=8))["requests"] == 1
    assert REGISTRY.get_sample_value("cairn_lb_requests_total") == before + 56, "of the whole, and not of servers too"
