"""What the platform remembers, on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import WHEN, Answer, FakeApi, cairn


def kept(value: Any) -> dict[str, Any]:
    return {"key": "editor", "value": value, "updated_at": WHEN}


@pytest.mark.parametrize(("typed", "sent"), [('{"theme": "dark"}', {"theme": "dark"}), ("vim", "vim"), ("7", 7)])
def test_what_is_json_is_kept_as_that_and_all_else_as_text(api: FakeApi, typed: str, sent: Any) -> None:
    api.on("PUT /preferences/editor", Answer(200, kept(sent)))
    result = cairn("preference", "set", "editor", typed)
    assert (result.exit_code, typed in result.stdout) == (0, True)
    (asked,) = api.seen("PUT /preferences/editor")
    assert asked.body == {"value": sent}


def test_list_show_and_rm(api: FakeApi) -> None:
    api.on("GET /preferences", Answer(200, [kept("vim")]))
    api.on("GET /preferences/editor", Answer(200, kept("vim")))
    api.on("DELETE /preferences/editor", Answer(204, raw=b""))
    assert "vim" in cairn("preference", "list").stdout
    assert json.loads(cairn("preference", "show", "editor", "-o", "json").stdout)["value"] == "vim"
    assert cairn("preference", "rm", "editor").exit_code == 0
    assert len(api.seen("DELETE /preferences/editor")) == 1


def test_one_that_is_not_there_says_where_to_look(api: FakeApi) -> None:
    missing = {"code": "not_found", "message": "there is no preference 'none'"}
    api.on("GET /preferences/none", Answer(404, error=missing))
    result = cairn("preference", "show", "none")
    assert (result.exit_code, "cairn preference list" in result.stderr) == (Exit.NOT_FOUND, True)
