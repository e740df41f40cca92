"""Logs, figures, commands and terminals of instances on the command line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from cli.errors import Exit
from cli.terminal import Escapes
from tests.cli.fake import INSTANCE, Answer, FakeApi, FakeStreams, cairn, instance, sample

PROGRAM = [sys.executable, "-c", "from cli.main import app; app(prog_name='cairn')"]
Make = Callable[[Callable[[ServerConnection], None]], FakeStreams]


def test_logs_pass_on_every_byte(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"GET /instances/{INSTANCE}/logs", Answer(200, raw=b"one\n\xff\x00two"))
    result = cairn("instance", "logs", "web", "--tail", "5", "-f")
    assert result.exit_code == 0
    assert result.stdout_bytes == b"one\n\xff\x00two"
    assert api.requests[-1].query == {"tail": "5", "follow": "true"}
    cairn("instance", "logs", "web")
    assert api.requests[-1].query == {}


def test_logs_that_are_refused(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    error = {"code": "host_unreachable", "message": "the agent of rack-1 does not answer"}
    api.on(f"GET /instances/{INSTANCE}/logs", Answer(503, error=error))
    result = cairn("instance", "logs", "web")
    assert result.exit_code == Exit.UNREACHABLE
    assert "the agent of rack-1 does not answer" in result.stderr


def test_stats_that_are_stored(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"GET /instances/{INSTANCE}/stats", Answer(200, [sample(), sample(seconds=3600)]))
    lines = cairn("instance", "stats", "web", "--since", "24h").stdout.splitlines()
    assert "since" in api.requests[-1].query
    assert len(lines) == 3
    for expected in ("12.3 %", "3.0 MiB", "1.5 KiB"):
        assert expected in lines[1]
    assert json.loads(cairn("instance", "stats", "web", "-o", "json").stdout)[0] == sample()
    assert "since" not in api.requests[-1].query


def test_stats_live_until_they_end(streams: Make) -> None:
    def serve(connection: ServerConnection) -> None:
        for cpu in (1, 2):
            connection.send(json.dumps(sample(cpu_percent=cpu)))

    made = streams(serve)
    lines = cairn("instance", "stats", "web", "--live", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["cpu_percent"] for line in lines] == [1, 2]
    assert made.opened == [(f"/v1/ws/stats/{INSTANCE}", "secret-key")]
    assert len(cairn("instance", "stats", "web", "--live").stdout.splitlines()) == 3


def test_exec_ends_as_the_command_did(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    done = {"exit_code": 3, "stdout": "out\n", "stderr": "err\n", "truncated": True}
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(200, done))
    result = cairn("instance", "exec", "web", "--timeout", "5", "--", "ls", "-l", "a b")
    assert (result.exit_code, result.stdout) == (3, "out\n")
    assert result.stderr.startswith("err\n")
    assert "cut" in result.stderr
    assert api.requests[-1].body == {"cmd": ["ls", "-l", "a b"], "timeout": 5}
    result = cairn("instance", "exec", "web", "-o", "json", "--", "ls")
    assert json.loads(result.stdout) == done
    assert result.exit_code == 3


def test_exec_whose_output_is_cut_is_no_success_and_a_missing_program_is_told_plainly(api: FakeApi) -> None:
    said = 'OCI runtime exec failed: exec failed: exec: "nope": executable file not found in $PATH: unknown'
    cut = {"exit_code": 0, "stdout": "out\n", "stderr": "", "truncated": True}
    missing = {"exit_code": 127, "stdout": said, "stderr": "", "truncated": False}
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(200, cut), Answer(200, missing))
    result = cairn("instance", "exec", "web", "--", "cat", "large")
    assert (result.exit_code, result.stdout) == (Exit.OUTPUT_CUT, "out\n") and "1 MiB" in result.stderr
    result = cairn("instance", "exec", "web", "--", "nope")
    assert (result.exit_code, result.stdout) == (127, "")
    assert result.stderr == "error: there is no program 'nope' in the instance\n"


def test_exec_says_that_what_is_piped_is_lost(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    done = {"exit_code": 0, "stdout": "", "stderr": "", "truncated": False}
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(200, done))
    for piped, warned in ((b"hi\n", True), (b"", False)):
        result = subprocess.run(
            [*PROGRAM, "instance", "exec", "web", "--", "cat"],
            input=piped,
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert result.returncode == 0
        assert (b"bring it along as an argument" in result.stderr) is warned


def test_exec_whose_outcome_nobody_knows_says_what_to_do(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(502, error={"code": "outcome_unknown", "message": "cut off"}))
    result = cairn("instance", "exec", "web", "--", "ls")
    assert result.exit_code == Exit.FAILED
    assert "before you run it again" in result.stderr


def test_exec_is_never_sent_twice(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(0))
    assert cairn("instance", "exec", "web", "--", "ls").exit_code == Exit.UNREACHABLE
    assert len(api.seen(f"POST /instances/{INSTANCE}/exec")) == 1


@pytest.mark.parametrize(
    ("typed", "passed", "leaves"),
    [
        ([b"~."], b"", True),
        ([b"ls\r", b"~", b"."], b"ls\r", True),
        ([b"~~."], b"~.", False),
        ([b"~x~."], b"~x~.", False),
        ([b"a~."], b"a~.", False),
        ([b"\n~.more"], b"\n", True),
        ([b"~\r~."], b"~\r", True),
    ],
)
def test_the_escape_is_found_at_the_start_of_a_line_only(typed: list[bytes], passed: bytes, leaves: bool) -> None:
    escapes, got, left = Escapes(), b"", False
    for keys in typed:
        more, left = escapes.feed(keys)
        got += more
    assert (got, left) == (passed, leaves)


class Terminal:
    """The program on a pseudo-terminal of its own, 100 columns by 30 lines."""

    def __init__(self, *args: str) -> None:
        self.parent, self.child = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.child)
        self.process = subprocess.Popen(
            [*PROGRAM, "instance", "terminal", "web", *args], stdin=self.child, stdout=self.child, stderr=self.child
        )
        self.shown = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.parent, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.parent, keys)

    def until(self, expected: bytes) -> None:
        end = time.monotonic() + 15
        os.set_blocking(self.parent, False)
        while expected not in self.shown:
            assert time.monotonic() < end, self.shown
            with contextlib.suppress(BlockingIOError):
                self.shown += os.read(self.parent, 4096)
            time.sleep(0.01)

    def ended(self) -> int:
        """The exit code; the terminal must be as it was."""
        code = self.process.wait(15)
        assert termios.tcgetattr(self.child) == self.before
        return code


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*args: str) -> Terminal:
        made.append(Terminal(*args))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.parent)
        os.close(one.child)


class Shell:
    """Says that it is there, and echoes; ``q`` ends it with 7. What it was told beside is kept."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.resized = threading.Event()

    def __call__(self, connection: ServerConnection) -> None:
        connection.send(b"ready>")
        for frame in connection:
            if isinstance(frame, str):
                self.told.append(json.loads(frame))
                self.resized.set()
            elif frame == b"q":
                connection.send(json.dumps({"exit_code": 7}))
                return
            else:
                connection.send(b"<" + frame + b">")


def test_terminal_passes_keys_and_size_and_ends_as_the_command_did(
    streams: Make, terminal: Callable[..., Terminal]
) -> None:
    shell = Shell()
    made = streams(shell)
    one = terminal("--", "sh", "-c", "a b")
    one.until(b"ready>")
    url = urlsplit(made.opened[0][0])
    assert url.path == f"/v1/ws/terminal/{INSTANCE}"
    # One string, which the API splits into words as a shell does.
    assert dict(parse_qsl(url.query)) == {"columns": "100", "rows": "30", "command": "sh -c 'a b'"}
    one.type(b"\x03")
    one.until(b"<\x03>")
    one.resize(120, 40)
    one.process.send_signal(signal.SIGWINCH)
    assert shell.resized.wait(10)
    assert shell.told == [{"resize": {"columns": 120, "rows": 40}}]
    one.type(b"q")
    assert one.ended() == 7


def test_end_that_nobody_saw_is_no_success(streams: Make, terminal: Callable[..., Terminal]) -> None:
    made = streams(lambda connection: connection.send(json.dumps({"exit_code": None})))
    one = terminal()
    one.resize(0, 0)  # in time: the program takes longer to start
    assert one.ended() == 255
    asked = dict(parse_qsl(urlsplit(made.opened[0][0]).query))
    assert (asked["columns"], asked["rows"]) == ("80", "24")


def test_terminal_is_left_with_the_escape(streams: Make, terminal: Callable[..., Terminal]) -> None:
    streams(Shell())
    one = terminal()
    one.until(b"ready>")
    one.type(b"~.")
    assert one.ended() == 0


def test_terminal_is_given_back_when_the_program_is_ended(streams: Make, terminal: Callable[..., Terminal]) -> None:
    streams(Shell())
    one = terminal()
    one.until(b"ready>")
    one.process.send_signal(signal.SIGTERM)
    assert one.ended() == 128 + signal.SIGTERM


def test_terminal_is_given_back_when_the_connection_is_lost(streams: Make, terminal: Callable[..., Terminal]) -> None:
    def serve(connection: ServerConnection) -> None:
        connection.send(b"ready>")
        connection.recv()
        connection.close(1011, "the agent went away")

    streams(serve)
    one = terminal()
    one.until(b"ready>")
    one.type(b"x")
    assert one.ended() == Exit.UNREACHABLE
    one.until(b"the agent went away")


def test_an_error_in_a_close_code_is_that_error(streams: Make) -> None:
    streams(lambda connection: connection.close(4409, "invalid_state: web is stopped"))
    result = cairn("instance", "stats", "web", "--live")
    assert result.exit_code == Exit.REFUSED
    assert "error: web is stopped (invalid_state)" in result.stderr


def test_terminal_that_is_refused_says_why(streams: Make, terminal: Callable[..., Terminal]) -> None:
    made = streams(Shell())
    made.refusal = Answer(409, error={"code": "invalid_state", "message": "web is stopped"})
    one = terminal()
    assert one.ended() == Exit.REFUSED
    one.until(b"web is stopped (invalid_state)")


def test_a_pipe_is_typed_and_its_end_is_the_end_of_input(streams: Make) -> None:
    got = []

    def serve(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for frame in connection:
                got.append(frame)
                if b"\x04" in frame:
                    connection.send(b"done\n")
                    connection.send('{"exit_code": 0}')

    streams(serve)
    result = subprocess.run(
        [*PROGRAM, "instance", "terminal", "web"], input=b"~.\nls\n", capture_output=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (0, b"done\n"), result.stderr
    assert b"".join(got) == b"~.\nls\n\x04"


def test_the_end_of_input_reaches_a_program_that_listens_late(streams: Make) -> None:
    ends: list[str | bytes] = []

    def serve(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for frame in connection:
                ends.append(frame)
                if len(ends) == 3:
                    connection.send('{"exit_code": 0}')

    streams(serve)
    done = subprocess.run([*PROGRAM, "instance", "terminal", "web"], input=b"", timeout=20, check=False)
    assert done.returncode == 0
    assert ends == [b"\x04"] * 3
