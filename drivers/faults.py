"""Fault points: the places where a test may kill, fail or hold an activity.

They are live only while ``CAIRN_FAULTS_FILE`` names a JSON file
``[{"point": "instance.create.after_effect", "action": "kill", "times": 1, "seconds": 0}]``.
An entry acts ``times`` times, counted down in the file itself under a lock, so that the count holds
across processes and restarts. Each hit is a JSON line in ``<file>.hits``, written before it acts.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from drivers.machines import Cancelled
from model.errors import FaultInjected

Point = Literal["before", "after_effect", "after_commit"]
POINTS: tuple[Point, ...] = ("before", "after_effect", "after_commit")
POLL_SECONDS = 0.1


class Fault(BaseModel):
    model_config = ConfigDict(extra="allow")

    point: str
    action: Literal["kill", "error", "lose_answer", "delay", "pause"]
    times: int = 1
    seconds: float = 0.0

    def at(self, name: str) -> bool:
        """``cairn faults list`` has whole names: one that was composed from its activity and point again will do."""
        return self.point == name or self.point == f"{name.rpartition('.')[0]}.{name}"


_FAULTS = TypeAdapter(list[Fault])


class Passage:
    """One attempt of one activity on its way past its fault points."""

    def __init__(self, activity: str, cancelled: Callable[[], bool], **seen: Any) -> None:
        self.activity = activity
        self.cancelled = cancelled
        self.seen = seen
        self.passed: set[Point] = set()


_passage: ContextVar[Passage | None] = ContextVar("fault_passage", default=None)


def enter(passage: Passage) -> None:
    """Make ``passage`` the one whose points this context (and the threads it is copied to) reaches."""
    _passage.set(passage)


def reached(point: Point) -> None:
    """Pass a fault point of the running activity; blocks while a fault holds it.

    Drivers call ``reached("after_effect")`` once, right after the call that changed the engine, and
    database activities pass it between their last statement and the commit. No activity: no fault.
    """
    for seconds in holds(point):
        time.sleep(seconds)


def holds(point: Point) -> Generator[float, None, None]:
    """The same, for callers that sleep in their own way: yields the seconds to sleep each time."""
    passage = _passage.get()
    if passage is None:
        return
    passage.passed.add(point)
    file = os.environ.get("CAIRN_FAULTS_FILE")
    if not file:
        return
    path = Path(file)
    name = f"{passage.activity}.{point}"
    fault = _take(path, name, passage.seen)
    if fault is None:
        return
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "error" or (fault.action == "lose_answer" and point != "before"):
        raise FaultInjected(f"injected {fault.action} at {name}", point=name)
    elif fault.action == "delay":
        until = time.monotonic() + fault.seconds
        while time.monotonic() < until and not passage.cancelled():
            yield min(POLL_SECONDS, fault.seconds)
    elif fault.action == "pause":
        while _paused(path, name) and not passage.cancelled():
            yield POLL_SECONDS
    if passage.cancelled():
        raise Cancelled(name)


def _read(path: Path) -> list[Fault]:
    try:
        return _FAULTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []


def _paused(path: Path, name: str) -> bool:
    return any(fault.at(name) and fault.action == "pause" for fault in _read(path))


def _take(path: Path, name: str, seen: dict[str, Any]) -> Fault | None:
    """Count down the first live entry for ``name``, under the lock, and record the hit."""
    if not any(fault.at(name) and fault.times > 0 for fault in _read(path)):
        return None
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        faults = _read(path)
        fault = next((f for f in faults if f.at(name) and f.times > 0), None)
        if fault is None:
            return None
        fault.times -= 1
        fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
        fresh.write_text(json.dumps([f.model_dump() for f in faults]))
        fresh.replace(path)
        with open(f"{path}.hits", "a") as hits:
            hit = {"point": name, "action": fault.action, "pid": os.getpid(), "at": time.time(), **seen}
            hits.write(json.dumps(hit) + "\n")
    return fault
