"""The program as a process: start-up, help, pipes, colours, Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module

import pytest

from cli.commands import COMMANDS
from cli.errors import Exit
from tests.cli.fake import INSTANCE, WORKFLOW, Answer, FakeApi, cairn, instance, step, workflow

PROGRAM = [sys.executable, "-c", "from cli.main import app; app(prog_name='cairn')"]


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], env={**os.environ, **environ}, capture_output=True, text=True, timeout=20, check=False
    )


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"cairn \d+\.\d+\.\d+\n", result.stdout)


def test_client_commands_load_no_server_libraries(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    code = (
        "import sys\nfrom cli.main import app\n"
        "try: app(['instance', 'list'])\nexcept SystemExit: pass\n"
        "names = 'sqlalchemy', 'temporalio', 'fastapi', 'docker', 'pydantic', 'websockets', 'rich', 'yaml', 'tomlkit'\n"
        "print([m for m in names if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_mistyped_command_is_a_usage_error_with_a_suggestion() -> None:
    result = cairn("instence", "list")
    assert result.exit_code == Exit.USAGE
    assert "instance" in result.stderr


def test_every_command_exists() -> None:
    for place in COMMANDS.values():
        assert hasattr(import_module(place.module), place.name), place


def test_help_of_the_program_lists_every_command_without_importing_any() -> None:
    code = "import sys; from cli.main import app\ntry: app(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    shown, _, modules = result.stdout.rpartition("\n\n")
    assert not {place.module for place in COMMANDS.values()} & set(modules.split())
    for name, place in COMMANDS.items():
        assert re.search(rf"\b{name} +{re.escape(place.help)}", shown)


def test_a_reader_that_leaves_ends_the_command_quietly(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it, Python itself drops the error
    api.on("GET /instances", Answer(200, [instance(f"web-{n}", labels={"x": "y" * 50}) for n in range(2000)]))
    for output in ("json", "table"):
        writer = subprocess.Popen(
            [*PROGRAM, "instance", "list", "--limit", "2000", "-o", output],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert writer.stdout
        assert writer.stderr
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.wait(20) == Exit.BROKEN_PIPE
        assert writer.stderr.read() == b""
        writer.stderr.close()


def test_a_piped_table_keeps_whole_lines_without_colours(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("n" * 63), instance("web", status="error")]))
    result = run("instance", "list", FORCE_COLOR="")
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == "n" * 63
    assert INSTANCE in lines[2]


def on_terminal(*args: str, **environ: str) -> str:
    """Run on a pseudo-terminal of 80 columns, and give what it showed."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *args],
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environ},
    )
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
    os.close(parent)
    process.wait(20)
    return shown.decode()


def test_colours_on_a_terminal_and_none_with_no_color(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("web", status="error")]))
    assert "\x1b[31m" in on_terminal("instance", "list")
    plain = on_terminal("instance", "list", NO_COLOR="1")
    assert "\x1b[3" not in plain
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in plain.splitlines()) <= 80


def test_steps_are_redrawn_in_place_on_a_terminal(api: FakeApi) -> None:
    going = Answer(200, workflow("running", step("instance.create", "running")))
    api.on(f"GET /workflows/{WORKFLOW}", going, going, Answer(200, workflow("completed", step("instance.create"))))
    shown = on_terminal("workflow", "wait", WORKFLOW)
    assert "\x1b[?25h" in shown, "the cursor comes back"
    assert "✓" in shown


def test_interrupting_a_wait_says_that_the_work_goes_on(api: FakeApi) -> None:
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running")))
    process = subprocess.Popen(
        [*PROGRAM, "workflow", "wait", WORKFLOW],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one system call
    )
    until = time.monotonic() + 15
    while not api.requests and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=15)
    assert process.returncode == Exit.INTERRUPTED
    assert "goes on" in shown
    assert f"cairn workflow cancel {WORKFLOW}" in shown
