"""The reference agent keeps to docs/agents.md: it works on a turn once, and tells it again from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from drivers.reference_agent import Agent
from drivers.simulated_calls import SimulatedCalls
from model.errors import AgentUnavailable
from model.streams import Call

MACHINE = uuid4()


def asked(calls: SimulatedCalls, path: Any, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of an answer."""
    said = None if body is None else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = calls.call(MACHINE, Call(port=8480, path=path, headers=named, body=said))
    try:
        return answer.status, b"".join(answer).decode()
    finally:
        answer.close()


def test_a_turn_is_worked_on_once_and_told_again_from_anywhere(tmp_path: Path) -> None:
    calls, key = SimulatedCalls(tmp_path), str(uuid4())
    assert asked(calls, "/health") == (200, '{"status": "ready"}')
    status, whole = asked(calls, "/chat", {"prompt": "$ false\none two"}, Idempotency_Key=key)
    assert status == 200 and whole.count("event: text") == 4 and whole.endswith("event: done\ndata: {}\n\n")
    events = whole.split("\n\n")
    again = asked(calls, "/chat", {"prompt": "other"}, Idempotency_Key=key, Last_Event_ID="2")
    assert again == (200, "\n\n".join(events[2:]))
    # Of an earlier life: what was whole is, what was not says so, and what is not known cannot go on.
    broken = str(uuid4())
    (tmp_path / str(MACHINE) / f"{broken}.jsonl").write_text('["text", {"text": "a"}]\n["te')
    calls = SimulatedCalls(tmp_path)
    assert asked(calls, "/chat", {"prompt": ""}, Idempotency_Key=key) == (200, whole)
    status, told = asked(calls, "/chat", {"prompt": ""}, Idempotency_Key=broken, Last_Event_ID="1")
    assert status == 200 and "id: 2\nevent: error" in told
    assert asked(calls, "/chat", {"prompt": ""}, Idempotency_Key=str(uuid4()), Last_Event_ID="1")[0] == 409
    assert asked(calls, "/cancel", {"id": str(uuid4())}) == (200, "{}")
    for wrong in ({"prompt": "a"}, {}):
        assert asked(calls, "/chat", wrong, Idempotency_Key="../etc")[0] == 400
    with pytest.raises(AgentUnavailable):
        next(_closed(calls))


def _closed(calls: SimulatedCalls) -> Any:
    """An answer whose server does not answer any more."""
    server = calls._server(MACHINE)
    server.shutdown()
    server.server_close()
    return calls.call(MACHINE, Call(port=8480, path="/health"))


def test_one_turn_at_a_time_and_a_cancel_ends_its_command(tmp_path: Path) -> None:
    agent, key = Agent(tmp_path), str(uuid4())
    turn = agent.turn(key, "$ echo begun; sleep 60\nword")
    assert turn is not None and agent.turn(key, "") is turn
    told = turn.after(0)
    assert b"event: tool\n" in next(told) and b"begun" in next(told)
    assert agent.turn(str(uuid4()), "") is None
    turn.cancel()
    rest = b"".join(told)
    assert b'"exit_code": -9' in rest and b"event: error" in rest and b"word" not in rest
