"""What an agent makes of readings, and what it keeps while the API is away."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest

from model.errors import EngineUnavailable
from model.samples import Reading
from worker import samples
from worker.identity import Membership
from worker.samples import Samples, measured

ID = uuid4()


def reading(at: float, cpu_seconds: float, engine_id: str = "e", id: UUID = ID) -> Reading:
    figures = {"memory_bytes": 5, "pids": 2, "rx_bytes": 1, "tx_bytes": 2, "read_bytes": 3, "written_bytes": 4}
    mine = {"engine_id": engine_id, "id": id, "project_id": ID, "generation": 7}
    return Reading.model_validate(mine | figures | {"at": at, "cpu_seconds": cpu_seconds})


def test_cpu_is_what_was_used_between_two_readings_of_the_same_machine() -> None:
    (found,) = measured({"e": reading(100, 50)}, [reading(110, 65)])
    assert found["cpu_percent"] == 150
    assert (found["id"], found["generation"], found["written_bytes"]) == (str(ID), 7, 4)
    assert "engine_id" not in found


@pytest.mark.parametrize(
    "before", [None, reading(100, 70), reading(110, 60), reading(120, 60)], ids=["new", "restarted", "same", "clock"]
)
def test_what_cannot_be_compared_is_left_out(before: Reading | None) -> None:
    assert measured({"e": before} if before else {}, [reading(110, 65)]) == []


class Engine:
    """Readings, at once."""

    def __init__(self, machines: int) -> None:
        self.ids = [uuid4() for _ in range(machines)]
        self.calls = 0

    def sample(self) -> list[Reading]:
        self.calls += 1
        if self.calls in (2, 3):
            raise EngineUnavailable("away") if self.calls == 2 else KeyError("never seen")
        return [reading(self.calls, self.calls, str(id), id) for id in self.ids]


class Api:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answer: Callable[[], httpx.Response] = lambda: httpx.Response(200)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.answer()
        if answer.is_success:
            self.told.append(orjson.loads(request.content))
        return answer


def agent(machines: dict[UUID, Any], monkeypatch: pytest.MonkeyPatch, api: Api) -> Samples:
    monkeypatch.setattr(samples, "FINEST", 0.1)
    monkeypatch.setattr(samples, "RETRY_SECONDS", 0.05)
    client = httpx.AsyncClient
    monkeypatch.setattr(samples.httpx, "AsyncClient", lambda **more: client(transport=httpx.MockTransport(api), **more))
    membership = Membership(
        api_url="http://api/v1",
        installation=uuid4(),
        temporal_address="",
        temporal_namespace="",
        credential="c",
        hosts=[],
        ticket_keys=[],
    )
    return Samples(membership, machines)


async def run(agent: Samples, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await agent.run()


async def test_many_machines_are_told_in_bounded_batches_and_an_engine_that_fails_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api, engine = Api(), Engine(450)
    await run(agent({uuid4(): engine}, monkeypatch, api), 3)
    assert engine.calls > 5
    assert {len(body["machines"]) for body in api.told} == {200, 50}
    first = [body for body in api.told if body["at"] == api.told[0]["at"]]
    assert len({machine["id"] for body in first for machine in body["machines"]}) == 450


async def test_outage_is_made_up_for_oldest_first_and_what_is_too_old_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api()
    away = asyncio.get_running_loop().time() + 1

    def answer() -> httpx.Response:
        if asyncio.get_running_loop().time() < away:
            raise httpx.ConnectError("away")
        return httpx.Response(200)

    api.answer = answer
    monkeypatch.setattr(samples, "BUFFERED", dt.timedelta(seconds=0.35))
    await run(agent({uuid4(): Engine(1)}, monkeypatch, api), 1.6)
    times = [body["at"] for body in api.told]
    assert times == sorted(times)
    assert 5 <= len(times) <= 12, "of sixteen intervals, those of the last of the outage and after it"


async def test_what_is_refused_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    answers = iter([httpx.Response(422), httpx.Response(503)])
    api.answer = lambda: next(answers, httpx.Response(200))
    made = agent({uuid4(): Engine(1)}, monkeypatch, api)
    await run(made, 3)
    assert len(api.told) >= 3
    assert len(made._waiting) <= 1
