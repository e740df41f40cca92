"""Ending what was started inside a container: the engine has no call for it, and does not when its caller goes.

What we start carries a mark in its environment, which what it starts inherits. Its processes are found in /proc: a
process belongs to a container where its control group names the container's id, which nothing else can pretend.
An agent that does not share the engine's process ids (it runs in a container itself, or far away) looks from inside
the container instead, with what the image has.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import docker.errors

from drivers.docker_engine import DockerEngine, calling
from model.errors import CairnError, NotFound

MARK = "CAIRN_STREAM"
#: How long an exec may take to start.
START_SECONDS = 2.0
POLL_SECONDS = 0.02
#: In a line of /proc/<pid>/stat, after the program's name in parentheses.
_PARENT, _SESSION, _TERMINAL = 1, 3, 4
_ID = re.compile(r"[0-9a-f]{64}")
_INSIDE = (
    'for d in /proc/[0-9]*; do if grep -q "$1" "$d/environ" 2>/dev/null; then kill -s "$2" "${d#/proc/}"; fi; done'
)


def new_mark(host: UUID) -> str:
    """A mark of the agent of ``host``."""
    return f"{host}/{uuid4().hex}"


def end_forgotten(engine: DockerEngine) -> None:
    """End what an agent of this host, that was killed, had been running for somebody.

    That is what the engine itself started, with its session where it has no terminal (a terminal's kernel tells
    the others); what has left that for the background was to go on.
    """
    with calling():
        filters = {"label": engine.owner.filters(), "status": "running"}
        ours = {str(found["Id"]) for found in engine.client.containers(filters=filters)}
    mark = f"{MARK}={engine.owner.host_id}/".encode()
    leaders = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            stat, inside = _stat(pid), _container(pid)
            started = inside in ours and int(stat[_SESSION]) == pid and _container(int(stat[_PARENT])) != inside
            if started and mark in Path(f"/proc/{pid}/environ").read_bytes():
                leaders.add(pid)
    for pid in _pids() if leaders else ():
        with contextlib.suppress(OSError), _held(pid) as held:
            stat = _stat(pid)
            if (
                _container(pid) in ours
                and int(stat[_SESSION]) in leaders
                and (pid in leaders or stat[_TERMINAL] == "0")
            ):
                signal.pidfd_send_signal(held, signal.SIGKILL)


class Processes:
    """The processes of one exec."""

    def __init__(self, engine: DockerEngine, engine_id: str, exec_id: str, mark: str) -> None:
        self._engine = engine
        self._engine_id = engine_id
        self._exec_id = exec_id
        self._mark = mark

    def hang_up(self) -> None:
        """Tell the session of its terminal that the user has gone."""
        self._send(signal.SIGHUP, lambda pid, leader: _session(pid) == leader)

    def end_leader(self) -> None:
        """Kill its first process alone."""
        self._send(signal.SIGKILL, lambda pid, leader: pid == leader)

    def end(self) -> None:
        """Kill its session, and what came of it and has left it. Success where it has ended."""
        self._send(signal.SIGKILL, lambda pid, leader: _session(pid) == leader or self._is_marked(pid))

    def resize(self, columns: int, rows: int) -> None:
        """Its terminal's size; without effect where it has ended."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with calling():
                try:
                    self._engine.client.exec_resize(self._exec_id, height=rows, width=columns)
                    return
                except docker.errors.APIError:  # it has not started yet, or has ended
                    pass
            if self.exit_code() is not None:
                return
            time.sleep(POLL_SECONDS)

    def exit_code(self) -> int | None:
        """None while it runs. Raises NotFound where the container went with it."""
        found = self._inspect()
        if found is None:
            raise NotFound("the container is not on the engine any more")
        return None if found["Running"] else found["ExitCode"]

    def _leader(self) -> int | None:
        """The engine's pid of its first process; None where that has ended."""
        until = time.monotonic() + START_SECONDS
        while (found := self._inspect()) is not None:
            if found["Running"] and found["Pid"]:
                return int(found["Pid"])
            # Neither running nor ended: it is just being started.
            if found["ExitCode"] is not None or time.monotonic() > until:
                return None
            time.sleep(POLL_SECONDS)
        return None

    def _inspect(self) -> dict[str, Any] | None:
        with calling():
            try:
                found: dict[str, Any] = self._engine.client.exec_inspect(self._exec_id)
            except docker.errors.NotFound:
                return None
            return found

    def _send(self, number: signal.Signals, wanted: Callable[[int, int], bool]) -> None:
        leader = self._leader()
        if leader is None:
            return
        if not self._is_inside(leader):
            self._send_inside(number)
            return
        for pid in _pids():
            with contextlib.suppress(OSError), _held(pid) as held:
                if self._is_inside(pid) and wanted(pid, leader):
                    signal.pidfd_send_signal(held, number)

    def _is_inside(self, pid: int) -> bool:
        return _container(pid) == self._engine_id

    def _is_marked(self, pid: int) -> bool:
        return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()

    def _send_inside(self, number: signal.Signals) -> None:
        name = number.name.removeprefix("SIG")
        with contextlib.suppress(CairnError), calling():
            client = self._engine.client
            made = client.exec_create(self._engine_id, ["sh", "-c", _INSIDE, "end", self._mark, name])
            client.exec_start(made["Id"])


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    """A descriptor of the process: its number may be another's before we have looked at it."""
    held = os.pidfd_open(pid)
    try:
        yield held
    finally:
        os.close(held)


def _container(pid: int) -> str | None:
    """The id of the container that it is in."""
    try:
        found = _ID.findall(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return found[-1] if found else None  # the last: an engine may itself run in a container


def _session(pid: int) -> int:
    return int(_stat(pid)[_SESSION])


def _stat(pid: int) -> list[str]:
    """What is behind the program's name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
