"""``cairn agent`` and ``cairn session chat``: what they send, and what they say."""

from __future__ import annotations

from typing import Any

from cli.errors import Exit
from tests.cli.fake import WHEN, Answer, FakeApi, cairn
from tests.cli.test_sessions import SESSION, session

AGENT = "0199b3f0-0000-7000-8000-0000000000b1"


def agent(**over: Any) -> dict[str, Any]:
    named = {"id": AGENT, "name": "coder", "type": "custom", "mode": None, "model": "m-1", "is_default": True}
    about = {"image": None, "cmd": ["a"], "port": 8480, "mcp_servers": [{"name": "docs"}], "created_at": WHEN}
    return {**named, **about, **over}


def test_agents_are_made_changed_listed_and_removed(api: FakeApi) -> None:
    api.on("GET /agents", Answer(200, [agent()]))
    api.on("POST /agents", Answer(201, agent()))
    api.on(f"PATCH /agents/{AGENT}", Answer(200, agent(model="m-2")))
    api.on(f"DELETE /agents/{AGENT}", Answer(204, None))
    words = ("--model", "m-1", "--mcp", "docs=https://mcp.example", "--env", "A=b", "--default")
    result = cairn("agent", "create", "coder", *words, "--", "python3", "a.py")
    assert result.exit_code == 0 and "m-1" in result.stdout, result.output
    (sent,) = api.seen("POST /agents")
    assert sent.body == {
        **{"name": "coder", "model": "m-1", "env": {"A": "b"}, "type": "custom", "cmd": ["python3", "a.py"]},
        **{"mcp_servers": [{"name": "docs", "url": "https://mcp.example"}], "is_default": True},
    }
    assert cairn("agent", "set", "coder", "--model", "m-2").exit_code == 0
    assert api.seen(f"PATCH /agents/{AGENT}")[0].body == {"model": "m-2"}
    assert cairn("agent", "set", "coder").exit_code == Exit.USAGE
    assert "coder" in cairn("agent", "list").stdout and "docs" in cairn("agent", "show", "coder").stdout
    assert cairn("agent", "rm", "coder").exit_code == 0


def test_messages_are_listed_and_a_turn_is_called_off(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    message = {"number": 2, "role": "agent", "status": "completed", "created_at": WHEN, "content": "hello\nworld"}
    api.on(f"GET /sessions/{SESSION}/messages", Answer(200, [message]))
    api.on(f"POST /sessions/{SESSION}/chat/cancel", Answer(202, {}))
    assert "hello world" in cairn("session", "messages", "work").stdout
    assert cairn("session", "chat", "work", "--cancel").exit_code == 0
    assert cairn("session", "chat", "work", "hello", "--cancel").exit_code == Exit.USAGE


def test_an_answer_is_printed_as_it_comes_and_its_failure_is_the_commands(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    api.on(f"POST /sessions/{SESSION}/chat", Answer(202, {"prompt": {"number": 3}}))
    events = b'id: 4.1\nevent: text\ndata: {"text": "hel"}\n\nid: 4.2\nevent: tool\ndata: {"name": "shell"}\n\n'
    events += b'id: 4.3\nevent: text\ndata: {"text": "lo"}\n\n'
    stream, kind = f"GET /sessions/{SESSION}/stream", {"Content-Type": "text/event-stream"}
    last = b'id: 4.4\nevent: end\ndata: {"status": "%s", "error": null}\n\n'
    api.on(stream, *(Answer(200, headers=kind, raw=events + last % end) for end in (b"completed", b"failed")))
    for code in (0, Exit.FAILED):
        result = cairn("session", "chat", "work", "hi")
        assert (result.exit_code, result.stdout) == (code, "hello"), result.output
    assert api.seen(f"POST /sessions/{SESSION}/chat")[0].body == {"prompt": "hi"}
    assert api.seen(stream)[0].headers["last-event-id"] == "3.0"
