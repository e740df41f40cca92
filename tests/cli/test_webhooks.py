"""Webhooks, events that are chosen, and the dashboard on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.errors import Exit
from cli.webhooks import NOUNS
from tests.cli.fake import HOOK, INSTANCE, WHEN, WORKFLOW, Answer, FakeApi, cairn, hook, instance

DELIVERY = "0199b3f0-0000-7000-8000-00000000000d"


def delivery(**over: Any) -> dict[str, Any]:
    return {
        "id": DELIVERY,
        "webhook_id": HOOK,
        "event_id": "1-7-1",
        "event_type": "instance.error",
        "state": "dead",
        "attempts": 8,
        "status_code": 500,
        "error": "it answered 500",
        "created_at": WHEN,
        **over,
    }


def test_create_makes_the_secret_itself_and_shows_it(api: FakeApi) -> None:
    api.on("POST /webhooks", Answer(0), Answer(201, hook()))
    result = cairn("webhook", "create", "chat", "https://example.com/hook", "-e", "instance.error", "-e", "host.")
    lost, sent = api.seen("POST /webhooks")
    assert lost.body == sent.body and lost.headers["idempotency-key"] == sent.headers["idempotency-key"]
    assert sent.body["events"] == ["instance.error", "host."] and sent.body["active"] is True
    assert sent.body["secret"].startswith("cairn_hook_")
    assert sent.body["secret"] in result.stdout
    assert "not shown again" in result.stderr


def test_create_with_a_secret_does_not_show_it(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_WEBHOOK_SECRET", "sixteen-or-more-characters")
    api.on("POST /webhooks", Answer(201, hook()))
    result = cairn("webhook", "create", "chat", "https://example.com/hook", "--inactive", "-o", "json")
    (sent,) = api.seen("POST /webhooks")
    assert (sent.body["secret"], sent.body["active"], "events" in sent.body) == (
        *("sixteen-or-more-characters", False, False),
    )
    assert "sixteen" not in result.output and json.loads(result.stdout)["id"] == HOOK


def test_refused_url_says_so(api: FakeApi) -> None:
    error = {"code": "url_refused", "message": "127.0.0.1 is no public address", "details": {}}
    api.on("POST /webhooks", Answer(422, error=error))
    result = cairn("webhook", "create", "chat", "http://127.0.0.1/")
    assert result.exit_code == Exit.REFUSED
    assert "127.0.0.1 is no public address (url_refused)" in result.stderr


def test_list_and_show(api: FakeApi) -> None:
    off = hook("old", active=False, disabled_reason="gone")
    api.on("GET /webhooks", Answer(200, [hook(), off]))
    api.on(f"GET /webhooks/{HOOK}", Answer(200, off))
    first, second = cairn("webhook", "list").stdout.splitlines()[1:]
    assert "active" in first and "instance.error, host." in first
    assert "switched off: gone" in second
    assert "switched off: gone" in cairn("webhook", "show", HOOK).stdout
    api.on("GET /webhooks", Answer(200, []))
    assert cairn("webhook", "show", "chat", "-o", "json").exit_code == Exit.OK


def test_update_sends_what_is_named(api: FakeApi) -> None:
    api.on("GET /webhooks", Answer(200, [hook()]))
    api.on(f"PATCH /webhooks/{HOOK}", Answer(200, hook(version=2)))
    assert cairn("webhook", "update", "chat", "--active", "-e", "*").exit_code == Exit.OK
    (sent,) = api.seen(f"PATCH /webhooks/{HOOK}")
    assert sent.body == {"active": True, "events": ["*"]}
    assert cairn("webhook", "update", "chat").exit_code == Exit.USAGE


def test_rm_whose_answer_is_lost_is_done(api: FakeApi) -> None:
    api.on("GET /webhooks", Answer(200, [hook()]))
    api.on(f"DELETE /webhooks/{HOOK}", Answer(0), Answer(404, error={"code": "not_found", "message": "gone"}))
    assert cairn("webhook", "rm", "chat").exit_code == Exit.OK


def test_deliveries_and_once_more(api: FakeApi) -> None:
    api.on("GET /webhooks", Answer(200, [hook()]))
    api.on(f"GET /webhooks/{HOOK}/deliveries", Answer(200, [delivery()]))
    api.on(f"POST /webhooks/{HOOK}/deliveries/{DELIVERY}/redeliver", Answer(200, delivery(state="pending")))
    shown = cairn("webhook", "deliveries", "chat", "--state", "dead").stdout
    assert api.seen(f"GET /webhooks/{HOOK}/deliveries")[0].query["state"] == "dead"
    for expected in ("instance.error", "dead", "it answered 500", DELIVERY):
        assert expected in shown
    assert "is sent again" in cairn("webhook", "redeliver", "chat", DELIVERY).stderr


def frames(*types: str) -> Answer:
    data = "".join(f'id: {n}\nevent: {t}\ndata: {{"type": "{t}"}}\n\n' for n, t in enumerate(types, start=1))
    return Answer(200, raw=data.encode(), headers={"Content-Type": "text/event-stream"})


def test_events_are_chosen_by_resource_and_type(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on("GET /events", frames("instance.running", "cut"))
    result = cairn("events", "-f", "--resource", "web", "--type", "instance.", "--limit", "1", "-o", "json")
    assert json.loads(result.stdout)["type"] == "instance.running"
    (asked,) = api.seen("GET /events")
    assert asked.query == {"type": "instance.", "resource_id": INSTANCE}
    assert "last-event-id" not in asked.headers


def test_events_without_follow_are_those_there_were(api: FakeApi) -> None:
    api.on("GET /events", frames("instance.running", "instance.stopped"))
    result = cairn("events", "-o", "json")
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()] == ["instance.running", "instance.stopped"]
    assert api.seen("GET /events")[0].headers["last-event-id"] == "0-0-0"
    assert len(api.requests) == 1


def test_dashboard(api: FakeApi) -> None:
    running = {
        "id": WORKFLOW,
        "kind": "ProvisionInstance",
        "state": "running",
        "resource_type": "instance",
        "resource_id": INSTANCE,
        "name": "web",
        "created_at": WHEN,
    }
    summary = {
        "resources": {"instances": {"total": 5, "by_state": {"stopped": 2, "running": 3}}},
        "workflows": {"accepted": 0, "running": 1, "failed_24h": 2},
        "running_workflows": [running],
        "hosts": {"total": 2, "by_state": {"ready": 2}, "reachable": 1},
        "capacity": {"vcpus": 16, "memory_mb": 32768},
        "allocatable": {"vcpus": 64, "memory_mb": 1032768},
        "allocated": {"vcpus": 2.5, "memory_mb": 1024},
    }
    api.on("GET /dashboard/summary", Answer(200, summary))
    shown = cairn("dashboard").stdout
    for expected in (
        *("5 (3 running, 2 stopped)", "1 running, 0 accepted, 2 failed in 24 h", "2 (2 ready); 1 reachable"),
        *("2.5 held of 64", "1024 held of 1032768 MiB", "ProvisionInstance", "instance web"),
    ):
        assert expected in shown
    assert json.loads(cairn("dashboard", "-o", "json").stdout) == summary


def test_events_that_never_come_are_warned_of(api: FakeApi) -> None:
    api.on("POST /webhooks", Answer(201, hook()))
    url = "https://example.com/hook"
    told = cairn("webhook", "create", "chat", url, "-e", "bogus.type", "-e", "instance.", "-e", "*")
    assert told.exit_code == 0
    assert told.stderr.count("warning") == 1 and "'bogus.type'" in told.stderr


def test_the_beginnings_of_events_are_those_of_the_page_about_them() -> None:
    page = Path("docs/events.md").read_text()
    rows = page.partition("| begins with |")[2].partition("## Streams")[0].splitlines()
    assert {noun for row in rows for noun in re.findall(r"`([a-z_]+)\.`", row)} == set(NOUNS)


def test_what_never_comes_is_warned_of_where_it_was_accepted_alone(api: FakeApi) -> None:
    api.on("POST /webhooks", Answer(422, error={"code": "validation_failed", "message": "no"}), Answer(201, hook()))
    for option, warned in (("--event", False), ("--type", True)):
        told = cairn("webhook", "create", "chat", "https://example.com/hook", option, "nope").stderr
        assert ("no event begins as" in told) is warned
    assert [sent.body["events"] for sent in api.seen("POST /webhooks")] == [["nope"], ["nope"]]
