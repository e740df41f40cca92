"""Child processes that cannot outlive their supervisor, and are started again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import structlog

from worker.data_folder import StackError

log = structlog.get_logger("stack")

#: A child that lived for less did not come up: after three such lives in a row its restarts are delayed.
SHORT_LIFE = 5.0
FREE_RESTARTS = 2
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
POLL_SECONDS = 0.05
#: A log larger than this at a start is set aside; one that grows beyond the limit is cut, keeping a copy.
LOG_AT_START, LOG_LIMIT = 4 << 20, 32 << 20
TAIL_LINES = 12

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """How one child is started, known to be ready, and stopped."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    log: Path
    #: Whether it serves; asked again and again, and never raises. None: it needs no waiting for.
    ready: Callable[[], Awaitable[bool]] | None = None
    #: Runs in a thread before every start.
    before: Callable[[], None] | None = None
    nice: int = 0
    #: Descriptors that it inherits.
    holds: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0


def pause_before_restart(short_lives: int) -> float:
    """Seconds to wait after so many short lives in a row."""
    doublings = short_lives - FREE_RESTARTS - 1
    return 0.0 if doublings < 0 else min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE)


class Child:
    """One supervised process. ``changed`` is called whenever its process id is another one."""

    def __init__(self, program: Program, changed: Callable[[], None]) -> None:
        self.program = program
        self.changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._starting = True
        self._stopping = False
        self._born = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start(self, seconds: float) -> None:
        """Start it and wait until it is ready. StackError, with the end of its log, when it gives up first.

        One that dies by a signal meanwhile did not give up: it is started again.
        """
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=self.program.name)
        given_up = time.monotonic() + seconds
        while not self._keeper.done():
            if self.program.ready is None or await self.program.ready():
                return
            if time.monotonic() > given_up:
                raise StackError(f"{self.program.name} was not ready after {seconds:g} s{self._tail()}")
            await asyncio.sleep(POLL_SECONDS)
        self._keeper.result()

    def settle(self) -> None:
        """The stack is up: from now on it is started again however it ends. Raises how it gave up before."""
        if self._keeper and self._keeper.done():
            self._keeper.result()
        self._starting = False

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ask it to end; kill it and its process group after its time, or as soon as ``hurry`` is set."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.program.stop_signal)
            ended = asyncio.ensure_future(process.wait())
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait({ended, hurried}, timeout=self.program.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not ended.done():
                log.warning("child.killed", child=self.program.name, pid=process.pid)
                self.kill()
            await ended
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def kill(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def trim_log(self) -> None:
        """Cut a log that grew beyond its limit. The child appends to it, and goes on at its new end."""
        path = self.program.log
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)

    async def _keep(self) -> None:
        short_lives = 0
        while True:
            process = self._process
            if process is not None:
                code = await process.wait()
                if self._stopping:
                    return
                lived = time.monotonic() - self._born
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                if self._starting and code >= 0:
                    raise StackError(f"{self.program.name} ended with {how} instead of starting{self._tail()}")
                log.warning("child.ended", child=self.program.name, pid=process.pid, how=how, lived=round(lived, 1))
                short_lives = short_lives + 1 if lived < SHORT_LIFE else 0
            else:
                short_lives += 1
            await asyncio.sleep(pause_before_restart(short_lives))
            if self._stopping:
                return
            try:
                await self._spawn()
            except (OSError, StackError) as error:
                self._process = None
                log.error("child.not_started", child=self.program.name, error=str(error))
            else:
                log.warning("child.restarted", child=self.program.name, pid=self.pid, short_lives=short_lives)
                self.changed()

    async def _spawn(self) -> None:
        program = self.program
        if program.before:
            await asyncio.to_thread(program.before)
        with _open_log(program.log, self._starting) as output:
            self._log_start = output.tell()
            self._born = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                env=dict(program.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=program.holds,
                # Its own session: a Ctrl-C in the terminal reaches the supervisor alone, which stops in order.
                start_new_session=True,
                preexec_fn=partial(_tie_to_parent, os.getpid(), program.nice),
            )
        self._process = process
        if self._stopping:
            self.kill()

    def _tail(self) -> str:
        path = self.program.log
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(self._log_start, path.stat().st_size - (16 << 10)))
            lines = file.read().decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
            return f"; the end of {path}:\n" + "\n".join(f"  {line}" for line in lines)
        return ""


def die_with_parent(parent: int) -> None:
    """In a fresh child: have the kernel kill it when its parent ends, in whatever way.

    Holds across exec. Linux only; elsewhere a killed supervisor leaves its children behind.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def _tie_to_parent(parent: int, nice: int) -> None:
    die_with_parent(parent)
    if nice:
        os.nice(nice)


def _open_log(path: Path, first: bool) -> FileIO:
    if first and path.exists() and path.stat().st_size > LOG_AT_START:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab", buffering=0)
