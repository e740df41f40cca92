"""Tables, colours and characters: terminals of any width, pipes, locales that have little."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from cli import render
from cli.errors import Exit
from tests.cli.fake import INSTANCE, Answer, FakeApi, instance
from tests.cli.test_program import PROGRAM, on_terminal, run


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(
    monkeypatch: pytest.MonkeyPatch, columns: int, headers: list[str], rows: list[list[str]], **more: list[str]
) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    render.print_table(headers, rows, **more)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [20, 40, 80, 119, 120, 200])
def test_a_table_keeps_its_lines_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = ["NAME", "STATUS", "NOTE", "ID"]
    rows = [["n" * 63, "running", "word " * 30, INSTANCE], ["日本語" * 10, "error", "é", INSTANCE]]
    lines = shown(monkeypatch, columns, headers, rows, wide=["ID"])
    assert len(lines) == 3
    assert max(render.cells_of(line) for line in lines) <= max(columns, 22)


def test_the_widest_column_gives_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 60, ["NAME", "STATUS", "NOTE"], [["web", "running", "x" * 100]])
    assert lines[1].startswith("web   running  xxx")
    assert lines[1].endswith("…")
    assert len(lines[1]) == 60


def test_a_wide_column_goes_before_another_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 130, ["NAME", "NOTE", "ID"], [["web", "x" * 100, INSTANCE]], wide=["ID"])
    assert lines[0].split() == ["NAME", "NOTE"]
    assert lines[1].endswith("x" * 100)


@pytest.mark.parametrize("columns", [40, 60, 80, 119])
def test_ids_are_never_cut_and_names_come_before_what_is_only_read(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = ["ID", "KIND", "RESOURCE", "STATE", "ERROR"]
    rows = [[INSTANCE, "DeprovisionInstance", "n" * 63, "completed", "no_capacity"]]
    lines = shown(monkeypatch, columns, headers, rows)
    assert lines[1].startswith(INSTANCE)
    assert max(len(line) for line in lines) <= columns
    assert "DeprovisionInstance" in lines[1] or "KIND" not in lines[0]
    assert columns < 80 or "completed" in lines[1]
    named = shown(monkeypatch, columns, ["NAME", "STATE", "NOTE"], [["n" * 40, "running", "word " * 9]])
    assert named[1].startswith("n" * 40)


def test_a_pipe_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    render.print_table(["NAME", "NOTE", "ID"], [["n" * 63, "x" * 300, INSTANCE]], wide=["ID"])
    assert pipe.getvalue().splitlines()[1].split() == ["n" * 63, "x" * 300, INSTANCE]


def test_an_empty_table_is_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, 80, ["NAME", "ID"], []) == ["NAME  ID"]


def test_others_text_steers_no_terminal(api: FakeApi) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2Jx\ny\u009b31m"
    api.on("GET /instances", Answer(200, [instance(private_ip=nasty)]))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(error={"code": "x", "message": nasty})))
    for words in (["instance", "list"], ["instance", "show", INSTANCE]):
        text = run(*words).stdout
        assert "\x1b" not in text
        assert "\u009b" not in text
        assert "owned" in text
    assert len(run("instance", "list").stdout.splitlines()) == 2
    refusal = {"code": "x", "message": nasty, "details": {"fields": [{"field": nasty, "message": "\u202e" + nasty}]}}
    api.on("POST /instances", Answer(422, error=refusal))
    refused = run("instance", "launch", "web").stderr
    assert not re.search("[\x1b\u009b\u202e]", refused)
    assert "owned" in refused


@pytest.mark.parametrize(
    ("environ", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"CLICOLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_when_there_are_colours(api: FakeApi, environ: dict[str, str], terminal: bool, coloured: bool) -> None:
    api.on("GET /instances", Answer(200, [instance(status="error")]))
    text = on_terminal("instance", "list", **environ) if terminal else run("instance", "list", **environ).stdout
    assert ("\x1b[31m" in text) is coloured


def test_no_color_is_an_option_too(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance(status="error")]))
    assert "\x1b[3" not in on_terminal("--no-color", "instance", "list")
    assert "\x1b[3" not in on_terminal("instance", "list", "--no-color")


@pytest.mark.parametrize(
    "environ",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}],
)
def test_a_locale_without_the_characters_is_no_failure(api: FakeApi, environ: dict[str, str]) -> None:
    drift = {
        "kind": "changed",
        "changes": {"ports": {"expected": "ä", "actual": "日本"}},
        "detected_at": "2026-01-01T12:00:00Z",
    }
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(drift=drift)))
    done = subprocess.run(
        [*PROGRAM, "instance", "show", INSTANCE],
        env={**{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}, **environ},
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"ports " in done.stdout
    for words in (["--help"], ["instance", "--help"], ["instance", "nonsense"]):
        helped = subprocess.run(
            [*PROGRAM, *words], env={**os.environ, **environ}, capture_output=True, timeout=20, check=False
        )
        assert b"Traceback" not in helped.stderr
        assert helped.returncode in (0, Exit.USAGE)


def test_bytes_that_are_no_text_are_refused(api: FakeApi) -> None:
    done = subprocess.run([*PROGRAM, "instance", "launch", b"a\xff"], capture_output=True, timeout=20, check=False)
    assert done.returncode == Exit.USAGE
    assert b"Traceback" not in done.stderr
    assert api.requests == []


def test_no_color_holds_for_help_wherever_it_stands(api: FakeApi) -> None:
    for words in ("instance list --help --no-color", "lb --help --no-color", "--help --no-color"):
        shown = on_terminal(*words.split())
        assert "Usage" in shown and "\x1b[3" not in shown, words
