"""One supervised child: back-off, logs, and its tie to its parent."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from tests.services import eventually
from worker import children
from worker.children import Child, Program, pause_before_restart
from worker.data_folder import StackError


def program(folder: Path, code: str) -> Program:
    return Program(name="one", argv=[sys.executable, "-c", code], env=os.environ, log=folder / "one.log")


def test_first_restarts_are_immediate_and_later_ones_bounded() -> None:
    pauses = [pause_before_restart(lives) for lives in range(9)]
    assert pauses == [0, 0, 0, 0.5, 1, 2, 4, 8, 10]


async def test_child_that_keeps_crashing_is_restarted_ever_more_rarely(tmp_path: Path) -> None:
    changes: list[float] = []
    child = Child(program(tmp_path, "raise SystemExit('crash')"), lambda: changes.append(time.monotonic()))
    await child.start(5)
    child.settle()
    assert await eventually(lambda: (tmp_path / "one.log").read_text().count("crash") == 5)
    # Two at once, then after 0.5 and 1 second; and then after 2.
    _, second, third, fourth = changes[:4]
    assert third - second >= 0.5 and fourth - third >= 1
    await child.stop(asyncio.Event())


async def test_start_gives_up_on_a_child_that_is_never_ready(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    waits = program(tmp_path, "print('still waiting', flush=True); import time; time.sleep(100)")
    child = Child(Program(**{**waits.__dict__, "ready": never}), lambda: None)
    with pytest.raises(StackError, match=r"(?s)one was not ready after 1 s.*still waiting"):
        await child.start(1)
    await child.stop(asyncio.Event())
    assert child.pid is None


async def test_child_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    """A fault that kills may be set before the start, for what is resumed."""
    mark = tmp_path / "second"

    async def ready() -> bool:
        return mark.with_suffix(".ready").exists()

    code = f"""
import os, pathlib, signal, time
mark = pathlib.Path({str(mark)!r})
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
mark.with_suffix(".ready").touch()
time.sleep(100)
"""
    child = Child(Program(**{**program(tmp_path, code).__dict__, "ready": ready}), lambda: None)
    await child.start(10)
    assert child.pid
    await child.stop(asyncio.Event())


async def test_long_log_is_cut_and_the_child_goes_on_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_LIMIT", 10_000)
    writes = "import time\nfor n in range(10**9): print('line', n, flush=True); n % 100 or time.sleep(0.05)"
    child = Child(program(tmp_path, writes), lambda: None)
    await child.start(5)
    child.settle()
    log = tmp_path / "one.log"
    for _ in range(200):
        await asyncio.sleep(0.01)
        child.trim_log()
        if (tmp_path / "one.log.1").exists():
            break
    child.trim_log()
    cut = log.stat().st_size
    assert await eventually(lambda: log.stat().st_size > cut)
    assert b"\0" not in log.read_bytes(), "the child wrote at its old place"
    await child.stop(asyncio.Event())
