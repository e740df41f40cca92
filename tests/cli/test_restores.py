"""Decisions about what differs since a restore, on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, workflow

ANOTHER = "0199b3f0-0000-7000-8000-0000000000aa"
RESTORE = "/operations/restore"


def difference(id: str, kind: str, *, blocks: bool = True) -> dict[str, Any]:
    return {"kind": kind, "id": id, "name": "web", "blocks": blocks}


@pytest.fixture
def restored(api: FakeApi) -> FakeApi:
    differences = [difference(INSTANCE, "machine_without_row"), difference(ANOTHER, "row_without_run")]
    api.on(f"GET {RESTORE}", Answer(200, {"state": "restored", "differences": differences}))
    for verb in ("adopt", "forget", "discard"):
        for id in (INSTANCE, ANOTHER):
            api.on(f"POST {RESTORE}/{id}/{verb}", accepted({"id": id, "name": "web"}))
    api.on(f"POST {RESTORE}/finish", accepted({"id": ANOTHER, "name": "restore"}))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    return api


@pytest.mark.parametrize(("verb", "id"), [("adopt", INSTANCE), ("forget", ANOTHER)])
def test_all_are_those_that_it_can_be_done_to(restored: FakeApi, verb: str, id: str) -> None:
    result = cairn("restore", verb, "--all")
    assert result.exit_code == Exit.OK, result.stderr
    posts = [request.path for request in restored.requests if request.method == "POST"]
    assert posts == [f"{RESTORE}/{id}/{verb}"]
    assert f"{verb} web: done" in result.stderr


@pytest.mark.parametrize("words", [("adopt", INSTANCE), ("discard", INSTANCE), ("forget", ANOTHER), ("finish",)])
def test_what_is_not_waited_for_says_how_to(restored: FakeApi, words: tuple[str, ...]) -> None:
    result = cairn("restore", *words, "--no-wait")
    assert result.exit_code == Exit.OK, result.stderr
    assert f"accepted; wait for it: cairn workflow wait {WORKFLOW}" in result.stderr
    assert restored.seen(f"GET /workflows/{WORKFLOW}") == []


def test_nothing_named_is_nothing_done(restored: FakeApi) -> None:
    assert cairn("restore", "adopt").exit_code == Exit.USAGE
    assert not [request for request in restored.requests if request.method == "POST"]


def test_what_is_left_alone_is_sent_and_a_failed_end_is_one(restored: FakeApi) -> None:
    failed = workflow("failed", error={"code": "unresolved", "message": "1 of 2 differences is undecided"})
    restored.scripts[f"GET /workflows/{WORKFLOW}"].clear()
    restored.on(f"GET /workflows/{WORKFLOW}", Answer(200, failed))
    result = cairn("restore", "finish", "--leave", "rack-7")
    assert result.exit_code not in (Exit.OK, Exit.USAGE)
    assert "works as before" not in result.stderr
    (sent,) = restored.seen(f"POST {RESTORE}/finish")
    assert sent.body == {"leave": ["rack-7"]}
