"""Streams of instances, from a client through the API and the agent to the real engine, and back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests import invariants
from tests.stack import Json, Stack, wait_for

pytestmark = pytest.mark.engine
MIB = 1 << 20
#: Writes a line when told to, through a file.
QUIET = ["sh", "-c", "echo first; echo second >&2; touch /said; tail -f /said"]
#: Writes lines of 100 bytes as fast as it can.
LOUD = ["yes", "a" * 99]
HUNDRED = 100_000_000


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A platform, at rest again after all of these tests."""
    made = Stack(simulated_hosts=1)
    try:
        yield made.start().ready()
        made.delete_all()
        invariants.settle(made)
    finally:
        made.remove()


@pytest.fixture(scope="module")
def quiet(stack: Stack) -> Json:
    return stack.running(backend="docker", cmd=QUIET)


def ws(stack: Stack, path: str, *, key: str | None = None, **more: Any) -> ClientConnection:
    known = stack.endpoint()
    url = known["api_url"].replace("http://", "ws://") + path
    headers = {"X-API-Key": key or known["api_key"]}
    return connect(url, additional_headers=headers, compression=None, proxy=None, max_size=None, **more)


def run(stack: Stack, instance: Json, cmd: str | list[str], **more: Any) -> httpx.Response:
    return stack.request("POST", f"/instances/{instance['id']}/exec", json={"cmd": cmd} | more, timeout=60)


def shell(stack: Stack, instance: Json, script: str) -> str:
    answer = run(stack, instance, ["sh", "-c", script])
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["stdout"])


@contextlib.contextmanager
def following(stack: Stack, instance: Json, **params: Any) -> Iterator[httpx.Response]:
    known = stack.endpoint()
    url = f"{known['api_url']}/instances/{instance['id']}/logs"
    headers = {"X-API-Key": known["api_key"]}
    with httpx.stream("GET", url, params={"follow": True} | params, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer


def memory(pid: int) -> int:
    """Resident memory in bytes."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def read_until(terminal: ClientConnection, text: bytes) -> bytes:
    said = b""
    while text not in said:
        message = terminal.recv(10)
        assert isinstance(message, bytes), message
        said += message
    return said


def test_logs_end_or_follow_and_come_by_websocket_too(stack: Stack) -> None:
    quiet = stack.running(backend="docker", cmd=QUIET)
    path = f"/instances/{quiet['id']}/logs"
    both = ["first", "second"]
    wait_for("it has said both", lambda: sorted(stack.request("GET", path).text.splitlines()) == both, 10)
    assert stack.request("GET", path).headers["content-type"] == "text/plain; charset=utf-8"
    assert len(stack.request("GET", path, params={"tail": 1}).text.splitlines()) == 1
    assert stack.request("GET", path, params={"tail": -1}).status_code == 422
    with following(stack, quiet, tail=0) as answer, ws(stack, f"/ws/logs/{quiet['id']}?tail=0") as socket:
        shell(stack, quiet, "echo more >> /said")
        parts = answer.iter_raw()
        assert next(parts) == b"more\n"
        assert socket.recv(5) == b"more\n"
        stack.completed(stack.act("stop", quiet))
        assert next(parts, None) is None, "the stream ends with the program"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    assert "more" in stack.request("GET", path).text, "a stopped instance still has its logs"
    refused = run(stack, quiet, "true")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")


def test_live_stats(stack: Stack, quiet: Json) -> None:
    with ws(stack, f"/ws/stats/{quiet['id']}") as socket:
        usage = json.loads(socket.recv(5))
        assert usage["memory_bytes"] > 0
        assert json.loads(socket.recv(5))["at"] > usage["at"]


def test_commands(stack: Stack, quiet: Json) -> None:
    data = run(stack, quiet, ["sh", "-c", "echo out; echo err >&2; exit 3"]).json()["data"]
    assert data == {"exit_code": 3, "stdout": "out\n", "stderr": "err\n", "truncated": False}
    assert run(stack, quiet, "echo 'two words'  more").json()["data"]["stdout"] == "two words more\n"
    data = run(stack, quiet, "dd if=/dev/zero bs=1M count=3").json()["data"]
    assert (data["exit_code"], len(data["stdout"]), data["truncated"]) == (0, MIB, True)
    late = run(stack, quiet, ["sh", "-c", "echo so far; sleep 8642"], timeout=5)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "command_timeout")
    assert late.json()["error"]["details"]["stdout"] == "so far\n"
    assert "8642" not in shell(stack, quiet, "ps | grep -v ps")
    for wrong in ({"cmd": ""}, {"cmd": []}, {"cmd": "true", "timeout": 0}, {"cmd": "echo 'open"}, {}):
        assert stack.request("POST", f"/instances/{quiet['id']}/exec", json=wrong).status_code == 422, wrong


def test_command_whose_caller_goes_is_ended(stack: Stack, quiet: Json) -> None:
    with pytest.raises(httpx.ReadTimeout):
        stack.request("POST", f"/instances/{quiet['id']}/exec", json={"cmd": "sleep 8641", "timeout": 60}, timeout=1)
    wait_for("it is ended", lambda: "8641" not in shell(stack, quiet, "ps | grep -v ps"), 5)


def test_terminals(stack: Stack, quiet: Json) -> None:
    path = f"/ws/terminal/{quiet['id']}?columns=100&rows=40"
    with contextlib.ExitStack() as together:
        several = [together.enter_context(ws(stack, path)) for _ in range(5)]
        for number, terminal in enumerate(several):
            terminal.send(b"echo $((%d+1000)); stty size\n" % number)
        for number, terminal in enumerate(several):
            assert str(number + 1000).encode() in read_until(terminal, b"40 100")
    with ws(stack, path) as terminal:
        terminal.send(json.dumps({"resize": {"columns": 77, "rows": 33}}))
        terminal.send(b"stty size\n")
        read_until(terminal, b"33 77")
        terminal.send(b"exit 9\n")
        last: Any = b""
        while isinstance(last, bytes):
            last = terminal.recv(5)
        assert json.loads(last) == {"exit_code": 9}
        with pytest.raises(ConnectionClosed) as closed:
            terminal.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    with ws(stack, path) as terminal:
        terminal.send("no JSON")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                terminal.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4422
    with ws(stack, f"{path}&name=main") as terminal:
        terminal.send(b"sleep 1; echo came $((1+1))\n")
    time.sleep(2)
    with ws(stack, f"{path}&name=main") as terminal, ws(stack, f"{path}&name=main") as other:
        assert b"sleep 1" in read_until(terminal, b"came 2")
        terminal.send(b"exit 3\n")
        for one in (terminal, other):
            last = b""
            while isinstance(last, bytes):
                last = one.recv(5)
            assert json.loads(last) == {"exit_code": 3}
    with ws(stack, f"/ws/terminal/{quiet['id']}?command=sleep%208640"):
        wait_for("it runs", lambda: "8640" in shell(stack, quiet, "ps"), 5)
    wait_for("its user has gone, and so does it", lambda: "8640" not in shell(stack, quiet, "ps | grep -v ps"), 5)


def test_who_may_not_is_told_before_the_websocket_opens(stack: Stack, quiet: Json) -> None:
    other = other_project(stack)
    absent = uuid4()
    for key, instance in ((other, quiet["id"]), (None, absent)):
        headers = {"X-API-Key": key} if key else {}
        for answer in (
            stack.request("GET", f"/instances/{instance}/logs", headers=headers),
            stack.request("POST", f"/instances/{instance}/exec", headers=headers, json={"cmd": "true"}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        for kind in ("logs", "stats", "terminal"):
            with pytest.raises(InvalidStatus) as refused:
                ws(stack, f"/ws/{kind}/{instance}", key=key)
            assert refused.value.response.status_code == 404
            assert json.loads(refused.value.response.body)["error"]["code"] == "not_found"
            assert refused.value.response.headers["x-request-id"]
    for wrong, status in (
        (f"/ws/terminal/{quiet['id']}?rows=0", 422),
        ("/ws/logs/nobody", 422),
        ("/ws/nowhere", 404),
    ):
        with pytest.raises(InvalidStatus) as refused:
            ws(stack, wrong)
        assert refused.value.response.status_code == status
        with pytest.raises(InvalidStatus) as refused:
            ws(stack, wrong, key="wrong")
        assert refused.value.response.status_code == 401


def test_engine_without_streams_is_said(stack: Stack) -> None:
    answer = stack.request("GET", f"/instances/{stack.running()['id']}/logs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsupported")


def test_browser_shows_its_key_as_a_subprotocol_and_reads_errors_as_close_codes(stack: Stack, quiet: Json) -> None:
    known = stack.endpoint()
    url = known["api_url"].replace("http://", "ws://")

    def browser(path: str, key: str) -> ClientConnection:
        return connect(url + path, subprotocols=["cairn", f"key.{key}"], proxy=None)  # type: ignore[list-item]

    with browser(f"/ws/logs/{quiet['id']}", known["api_key"]) as socket:
        assert socket.subprotocol == "cairn"
        assert b"first" in socket.recv(5)
    for path, key, code in (
        (f"/ws/logs/{quiet['id']}", "wrong", 4401),
        (f"/ws/logs/{uuid4()}", known["api_key"], 4404),
    ):
        with browser(path, key) as socket, pytest.raises(ConnectionClosed) as closed:
            socket.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def other_project(stack: Stack) -> str:
    """The key of somebody who has registered, and has a project of their own."""
    who = {"email": f"{uuid4()}@example.org", "password": "a long enough one"}
    assert stack.request("POST", "/auth/register", json=who | {"name": "Other"}).status_code == 201
    token = stack.request("POST", "/auth/login", json=who).json()["data"]["access_token"]
    made = stack.request("POST", "/auth/keys", json={"name": "other"}, headers={"X-API-Key": token})
    assert made.status_code == 201, made.text
    return str(made.json()["data"]["key"])


def test_hundred_megabytes_leave_the_api_as_small_as_it_was(stack: Stack, quiet: Json) -> None:
    loud = stack.running(backend="docker", cmd=LOUD)
    known, pids = stack.endpoint(), stack.pids()
    with contextlib.ExitStack() as together:
        slow = together.enter_context(socket.create_connection(("127.0.0.1", urlsplit(known["api_url"]).port or 0)))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asks = f"GET /v1/instances/{loud['id']}/logs?follow=true HTTP/1.1\r\nHost: a\r\nX-API-Key: {known['api_key']}"
        slow.sendall(f"{asks}\r\n\r\n".encode())  # and it never reads
        fast, second = (together.enter_context(following(stack, loud, tail=0)) for _ in range(2))
        threads = together.enter_context(ThreadPoolExecutor(1))
        beside = threads.submit(read, second, HUNDRED // 4)
        before = {name: memory(pids[name]) for name in ("api", "host_agent")}
        grew = dict.fromkeys(before, 0)
        began, total = time.monotonic(), 0
        for part in fast.iter_raw():
            total += len(part)
            grew = {name: max(grew[name], memory(pids[name]) - before[name]) for name in before}
            if total > HUNDRED:
                break
        took = time.monotonic() - began
        assert beside.result(30) > HUNDRED // 4
        shell(stack, quiet, "true")  # who never reads keeps nobody waiting
    print(
        f"{total / 1e6:.0f} MB in {took:.1f} s; grew by",
        {name: f"{grown / MIB:.1f} MiB" for name, grown in grew.items()},
    )
    stack.completed(stack.act("delete", loud))
    assert max(grew.values()) < 30 * MIB


def read(answer: httpx.Response, wanted: int) -> int:
    total = 0
    for part in answer.iter_raw():
        total += len(part)
        if total > wanted:
            break
    return total


def test_idle_terminal_lives_on_and_a_lost_agent_is_said(stack: Stack, quiet: Json) -> None:
    with ws(stack, f"/ws/terminal/{quiet['id']}", ping_interval=None) as terminal:
        read_until(terminal, b"#")
        time.sleep(2)
        terminal.send(b"echo $((40+2))\n")
        read_until(terminal, b"42")
        stack.kill("host_agent")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                terminal.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4503
    wait_for("it serves again", lambda: run(stack, quiet, "true").status_code == 200, 20)


def test_agent_stops_in_seconds_with_streams_open_and_ends_their_commands(stack: Stack, quiet: Json) -> None:
    old = stack.pids()["host_agent"]
    with following(stack, quiet, tail=0), ThreadPoolExecutor(1) as threads:
        with ws(stack, f"/ws/terminal/{quiet['id']}?command=sleep+7771") as terminal:
            running = threads.submit(run, stack, quiet, ["sleep", "7772"], timeout=60)
            wait_for("the commands", lambda: shell(stack, quiet, "ps -o args").count("sleep 777") == 2)
            os.kill(old, signal.SIGTERM)
            wait_for("the end of the agent", lambda: not Path(f"/proc/{old}").exists(), 6)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    terminal.recv(5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4503
        answer = running.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "outcome_unknown")
        assert "retry-after" not in answer.headers
    stack.wait_for_restart("host_agent", old)
    wait_for("its streams", lambda: run(stack, quiet, "true").status_code == 200)
    assert "sleep 777" not in shell(stack, quiet, "ps -o args")


def test_agent_that_is_away_is_host_unreachable(stack: Stack, quiet: Json) -> None:
    with stack.frozen("host_agent"):
        began = time.monotonic()
        answer = run(stack, quiet, "true")
        assert time.monotonic() - began < 30
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "host_unreachable")
    assert answer.headers["retry-after"]


def test_api_that_stops_ends_its_streams(stack: Stack, quiet: Json) -> None:
    with following(stack, quiet) as answer, ws(stack, f"/ws/logs/{quiet['id']}") as socket:
        parts = answer.iter_raw()
        next(parts)
        pid = stack.pids()["api"]
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert b"".join(parts) is not None, "complete, not cut"
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                socket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert time.monotonic() - began < 5
        stack.wait_for_restart("api", pid)
