"""Workflows and events on the command line."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from uuid import uuid4

import pytest

from cli import events
from cli.errors import Exit
from tests.cli.fake import WORKFLOW, Answer, FakeApi, cairn, step, workflow


def test_show_has_steps_undos_attempts_and_the_link(api: FakeApi) -> None:
    failed = step("instance.start", "failed", attempts=3, error="[bold]exited[/bold] 1")
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("failed", failed, step("instance.delete", undo=True))))
    result = cairn("workflow", "show", WORKFLOW)
    assert result.exit_code == 0
    assert api.requests[0].query == {"steps": "true"}
    for expected in ("attempt 3", "[bold]exited[/bold] 1", "undo instance.delete", "http://127.0.0.1:8233/x"):
        assert expected in result.stdout


def test_lists_are_of_a_thing_of_any_kind(api: FakeApi) -> None:
    group = str(uuid4())
    for words, path in ((["workflow", "list"], "/workflows"), (["audit", "list"], "/audit")):
        api.on("GET /autoscaling/groups", Answer(200, [{"id": group, "name": "web"}]))
        api.on(f"GET {path}", Answer(200, []))
        assert cairn(*words, "--resource", "group/web").exit_code == 0
        assert api.requests[-1].query["resource_id"] == group
        api.on(f"GET {path}", Answer(200, []))
        assert cairn(*words, "--resource", group).exit_code == 0
        assert api.requests[-1].query["resource_id"] == group
        api.on("GET /instances", Answer(200, []))
        assert cairn(*words, "--resource", "nope").exit_code == Exit.REFUSED
        unknown = cairn(*words, "--resource", "gruop/web")
        assert (unknown.exit_code, "kinds: instance, group" in unknown.stderr) == (Exit.USAGE, True)
    assert cairn("workflow", "list", "--resource", "a", "--instance", "b").exit_code == Exit.USAGE


def test_show_of_a_drain_lists_its_moves(api: FakeApi) -> None:
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running", kind="DrainHost")))
    moves = [workflow(state, id=str(uuid4()), kind="MoveInstance") for state in ("running", "completed")]
    api.on("GET /workflows", Answer(200, moves))
    shown = cairn("workflow", "show", WORKFLOW).stdout
    assert all(move["id"] in shown for move in moves)
    assert api.requests[-1].query["parent_id"] == WORKFLOW
    assert "moves" not in cairn("workflow", "show", WORKFLOW, "-o", "json").stdout


def test_wait_ends_with_the_workflows_own_end(api: FakeApi) -> None:
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("cancelled")))
    result = cairn("workflow", "wait", WORKFLOW, "-o", "json")
    assert result.exit_code == Exit.FAILED
    assert json.loads(result.stdout)["state"] == "cancelled"
    assert "(cancelled)" in result.stderr


@pytest.mark.parametrize(("end", "exit"), [("cancelled", Exit.OK), ("completed", Exit.FAILED)])
def test_cancel_succeeds_only_where_it_was_in_time(api: FakeApi, end: str, exit: Exit) -> None:
    api.on(f"POST /workflows/{WORKFLOW}/cancel", Answer(202, workflow("running")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow(end)))
    assert cairn("workflow", "cancel", WORKFLOW).exit_code == exit


def test_a_workflow_has_no_name(api: FakeApi) -> None:
    assert cairn("workflow", "show", "web").exit_code == Exit.USAGE
    assert api.requests == []


def test_list_filters(api: FakeApi) -> None:
    api.on("GET /workflows", Answer(200, [workflow("running", finished_at=None)]))
    result = cairn("workflow", "list", "--state", "running", "--kind", "ProvisionInstance")
    assert api.requests[0].query == {"limit": "50", "state": "running", "kind": "ProvisionInstance"}
    assert WORKFLOW in result.stdout


def stream(*ids: int) -> Answer:
    frames = [
        f"id: {n}\nevent: instance.running\ndata: {json.dumps({'type': 'instance.running', 'n': n})}\n\n" for n in ids
    ]
    return Answer(
        200, raw=(": keep-alive\n\n" + "".join(frames)).encode(), headers={"Content-Type": "text/event-stream"}
    )


def test_event_watch_resumes_after_the_last_event_it_saw(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.time, "sleep", lambda seconds: None)
    away = Answer(503, error={"code": "unavailable", "message": "database away"})
    api.on("GET /events", stream(1, 2), Answer(0), away, stream(3))
    result = cairn("event", "watch", "--limit", "3", "-o", "json")
    assert result.exit_code == 0
    assert [json.loads(line)["n"] for line in result.stdout.splitlines()] == [1, 2, 3]
    asked = [request.headers.get("last-event-id") for request in api.seen("GET /events")]
    assert asked == [None, "2", "2", "2"]


def test_event_watch_starts_where_it_is_told(api: FakeApi) -> None:
    api.on("GET /events", stream(8))
    result = cairn("event", "watch", "--after", "7", "--limit", "1")
    assert api.requests[0].headers["last-event-id"] == "7"
    assert "instance.running" in result.stdout


def test_event_watch_with_a_bad_key_ends(api: FakeApi) -> None:
    api.on("GET /events", Answer(401, error={"code": "unauthenticated", "message": "unknown key"}))
    assert cairn("event", "watch").exit_code == Exit.UNREACHABLE


def test_retry_waits_for_the_new_workflow(api: FakeApi) -> None:
    new = "0199b3f0-0000-7000-8000-00000000000b"
    api.on(f"POST /workflows/{WORKFLOW}/retry", Answer(202, workflow("accepted", id=new, retry_of=WORKFLOW)))
    api.on(f"GET /workflows/{new}", Answer(200, workflow("completed", id=new, retry_of=WORKFLOW)))
    result = cairn("workflow", "retry", WORKFLOW)
    assert result.exit_code == 0, result.output
    assert new in result.stdout


def test_retry_that_is_refused_says_which_is_newer(api: FakeApi) -> None:
    error = {"code": "invalid_state", "message": "it was retried already, by workflow x", "details": {}}
    api.on(f"POST /workflows/{WORKFLOW}/retry", Answer(409, error=error))
    result = cairn("workflow", "retry", WORKFLOW)
    assert result.exit_code == Exit.REFUSED
    assert "retried already" in result.stderr


def test_waiting_ends_in_time_where_the_api_takes_requests_and_says_nothing(api: FakeApi) -> None:
    over = threading.Event()
    api.serve = lambda handler: over.wait(20)  # type: ignore[assignment,method-assign,misc]
    began = time.monotonic()
    result = cairn("workflow", "wait", WORKFLOW, "--timeout", "1.5")
    took = time.monotonic() - began
    over.set()
    assert result.exit_code == Exit.TIMED_OUT
    assert took < 4


@pytest.mark.parametrize("words", [("workflow", "list"), ("audit", "list")])
def test_since_is_a_time_or_how_long_ago(api: FakeApi, words: tuple[str, str]) -> None:
    path, name = {"workflow": ("/workflows", "created_after"), "audit": ("/audit", "since")}[words[0]]
    api.on(f"GET {path}", Answer(200, []), Answer(200, []))
    assert cairn(*words, "--since", "1h").exit_code == Exit.OK
    ago = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(api.requests[-1].query[name])
    assert 3600 <= ago.total_seconds() < 3660
    written = "2026-01-31T00:00:00Z"
    assert cairn(*words, "--since", written).exit_code == Exit.OK
    assert api.requests[-1].query[name] == written
    for odd in ("1y", "0h", "yesterday", "2026-01-31", "999999999d"):
        refused = cairn(*words, "--since", odd)
        assert refused.exit_code == Exit.USAGE and f"--since {odd}: " in refused.stderr
    assert len(api.requests) == 2
