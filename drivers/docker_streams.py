"""Streams of containers on a Docker engine."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal
from uuid import UUID

import docker.errors
import orjson

from drivers import docker_usage
from drivers.docker_channel import Channel, frames
from drivers.docker_engine import CONFLICT, NOT_FOUND, DockerEngine, calling, said
from drivers.docker_processes import MARK, Processes, end_forgotten, new_mark
from drivers.ownership import Owner, machine_name
from drivers.streams import NO_MORE, Output, Usage, check_path
from model.errors import CairnError, CommandTimeout, EngineUnavailable, InvalidState, NotFound, OutcomeUnknown

#: What the engine calls the two channels of output.
_CHANNELS: dict[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}
#: Between telling a terminal's program that its user has gone and ending it.
HANG_UP_SECONDS = 1.0
FIRST_POLL_SECONDS, POLL_SECONDS = 0.001, 0.02
_SHELL = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash; exec sh"]


class DockerStreams:
    """The stream port on one Docker engine, for one owner."""

    name = "docker"

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID) -> None:
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))

    def logs(self, machine: UUID, *, tail: int | None, follow: bool) -> DockerLogs:
        query = {"stdout": 1, "stderr": 1, "follow": int(follow), "tail": "all" if tail is None else tail}
        return DockerLogs(Channel(self._engine, "GET", f"/containers/{self._find(machine)}/logs", query=query))

    def stats(self, machine: UUID) -> DockerStats:
        found = self._find(machine, running=True)
        return DockerStats(Channel(self._engine, "GET", f"/containers/{found}/stats", query={"stream": 1}))

    def run(
        self, machine: UUID, argv: list[str], *, timeout_seconds: float, env: Mapping[str, str] = NO_MORE
    ) -> DockerCommand:
        processes, channel = self._exec(machine, argv, env, terminal=False)
        return DockerCommand(channel, processes, timeout_seconds)

    def terminal(
        self, machine: UUID, argv: list[str] | None, *, columns: int, rows: int, env: Mapping[str, str] = NO_MORE
    ) -> DockerTerminal:
        processes, channel = self._exec(machine, argv or _SHELL, env, terminal=True)
        made = DockerTerminal(self._engine, channel, processes)
        try:
            made.resize(columns, rows)
        except BaseException:
            with contextlib.suppress(CairnError):
                made.close()
            raise
        return made

    def get(self, machine: UUID, path: str) -> DockerBytes:
        query = {"path": check_path(path)}
        try:
            return DockerBytes(Channel(self._engine, "GET", f"/containers/{self._find(machine)}/archive", query=query))
        except NotFound:
            raise NotFound(f"{machine_name(machine)} has no {path}") from None

    def put(self, machine: UUID, path: str, archive: Iterable[bytes]) -> None:
        engine_id, into = self._find(machine), check_path(path)
        with calling():
            try:
                # A generator is sent in chunks, as it comes; a list would be taken for a form.
                self._engine.client.put_archive(engine_id, into, (part for part in archive))
            except docker.errors.NotFound:
                raise NotFound(f"{machine_name(machine)} has no folder {path}") from None

    def end_forgotten(self) -> None:
        end_forgotten(self._engine)

    def _find(self, machine: UUID, *, running: bool = False) -> str:
        """The engine's id of a machine of ours."""
        with calling():
            found = self._engine.require(machine)
        if running and not found["State"]["Running"]:
            raise InvalidState(f"{machine_name(machine)} does not run", state=found["State"]["Status"])
        return str(found["Id"])

    def _exec(
        self, machine: UUID, argv: list[str], env: Mapping[str, str], *, terminal: bool
    ) -> tuple[Processes, Channel]:
        engine_id, mark = self._find(machine, running=True), new_mark(self._engine.owner.host_id)
        environment = ({"TERM": "xterm-256color"} if terminal else {}) | dict(env) | {MARK: mark}
        with calling():
            try:
                made = self._engine.client.exec_create(
                    engine_id, argv, stdin=terminal, tty=terminal, environment=environment
                )
            except docker.errors.APIError as error:
                if error.status_code == NOT_FOUND:
                    raise NotFound(f"{machine_name(machine)} is not on the engine") from error
                if error.status_code == CONFLICT:  # it ended, or was paused, since it was looked at
                    raise InvalidState(f"{machine_name(machine)} does not run: {said(error)}") from error
                raise
        processes = Processes(self._engine, engine_id, made["Id"], mark)
        body = {"Detach": False, "Tty": terminal}
        try:
            channel = Channel(self._engine, "POST", f"/exec/{made['Id']}/start", body=body, upgrade=True)
        except BaseException as error:
            # It may have started all the same.
            with contextlib.suppress(CairnError):
                processes.end()
            if isinstance(error, EngineUnavailable) and not terminal:
                raise OutcomeUnknown(f"nobody knows whether the command ran: {error.message}") from error
            raise
        return processes, channel


class DockerBytes:
    """What the engine sends, as it is."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __iter__(self) -> DockerBytes:
        return self

    def __next__(self) -> bytes:
        if data := self._channel.read():
            return data
        raise StopIteration

    def close(self) -> None:
        self._channel.close()


class DockerLogs(DockerBytes):
    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._frames = frames(channel)

    def __next__(self) -> bytes:
        return b"".join([data for _, data in next(self._frames)])


class DockerStats:
    """The share of CPUs is that since the item before; in the first one it is 0."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rest = b""
        #: Time, and CPU seconds until then.
        self._before: tuple[float, float] | None = None

    def __iter__(self) -> DockerStats:
        return self

    def __next__(self) -> Usage:
        while b"\n" not in self._rest:
            data = self._channel.read()
            if not data:
                raise StopIteration
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found = docker_usage.figures(orjson.loads(line))
        if found is None:
            raise StopIteration  # it has ended, and the engine goes on with zeros
        at, used = found.pop("at"), found.pop("cpu_seconds")
        since, before = self._before or (at, used)
        self._before = (at, used)
        percent = round(100 * (used - before) / (at - since), 2) if at > since else 0.0
        return Usage(at=dt.datetime.fromtimestamp(at, dt.UTC), cpu_percent=max(percent, 0), **found)

    def close(self) -> None:
        self._channel.close()


class DockerCommand:
    def __init__(self, channel: Channel, processes: Processes, timeout_seconds: float) -> None:
        self._channel = channel
        self._processes = processes
        self._timeout_seconds = timeout_seconds
        self._until = time.monotonic() + timeout_seconds
        self._frames = frames(channel, self._left())
        self._read: list[Output] = []
        self._ended = False

    def _left(self) -> Iterator[float]:
        while True:
            yield max(self._until - time.monotonic(), 0.001)

    def __iter__(self) -> DockerCommand:
        return self

    def __next__(self) -> Output:
        if not self._read:
            try:
                found = next(self._frames)
            except TimeoutError:
                self.close()
                raise self._timed_out() from None
            self._read = [Output(_CHANNELS.get(number, "stdout"), data) for number, data in reversed(found)]
        return self._read.pop()

    def exit_code(self) -> int:
        # Its output may end before the engine knows that it has, by a moment, or by long.
        pause = FIRST_POLL_SECONDS
        while (code := self._processes.exit_code()) is None:
            if time.monotonic() > self._until:
                self.close()
                raise self._timed_out()
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)
        self._ended = True
        return code

    def _timed_out(self) -> CommandTimeout:
        seconds = self._timeout_seconds
        return CommandTimeout(f"the command did not end within {seconds:g} s, and was ended", timeout=seconds)

    def close(self) -> None:
        self._channel.close()
        # Also where its output has ended: it may have closed that, or be who a closed channel woke.
        if not self._ended:
            self._ended = True
            self._processes.end()


class DockerTerminal:
    def __init__(self, engine: DockerEngine, channel: Channel, processes: Processes) -> None:
        self._engine = engine
        self._channel = channel
        self._processes = processes
        self._ended = False
        self._closing = threading.Lock()

    def read(self) -> bytes:
        return self._channel.read()

    def write(self, data: bytes) -> None:
        self._channel.write(data)

    def resize(self, columns: int, rows: int) -> None:
        self._processes.resize(columns, rows)

    def exit_code(self) -> int | None:
        return self._processes.exit_code()

    def close(self) -> None:
        with self._closing:
            if self._ended:
                return
            self._ended = True
        self._channel.close()
        self._processes.hang_up()
        until = time.monotonic() + HANG_UP_SECONDS
        while self._processes.exit_code() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        # What ignores the hang-up in the background does so because its user wants it to go on.
        self._processes.end_leader()
