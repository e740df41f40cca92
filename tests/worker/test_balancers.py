"""What agents count of their balancers, over every process that a reload has started."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest

from model import haproxy
from model.balancers import BalancerReading, ServerReading
from model.errors import EngineUnavailable
from model.metrics import REGISTRY
from worker import balancers
from worker.balancers import BalancerReadings, Counted

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


@pytest.mark.parametrize("away", ["api", "engine"])
async def test_what_was_not_told_in_time_is_not_told_as_of_another_interval(
    monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """An interval has some 20 readings of one request each; 100 and more pass while somebody is away."""
    monkeypatch.setattr(balancers, "READ_SECONDS", 0.01)
    monkeypatch.setattr(balancers, "SAMPLE_SECONDS", 0.2)
    told: list[int] = []
    is_away = asyncio.Event()
    count = itertools.count(1)

    def read() -> list[BalancerReading]:
        now = reading(next(count))
        if away == "engine" and is_away.is_set():
            raise EngineUnavailable("away")
        return [now]

    def answer(request: httpx.Request) -> httpx.Response:
        if away == "api" and is_away.is_set():
            raise httpx.ConnectError("away")
        body = json.loads(request.content)
        if "at" in body:
            told.append(body["balancers"][0]["requests"])
        return httpx.Response(204)

    client = httpx.AsyncClient(base_url="http://api", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(balancers, "api_client", lambda *_: client)
    host: Any = SimpleNamespace(read=read)
    membership: Any = None
    running = asyncio.create_task(BalancerReadings(membership, {UUID(int=1): host}).run())

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(told)

    await until(lambda: len(told) > 2)
    is_away.set()
    began = next(count)
    await until(lambda: next(count) > began + 200)
    before = len(told)
    is_away.clear()
    await until(lambda: len(told) > before + 2)
    running.cancel()
    assert max(told) < 100, told
