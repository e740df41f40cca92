"""``--watch``: shown again when something happened, and not before; on a terminal and in pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, instance, step, workflow
from tests.cli.test_program import PROGRAM

OTHER = "0199b3f0-0000-7000-8000-000000000009"
#: Ctrl-C reaches a child: a shell starts what runs in its background with it ignored.
INTERRUPTIBLE = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


class Happening:
    """Makes the events of an API happen: its stream stays open, and ``now`` writes one more."""

    def __init__(self, api: FakeApi) -> None:
        self.connected = threading.Event()
        self.ended = threading.Event()
        self.count = 0
        self.open: list[BaseHTTPRequestHandler] = []
        scripted = api.serve

        def serve(handler: BaseHTTPRequestHandler) -> None:
            if handler.path != "/v1/events":
                scripted(handler)
                return
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.end_headers()
            handler.wfile.write(b"retry: 1000\nid: 0-0-0\n\n")
            self.open.append(handler)
            self.connected.set()
            self.ended.wait(30)

        api.serve = serve  # type: ignore[method-assign]

    def now(self) -> None:
        self.count += 1
        for handler in self.open:
            handler.wfile.write(b'id: 0-0-%d\nevent: instance.changed\ndata: {"type": "x"}\n\n' % self.count)


@pytest.fixture
def happening(api: FakeApi) -> Iterator[Happening]:
    made = Happening(api)
    yield made
    made.ended.set()


class Program:
    """A command under way, and what it wrote so far."""

    def __init__(self, *words: str, terminal: bool = False) -> None:
        parent, child = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [*PROGRAM, *words],
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            preexec_fn=INTERRUPTIBLE,  # noqa: PLW1509 - one system call
        )
        os.close(child)
        self.shown = ""
        threading.Thread(target=self._read, args=(parent,), daemon=True).start()

    def _read(self, parent: int) -> None:
        while True:
            try:
                more = os.read(parent, 4096)
            except OSError:
                return
            if not more:
                return
            self.shown += more.decode()

    def until(self, holds: Callable[[str], bool]) -> None:
        given_up = time.monotonic() + 15
        while not holds(self.shown):
            assert time.monotonic() < given_up, self.shown
            time.sleep(0.02)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(15)


def rows(api: FakeApi, *found: dict[str, Any]) -> None:
    api.scripts["GET /instances"].clear()
    api.on("GET /instances", Answer(200, list(found)))


def test_a_pipe_gets_what_changed(api: FakeApi, happening: Happening) -> None:
    rows(api, instance("web"), instance("db", id=OTHER))
    program = Program("watch", "instance", "list")
    program.until(lambda shown: shown.count("\n") == 3)
    assert happening.connected.wait(15)
    rows(api, instance("web", status="stopping"), instance("db", id=OTHER))
    happening.now()
    program.until(lambda shown: "stopping" in shown)
    rows(api, instance("web", status="stopping"))
    happening.now()
    program.until(lambda shown: "no longer" in shown)
    assert program.interrupt() == Exit.INTERRUPTED
    lines = [line.split()[0] for line in program.shown.splitlines()]
    assert lines == ["NAME", "db", "web", "web", "db"]
    assert program.shown.splitlines()[-1].split() == ["db", f"({OTHER})", "is", "no", "longer", "listed"]


def test_a_pipe_gets_data_line_by_line(api: FakeApi, happening: Happening) -> None:
    rows(api, instance("web"), instance("db", id=OTHER))
    program = Program("instance", "list", "--watch", "-o", "json")
    program.until(lambda shown: shown.count("\n") == 2)
    assert happening.connected.wait(15)
    rows(api, instance("db", id=OTHER, status="stopped"))
    happening.now()
    program.until(lambda shown: shown.count("\n") == 4)
    assert program.interrupt() == Exit.INTERRUPTED
    found = [json.loads(line) for line in program.shown.splitlines()]
    assert [row.get("status", "gone") for row in found] == ["running", "running", "stopped", "gone"]


def test_show_is_watched_fact_by_fact(api: FakeApi, happening: Happening) -> None:
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance("web")))
    program = Program("instance", "show", INSTANCE, "--watch")
    program.until(lambda shown: "status: running" in shown)
    assert happening.connected.wait(15)
    api.scripts[f"GET /instances/{INSTANCE}"].clear()
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance("web", status="stopped")))
    happening.now()
    program.until(lambda shown: shown.endswith("status: stopped\n"))
    assert program.interrupt() == Exit.INTERRUPTED


def test_a_terminal_is_drawn_in_place_and_left_in_order(api: FakeApi, happening: Happening) -> None:
    rows(api, *(instance(f"web-{n}", id=f"{n:08}{OTHER[8:]}") for n in range(40)))
    program = Program("instance", "list", "--watch", terminal=True)
    program.until(lambda shown: "more lines" in shown)
    assert happening.connected.wait(15)
    rows(api, instance("last", status="error"))
    happening.now()
    program.until(lambda shown: "last" in shown)
    assert program.interrupt() == Exit.INTERRUPTED
    frames = program.shown.split("\x1b[H")[1:]
    assert all(frame.count("\r\n") <= 24 for frame in frames), "a frame is no higher than the terminal"
    assert "\x1b[31merror" in frames[-1]
    lines = [re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", line) for frame in frames for line in frame.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "error:" not in program.shown


def test_it_is_not_asked_again_while_nothing_happens(api: FakeApi, happening: Happening) -> None:
    rows(api, instance("web"))
    program = Program("instance", "list", "--watch")
    program.until(lambda shown: shown.count("\n") == 2)
    assert happening.connected.wait(15)
    time.sleep(2)
    assert len(api.seen("GET /instances")) <= 2, "once at first, once when the events stood"
    for _ in range(20):
        happening.now()
    time.sleep(1.5)
    assert len(api.seen("GET /instances")) <= 5, "many events at once are one look"
    program.interrupt()


def test_an_api_that_goes_away_is_waited_for(api: FakeApi, happening: Happening) -> None:
    rows(api, instance("web"))
    program = Program("instance", "list", "--watch")
    program.until(lambda shown: shown.count("\n") == 2)
    assert happening.connected.wait(15)
    away = Answer(503, error={"code": "unavailable", "message": "database away"}, headers={"Retry-After": "9"})
    api.scripts["GET /instances"].clear()
    api.on("GET /instances", *[away] * 6, Answer(200, [instance("web", status="stopped")]))
    happening.now()
    program.until(lambda shown: "trying again" in shown)
    happening.now()
    program.until(lambda shown: "stopped" in shown)
    assert program.interrupt() == Exit.INTERRUPTED


def test_what_fails_at_first_fails() -> None:
    assert cairn("instance", "list", "--watch", "--api-url", "http://127.0.0.1:9/v1").exit_code == Exit.UNREACHABLE


def test_only_what_shows_something_is_watched(api: FakeApi) -> None:
    assert cairn("watch", "instance", "rm", "web").exit_code == Exit.USAGE
    assert cairn("instance", "rm", "web", "--watch").exit_code == Exit.USAGE
    assert cairn("watch").exit_code == Exit.USAGE
    for command in (["touch", "x"], ["--", "touch", "x"]):
        assert cairn("watch", "instance", "exec", "web", *command).exit_code == Exit.USAGE
    assert cairn("watch", "instance", "list", "--").exit_code == Exit.USAGE
    assert cairn("watch", "instance").exit_code == Exit.USAGE
    assert api.requests == []


def test_interrupting_a_launch_says_that_it_goes_on(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance(status="pending")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running", step("instance.create", "running"))))
    program = Program("instance", "launch", "web", terminal=True)
    program.until(lambda shown: "instance.create" in shown)
    assert program.interrupt() == Exit.INTERRUPTED
    program.until(lambda shown: f"cairn workflow cancel {WORKFLOW}" in shown)
    assert "goes on" in program.shown
    assert program.shown.rindex("\x1b[?25h") > program.shown.rindex("\x1b[?25l"), "the cursor comes back"


def test_interrupting_the_wait_for_several_ends_it_for_all(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b", id=OTHER)]))
    for id in (INSTANCE, OTHER):
        api.on(f"POST /instances/{id}/stop", Answer(202, instance(id=id), meta={"workflow_id": id}))
        api.on(f"GET /workflows/{id}", Answer(200, workflow("running", id=id)))
    program = Program("instance", "stop", "a", "b")
    program.until(lambda shown: bool(api.seen(f"GET /workflows/{INSTANCE}")))
    assert program.interrupt() == Exit.INTERRUPTED
    program.until(lambda shown: f"workflows go on: {INSTANCE}, {OTHER}" in shown)


def test_interrupting_a_request_says_that_it_may_have_been_accepted(api: FakeApi) -> None:
    asked, held = threading.Event(), threading.Event()

    def serve(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        held.wait(30)

    api.serve = serve  # type: ignore[method-assign]
    program = Program("instance", "launch", "web")
    assert asked.wait(15)
    assert program.interrupt() == Exit.INTERRUPTED
    program.until(lambda shown: "may have accepted" in shown)
    held.set()


@pytest.mark.parametrize("words", [["event", "watch"], ["api", "/events"]], ids=" ".join)
def test_interrupting_an_event_stream_says_nothing(api: FakeApi, happening: Happening, words: list[str]) -> None:
    program = Program(*words)
    assert happening.connected.wait(15)
    happening.now()
    program.until(lambda shown: "x" in shown)
    assert program.interrupt() == Exit.INTERRUPTED
    assert "error" not in program.shown


def test_interrupting_logs_that_are_followed_says_nothing(api: FakeApi) -> None:
    held = threading.Event()
    api.on("GET /instances", Answer(200, [instance("web")]))
    scripted = api.serve

    def serve(handler: BaseHTTPRequestHandler) -> None:
        if "/logs" not in handler.path:
            scripted(handler)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"a line\n")
        held.wait(30)

    api.serve = serve  # type: ignore[method-assign]
    program = Program("instance", "logs", "web", "-f")
    program.until(lambda shown: shown == "a line\n")
    assert program.interrupt() == Exit.INTERRUPTED
    held.set()
    assert program.shown == "a line\n"


def test_the_time_out_is_for_all_of_them_together(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b", id=OTHER)]))
    for id in (INSTANCE, OTHER):
        api.on(f"POST /instances/{id}/stop", Answer(202, instance(id=id), meta={"workflow_id": id}))
        api.on(f"GET /workflows/{id}", Answer(200, workflow("running", id=id)))
    began = time.monotonic()
    assert cairn("instance", "stop", "a", "b", "--timeout", "2").exit_code == Exit.TIMED_OUT
    assert time.monotonic() - began < 3.8
