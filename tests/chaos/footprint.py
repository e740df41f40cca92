"""What a platform takes of its machine, and keeps in its database: read from outside, from ``/proc`` and by SQL."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from temporalio.client import Client

from tests.folders import below
from tests.stack import Stack

#: Besides what the test measures: the servers keep files of their own in these, and bound them themselves.
SERVERS = ("postgres", "temporal.sqlite", "logs", "pycache")
#: One row for each kind of system work, once it was done; one for who asks, for a minute; and what is kept for good.
BESIDE = {"pulses", "rate_limits", "audit", "audit_links", "audit_heads"}


class Process(NamedTuple):
    """One process. Of PostgreSQL, which has one for each connection: what one of them has on average, of memory that
    is its own alone (``shared_buffers`` is taken at the start, and fills as it is read); and how many they are."""

    rss_mb: float
    fds: float
    threads: int


class Sample(NamedTuple):
    """At one moment, under load."""

    cycles: int
    processes: dict[str, Process]
    #: Workflows that Temporal says are running.
    running: int
    #: By how many seconds the timer is late that should have fired first.
    late: float


def processes(stack: Stack) -> dict[str, Process]:
    """Of each child by its name."""
    return {name: _postgres(pid) if name == "postgres" else _process(pid) for name, pid in stack.pids().items()}


def _postgres(pid: int) -> Process:
    family = []
    for one in _children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):  # they come and go
            family.append(_process(one, "RssAnon"))
    return Process(fmean(one.rss_mb for one in family), fmean(one.fds for one in family), len(family))


def _process(pid: int, counted: str = "VmRSS") -> Process:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Process(int(status[counted].split()[0]) / 1024, fds, int(status["Threads"]))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


async def running(client: Client) -> int:
    return (await client.count_workflows('ExecutionStatus = "Running"')).count


def late(stack: Stack) -> float:
    """By how many seconds Temporal is late with the oldest timer that it has not done with. SQLite compares its times
    as the texts that they are."""
    url = f"file:{stack.data}/temporal.sqlite?mode=ro"
    with contextlib.closing(sqlite3.connect(url, uri=True, timeout=30)) as file:
        ((oldest,),) = file.execute("SELECT min(visibility_timestamp) FROM timer_tasks").fetchall()
    return 0.0 if oldest is None else max(0.0, time.time() - dt.datetime.fromisoformat(oldest).timestamp())


def files(stack: Stack, temporary: Path) -> set[str]:
    """Files and sockets of the platform: of its folder for what is temporary, and of its data folder."""
    data = stack.data
    kept = [path for path in below(data) if not str(path.relative_to(data)).startswith(SERVERS)]
    return {str(path) for path in [*kept, *below(temporary)]}


def rows(stack: Stack) -> dict[str, int]:
    """Rows of every table, but for those in which something else is counted."""
    tables = [
        name
        for (name,) in stack.sql(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        if name not in BESIDE
    ]
    union = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for name in tables)
    return dict(stack.sql(union))


def stored_mb(stack: Stack) -> dict[str, float]:
    """Megabytes on disk: of the database, and of Temporal's file with its log."""
    (size,) = stack.sql("SELECT pg_database_size('cairn')")[0]
    temporal = sum(path.stat().st_size for path in stack.data.glob("temporal.sqlite*"))
    return {"database": round(size / 1e6, 1), "temporal": round(temporal / 1e6, 1)}
