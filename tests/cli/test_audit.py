"""The audit log on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli.errors import Exit
from tests.cli.fake import WHEN, Answer, FakeApi, cairn

HASH = "ab" * 32


def row(**over: Any) -> dict[str, Any]:
    return {
        "at": WHEN,
        "actor": "key:laptop",
        "action": "instances:create",
        "operation": "POST /v1/instances",
        "outcome": "allowed",
        "code": None,
        "resource_type": "instance",
        "resource_id": "i-1",
        "address": "192.0.2.1",
        **over,
    }


def verdict(**over: Any) -> dict[str, Any]:
    head = {"position": 7, "hash": HASH}
    return {"verified": True, "entries": 9, "sealed": 7, "head": head, "broken": None, **over}


def test_list_asks_for_what_is_wanted_and_shows_why_something_was_denied(api: FakeApi) -> None:
    api.on("GET /audit", Answer(200, [row(outcome="denied", code="forbidden"), row()]))
    result = cairn("audit", "list", "--actor", "key:laptop", "--outcome", "denied", "--platform")
    (asked,) = api.seen("GET /audit")
    assert (asked.query["actor"], asked.query["outcome"], asked.query["platform"]) == ("key:laptop", "denied", "true")
    assert "since" not in asked.query
    assert "denied: forbidden" in result.stdout and "instance i-1" in result.stdout


def test_what_has_a_name_is_shown_by_it(api: FakeApi) -> None:
    named = [{"before": {"name": "old"}, "after": {"name": "new"}}, {"before": {"name": "gone"}, "after": None}]
    api.on("GET /audit", Answer(200, [row(**one) for one in named]))
    shown = cairn("audit", "list").stdout
    assert "instance new" in shown and "instance gone" in shown and "i-1" not in shown


def test_verify_prints_the_head_that_is_to_be_kept(api: FakeApi) -> None:
    api.on("POST /audit/verify", Answer(200, verdict()))
    result = cairn("audit", "verify", "--head", f"3:{HASH}")
    (asked,) = api.seen("POST /audit/verify")
    assert asked.body == {"remembered": {"position": 3, "hash": HASH}}
    assert result.exit_code == Exit.OK and f"7:{HASH}" in result.stdout


def test_verify_fails_where_the_log_is_broken(api: FakeApi) -> None:
    broken = {"position": 3, "audit_id": "a-3", "what": "changed"}
    api.on("POST /audit/verify", *[Answer(200, verdict(verified=False, broken=broken))] * 2)
    result = cairn("audit", "verify")
    assert result.exit_code == Exit.FAILED and "changed, at position 3, row a-3" in result.stdout
    result = cairn("audit", "verify", "-o", "json")
    assert result.exit_code == Exit.FAILED and json.loads(result.stdout)["broken"] == broken


def test_a_head_that_is_none_is_not_sent(api: FakeApi) -> None:
    assert cairn("audit", "verify", "--head", HASH).exit_code == Exit.USAGE


def test_export_is_whole_or_fails(api: FakeApi, tmp_path: Path) -> None:
    end = {"end": {"entries": 1, "head": {"position": 1, "hash": HASH}}}
    lines = [json.dumps(one, separators=(",", ":")) + "\n" for one in ({"entry": {}, "position": 1}, end)]
    api.on("GET /audit/export", Answer(raw="".join(lines).encode()), Answer(raw=lines[0].encode()))
    path = tmp_path / "audit.ndjson"
    result = cairn("audit", "export", str(path))
    assert result.exit_code == Exit.OK and f"1 entries; head 1:{HASH}" in result.stderr
    assert path.read_text() == "".join(lines)
    again = cairn("audit", "export", str(path))
    assert again.exit_code == Exit.USAGE and "--force" in again.stderr
    assert path.read_text() == "".join(lines)
    result = cairn("audit", "export")
    assert result.exit_code == Exit.FAILED and "not whole" in result.stderr


def test_file_that_cannot_be_made_is_refused_before_anything_is_asked(api: FakeApi, tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "a", tmp_path):
        result = cairn("audit", "export", str(path))
        assert result.exit_code == Exit.USAGE, path
        assert str(path) in result.stderr and len(result.stderr.splitlines()) == 1
    assert api.requests == []
