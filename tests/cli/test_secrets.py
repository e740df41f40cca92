"""Secrets on the command line: values come from stdin or a file, and are shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.errors import Exit
from cli.main import app
from tests.cli.fake import WHEN, Answer, FakeApi, accepted, cairn, instance

ID = "0199b3f0-0000-7000-8000-0000000000ab"
VALUE = "planted-7fK2qP9sV4xT"
SECRET = {
    **{"id": ID, "name": "db", "description": "", "current_version": 1, "version": 1},
    **{"created_at": WHEN, "updated_at": WHEN},
}


def piped(text: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), input=text, catch_exceptions=False)


@pytest.mark.parametrize("source", ["stdin", "file", "argument"])
def test_set_makes_a_secret(api: FakeApi, tmp_path: Path, source: str) -> None:
    file = tmp_path / "value"
    file.write_text(f"{VALUE}\n")
    api.on("GET /secrets", Answer(200, []))
    api.on("POST /secrets", Answer(201, SECRET))
    more = {"stdin": [], "file": ["--from-file", str(file)], "argument": [VALUE]}[source]
    result = piped(f"{VALUE}\n" if source == "stdin" else "", "--debug", "secret", "set", "db", *more)
    assert result.exit_code == 0, result.output
    assert api.seen("POST /secrets")[0].body == {"name": "db", "value": VALUE}
    assert VALUE not in result.output
    assert ("warning" in result.stderr) == (source == "argument")


def test_set_gives_one_that_is_there_another_version(api: FakeApi) -> None:
    api.on("GET /secrets", Answer(200, [SECRET]))
    api.on(f"POST /secrets/{ID}/rotate", Answer(200, SECRET | {"current_version": 2}))
    result = piped("two\r\nlines\r\n", "secret", "set", "db")
    assert "2" in result.stdout
    assert api.seen(f"POST /secrets/{ID}/rotate")[0].body == {"value": "two\r\nlines"}


def test_value_that_cannot_be_sent_is_not_repeated(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_bytes(VALUE.encode() + b"\xff")
    for arguments in (["--from-file", str(file)], ["--from-file", str(tmp_path / "none")], [VALUE, "--from-file", "x"]):
        result = cairn("secret", "set", "db", *arguments)
        assert result.exit_code == Exit.USAGE
        assert VALUE not in result.output
    assert piped("\n", "secret", "set", "db").exit_code == Exit.USAGE
    assert api.requests == []


def test_list_show_versions_rm_and_keys(api: FakeApi) -> None:
    api.on("GET /secrets", Answer(200, [SECRET]))
    api.on("GET /secrets/db", Answer(200, SECRET))
    version = {"id": ID, "version": 1, "created_at": WHEN, "destroyed_at": WHEN}
    api.on("GET /secrets/db/versions", Answer(200, [version]))
    api.on("DELETE /secrets/db/versions/1", Answer(204, raw=b""))
    api.on("DELETE /secrets/db", Answer(204, raw=b""))
    key = {"id": "first", "newest": True, "known": True, "data_keys": 2, "secret_versions": 7}
    api.on("GET /operations/keys", Answer(200, {"newest": "first", "keys": [key], "left": 0}))
    assert "db" in cairn("secret", "list").stdout
    assert ID in cairn("secret", "show", "db").stdout
    assert "destroyed" in cairn("secret", "versions", "db").stdout
    assert cairn("secret", "versions", "db", "--destroy", "1").exit_code == 0
    assert cairn("secret", "rm", "db").exit_code == 0
    shown = cairn("secret", "keys")
    assert "first: newest, 2 data keys, 7 values" in shown.output
    assert "can be taken away" in shown.output


def test_launch_names_secrets(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance()))
    options = ["--secret", "A=db", "--secret", "B=db@2:env", "--env", "C=x", "--no-wait"]
    result = cairn("instance", "launch", "web", *options)
    assert result.exit_code == 0, result.output
    wanted = {"A": {"secret": "db"}, "B": {"secret": "db", "version": 2, "as": "env"}, "C": "x"}
    assert api.seen("POST /instances")[0].body["env"] == wanted


@pytest.mark.parametrize("options", [["A"], ["A="], ["=db"], ["A=db@x"], ["A=db:volume"], ["A=a", "--env", "A=b"]])
def test_bad_references(api: FakeApi, options: list[str]) -> None:
    assert cairn("instance", "launch", "web", "--secret", *options).exit_code == Exit.USAGE
    assert api.requests == []
