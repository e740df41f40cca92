"""``cairn lb``: what it sends, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import INSTANCE, WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, instance, workflow

FRONT = "0199b3f0-0000-7000-8000-00000000000f"
CHECK = {"type": "http", "path": "/ready", "interval_seconds": 2, "timeout_seconds": 2, "fall": 2, "rise": 2}


def front(**over: Any) -> dict[str, Any]:
    named = {"id": FRONT, "name": "front", "status": "active", "mode": "http", "port": 80, "algorithm": "round-robin"}
    about = {"health_check": CHECK, "cookie": None, "tls": None, "drain_seconds": 30, "instance_id": INSTANCE}
    there = {"host": "rack-1", "ports": [{"host_port": 80, "container_port": 80, "protocol": "tcp"}], "error": None}
    return {**named, **about, **there, "targets": 2, "targets_up": 1, "version": 1, "created_at": WHEN, **over}


def target(**over: Any) -> dict[str, Any]:
    found = {"instance_id": INSTANCE, "name": "web", "port": 80, "weight": 100, "state": "in", "health": "up"}
    return {**found, "health_at": WHEN, "check": "L4OK", **over}


def test_create_says_what_was_asked_for_and_nothing_else(api: FakeApi) -> None:
    api.on("POST /lb", accepted(front(status="creating")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /lb/{FRONT}", Answer(200, front()))
    more = ["--check", "http:/ready", "--interval", "1", "--tls", "cert@3", "--cookie", "SRV"]
    result = cairn("lb", "create", "front", "--port", "80", *more)
    assert result.exit_code == 0, result.output
    (sent,) = api.seen("POST /lb")
    assert sent.body == {
        **{"name": "front", "port": 80, "mode": "http", "instance_type": "basic-1", "backend": "docker"},
        "health_check": {"type": "http", "path": "/ready", "interval_seconds": 1},
        **{"tls": {"secret": "cert", "version": 3}, "cookie": "SRV"},
    }
    assert "2, of which 1 are up" in result.stdout


def test_update_of_one_figure_of_a_check_keeps_the_others(api: FakeApi) -> None:
    api.on("GET /lb", Answer(200, [front()]))
    api.on(f"PATCH /lb/{FRONT}", accepted(front(status="updating")))
    assert cairn("lb", "update", "front", "--interval", "5", "--cookie", "", "--no-wait").exit_code == 0
    (sent,) = api.seen(f"PATCH /lb/{FRONT}")
    assert sent.body == {"health_check": {**CHECK, "interval_seconds": 5}, "cookie": None}
    assert cairn("lb", "update", "front").exit_code == Exit.USAGE


def test_targets_are_named_as_instances_are(api: FakeApi) -> None:
    api.on("GET /lb", Answer(200, [front()]))
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"GET /lb/{FRONT}/targets", Answer(200, [target()]))
    api.on(f"POST /lb/{FRONT}/targets", accepted(target(state="adding")))
    api.on(f"DELETE /lb/{FRONT}/targets/{INSTANCE}", accepted(target(state="draining")))
    api.on(f"PATCH /lb/{FRONT}/targets/{INSTANCE}", accepted(target(weight=5)))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    added = cairn("lb", "add", "front", "web", "--port", "80")
    assert added.exit_code == 0, added.output
    assert "up" in added.stdout
    assert cairn("lb", "weigh", "front", "web", "5").exit_code == 0
    assert cairn("lb", "remove", "front", "web", "--no-wait").exit_code == 0
    sent = api.seen(f"POST /lb/{FRONT}/targets")[0]
    assert sent.body == {"instance_id": INSTANCE, "port": 80, "weight": 100}
    api.scripts["GET /instances"].clear()
    api.on("GET /instances", Answer(200, [instance(status="error")]))
    warned = cairn("lb", "add", "front", "web", "--port", "80")
    assert warned.exit_code == 0 and "in state error: it gets requests once it runs" in warned.stderr
    assert "L4OK" in cairn("lb", "targets", "front").stdout


def test_a_target_that_is_out_is_shown_as_removed(api: FakeApi) -> None:
    api.on("GET /lb", Answer(200, [front()]))
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"GET /lb/{FRONT}/targets", Answer(200, []))
    api.on(f"DELETE /lb/{FRONT}/targets/{INSTANCE}", accepted(target(state="draining")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    removed = cairn("lb", "remove", "front", "web")
    assert removed.exit_code == 0, removed.output
    assert "removed" in removed.stdout and "draining" not in removed.stdout


def test_address_is_one_to_copy_where_its_host_is_this_machine(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(**over: Any) -> str:
        api.scripts["GET /lb"].clear()
        api.on("GET /lb", Answer(200, [front(**over)]))
        return cairn("lb", "show", "front").stdout

    monkeypatch.delenv("CAIRN_PUBLISH_ADDRESS", raising=False)
    assert "port 80 of rack-1, at its CAIRN_PUBLISH_ADDRESS" in shown()
    assert " http://127.0.0.1:80\n" in shown(host="local")
    monkeypatch.setenv("CAIRN_PUBLISH_ADDRESS", "10.0.0.5")
    assert " https://10.0.0.5:80\n" in shown(host="local", tls={"secret": "x"})
    assert " 10.0.0.5:80\n" in shown(host="local", mode="tcp")


def test_weight_that_is_no_number_is_told_plainly(api: FakeApi) -> None:
    for weight in ("abc", "257"):
        told = cairn("lb", "weigh", "front", "web", weight)
        assert told.exit_code == Exit.USAGE and "expected a share of the requests" in " ".join(told.stderr.split())
    assert not api.requests


def test_one_that_is_not_there(api: FakeApi) -> None:
    api.on("GET /lb", Answer(200, []))
    missing = cairn("lb", "show", "other")
    assert missing.exit_code == Exit.NOT_FOUND
    assert "cairn lb list" in missing.stderr
