"""What instances use, from the engine to the user; what an outage of the API leaves of it."""

from __future__ import annotations

import datetime as dt
import time
from itertools import pairwise

import pytest

from tests.stack import Json, Stack, wait_for

pytestmark = pytest.mark.engine
BUSY = ["/bin/sh", "-c", "while :; do :; done"]


def stats(stack: Stack, instance: Json, least: int, seconds: float = 60) -> list[Json]:
    """At least so many samples."""

    def enough() -> list[Json] | None:
        found: list[Json] = stack.get(f"/instances/{instance['id']}/stats")
        return found if len(found) >= least else None

    return wait_for(f"{least} samples of {instance['name']}", enough, seconds)


def test_busy_and_idle_instances_show_as_such_and_the_api_may_die_meanwhile(stack: Stack) -> None:
    busy, idle, simulated = stack.running(backend="docker", cmd=BUSY), stack.running(backend="docker"), stack.running()
    for instance in (busy, idle, simulated):
        stats(stack, instance, 1)
    with stack.frozen("api"):
        # Two measurements are due in this time, and are told afterwards.
        time.sleep(21)
    for instance in (busy, idle, simulated):
        rows = stats(stack, instance, 4)
        times = [dt.datetime.fromisoformat(row["at"]) for row in rows]
        steps = {(later - earlier).total_seconds() for earlier, later in pairwise(times)}
        assert steps == {10}, "each ten seconds have one, also those of the outage"
        assert all(row["seconds"] == 10 for row in rows)
    # What is left of a machine that is busy with other things, too, and never more than one core.
    most = max(row["cpu_percent"] for row in stats(stack, busy, 1))
    assert 5 < most < 110
    assert min(row["cpu_percent"] for row in stats(stack, idle, 1)) < min(3, most / 4)
    assert all(0 < row["memory_bytes"] < 512 << 20 for row in stats(stack, idle, 1))
