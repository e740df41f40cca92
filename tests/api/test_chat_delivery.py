"""Prompts on their way to agents, and answers back: each event once, whatever breaks, and none that is odd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from activities.runs import RunEnded
from api.agent_client import Target
from api.chat_delivery import Delivery, events_of
from drivers.simulated_calls import SimulatedCalls
from model.chat import MOST_EVENT, Turn
from model.errors import AgentFailed, InvalidState
from model.streams import Call
from model.workflows import Order
from tests.api.conftest import Api
from tests.api.test_chats import session
from tests.api.test_work_sessions import AGENT

WORDS = [f"word{number}" for number in range(20)]


class Ways:
    """To the reference agent, past agents of hosts; ``breaks``: after so many pieces, at the next answers."""

    def __init__(self, folder: Path, breaks: list[int]) -> None:
        self._calls = SimulatedCalls(folder)
        self.breaks = breaks
        self.asked: list[Call] = []

    async def open(self, target: Target, verb: str, query: Any, call: Call) -> Any:
        self.asked.append(call)
        answer = await asyncio.to_thread(self._calls.call, target.instance, call)
        most = self.breaks.pop(0) if self.breaks else 10_000

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(most):
                piece = await asyncio.to_thread(next, answer, None)
                if piece is None:
                    return
                yield piece
            raise aiohttp.ClientPayloadError("it broke off")

        it = SimpleNamespace(headers={"x-call-status": str(answer.status)}, content=SimpleNamespace(iter_any=pieces))
        return SimpleNamespace(it=it, close=answer.close)


async def turn_of(api: Api, prompt: str) -> tuple[Turn, UUID]:
    """One that has begun; and the sandbox."""
    made = await session(api)
    path = f"/v1/sessions/{made['id']}"
    answer = await api.http.post(f"{path}/chat", json={"prompt": prompt}, headers={"Accept": "application/json"})
    assert answer.status_code == 202, answer.text
    api.db.rows("UPDATE messages SET status = 'running' WHERE role = 'agent'")
    api.db.rows("UPDATE instances SET host_id = %s", api.db.hosts["one"])
    api.db.rows("UPDATE hosts SET last_seen_at = now(), agent_url = %s, fingerprint = %s", AGENT, bytes(32))
    order = Order.model_validate(api.db.one("SELECT \"order\" FROM workflows WHERE kind = 'ChatTurn'")["order"])
    return Turn(order=order, message_id=UUID(answer.json()["data"]["answer"]["id"])), UUID(made["instance_id"])


def said(api: Api) -> str:
    rows = api.db.rows("SELECT data ->> 'text' AS text FROM message_chunks ORDER BY number")
    return "".join(row["text"] for row in rows)


async def test_each_event_is_stored_once_whatever_breaks_off_and_however_many_deliver(api: Api, tmp_path: Path) -> None:
    turn, sandbox = await turn_of(api, " ".join(WORDS))
    ways = Ways(tmp_path, [3, 2])
    delivery = Delivery(SimpleNamespace(state=SimpleNamespace(engine=api.app.state.engine, agents=ways)))  # type: ignore[arg-type]
    # One of both was taken for dead, and is not.
    await asyncio.gather(delivery.deliver(turn), delivery.deliver(turn))
    assert said(api).split() == WORDS
    # Again, after its answer was lost: nothing new, and nothing was begun anew.
    await delivery.deliver(turn)
    assert said(api).split() == WORDS
    chats = [call for call in ways.asked if call.path == "/chat"]
    assert {call.headers["Idempotency-Key"] for call in chats} == {str(turn.message_id)}
    assert len(list((tmp_path / str(sandbox)).iterdir())) == 1
    # Where the turn has ended, or its sandbox, there is nothing to deliver.
    api.db.rows("UPDATE instances SET status = 'stopped'")
    with pytest.raises(InvalidState):
        await delivery.deliver(turn)
    await delivery.cancel(turn)
    api.db.rows("UPDATE messages SET status = 'failed', finished_at = now() WHERE role = 'agent'")
    with pytest.raises(RunEnded):
        await delivery.deliver(turn)


async def test_answers_are_as_long_as_they_may_be_however_well_they_compress(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, _ = await turn_of(api, " ".join(["x" * 100] * 20))
    monkeypatch.setattr("api.chat_delivery.MOST_ANSWER", 1500)
    app: Any = SimpleNamespace(state=SimpleNamespace(engine=api.app.state.engine, agents=Ways(tmp_path, [5])))
    with pytest.raises(AgentFailed, match="more than 1500 bytes"):
        await Delivery(app).deliver(turn)
    kept = api.db.one("SELECT bytes FROM messages WHERE role = 'agent'")["bytes"]
    assert 0 < kept <= 1500


async def lines(*given: bytes) -> AsyncIterator[bytes]:
    for line in given:
        yield line


async def test_what_an_agent_says_is_what_the_contract_allows() -> None:
    good = lines(
        b": here", b"", b"id: 1", b"event: text", b'data: {"text":', b'data: "a"}', b"", b"id: 2", b"event: done"
    )
    found = [event async for event in events_of(_with(good, b"data: {}", b""))]
    assert [(event.number, event.kind, event.data) for event in found] == [(1, "text", {"text": "a"}), (2, "done", {})]
    for wrong in (
        (b"id: 1", b"event: end", b"data: {}", b""),
        (b"id: 1", b"event: A b", b"data: {}", b""),
        (b"event: text", b"data: {}", b""),
        (b"id: 1", b"event: text", b"data: []", b""),
        (b"id: 1", b"event: text", b"data: {", b""),
        (b"id: 1", b"event: text", b'data: {"text": "\\u0000"}', b""),
        (b"id: 1", b"event: text", b"data: " + b"x" * (MOST_EVENT + 1)),
        (b"id: 99999999999999999999", b"event: text", b"data: {}", b""),
    ):
        with pytest.raises(AgentFailed):
            assert [event async for event in events_of(lines(*wrong))]


async def _with(first: AsyncIterator[bytes], *then: bytes) -> AsyncIterator[bytes]:
    async for line in first:
        yield line
    for line in then:
        yield line
