"""A group of many members, against as many launches of one's own, and how long its histories become."""

from __future__ import annotations

import statistics
import time

from temporalio.client import Client

from bench.client import Connection, closed_loop
from bench.launches import clear
from bench.stack import IMAGE, Bench, numbers

MEMBERS, ROUNDS = 500, 2
#: As many as a group launches at a time (activities.group_members).
AT_ONCE = 20
MOST_EVENTS = 5000


async def group(bench: Bench) -> None:
    """0 → 500 simulated members against 500 launches, as many at a time; the longest history of its runs."""
    connections = [bench.connection() for _ in range(AT_ONCE)]
    client = await Client.connect(bench.endpoint["temporal_address"])
    mine: list[float] = []
    theirs: list[float] = []
    longest = 0

    async def bare(connection: Connection, _: int) -> None:
        await bench.completed(connection, "simulated")

    for _ in range(ROUNDS):
        rate, _took = await closed_loop(connections, MEMBERS, bare)
        theirs.append(MEMBERS / rate)
        await clear(bench, connections[0], "simulated")
        body = {"name": f"g{next(numbers)}", "image": IMAGE, "backend": "simulated", "ports": "80"}
        body |= {"max_instances": MEMBERS, "desired_count": MEMBERS}
        began = time.perf_counter()
        status, answer = await connections[0].call("POST", "/autoscaling/groups", body)
        if status != 202:
            raise RuntimeError(answer)
        await bench.drained(connections[0])
        mine.append(time.perf_counter() - began)
        _, shown = await connections[0].call("GET", f"/autoscaling/groups/{answer['data']['id']}")
        if shown["data"]["ready_count"] != MEMBERS:
            raise RuntimeError(shown)
        await connections[0].call("DELETE", f"/autoscaling/groups/{answer['data']['id']}")
        await bench.drained(connections[0])
        async for run in client.list_workflows(f"CairnResource = '{answer['data']['id']}'"):
            longest = max(longest, run.history_length)
    seconds, raw = statistics.median(mine), statistics.median(theirs)
    bench.add(
        f"Group of {MEMBERS}, simulated",
        f"{seconds:.0f} s",
        f"{raw:.0f} s ({MEMBERS} launches, {AT_ONCE} at a time)",
        f"{seconds / raw:.2f} x",
        "≤ 1.6 x",
        seconds / raw <= 1.6,
    )
    target = f"≤ {MOST_EVENTS}"
    bench.add("The longest history of that group", f"{longest} events", "", "", target, 0 < longest <= MOST_EVENTS)
