"""Launches and deletes: on a real engine against its SDK and a bare workflow, and with no engine at all."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

from temporalio.client import Client

from bench.bare_temporal import ACTIVITIES
from bench.client import Connection, closed_loop, quantile
from bench.stack import Bench, ms, numbers


async def launch_and_delete(bench: Bench) -> None:
    """POST → `running` visible, against SDK create + start; DELETE → `deleted` visible, against SDK remove."""
    connection = bench.connection()
    over, ours, raw, gone, removed = [], [], [], [], []
    for n in range(33):
        began = time.perf_counter()
        container = await asyncio.to_thread(bench.raw_create, f"bench-{os.getpid()}-{n}", next(bench.ports))
        raw.append(time.perf_counter() - began)
        began = time.perf_counter()
        id = await bench.launch(connection, "docker", ports="80")
        await bench.until(connection, id, "running")
        ours.append(time.perf_counter() - began)
        over.append(ours[-1] - raw[-1])
        began = time.perf_counter()
        await asyncio.to_thread(bench.engine.remove_container, container, v=True, force=True)
        removed.append(time.perf_counter() - began)
        began = time.perf_counter()
        await connection.call("DELETE", f"/instances/{id}")
        await bench.until(connection, id, "deleted")
        gone.append(time.perf_counter() - began)
    over, ours, raw, gone, removed = over[3:], ours[3:], raw[3:], gone[3:], removed[3:]
    median, p95 = statistics.median(over), quantile(over, 0.95)
    bench.add(
        "Launch: POST → running",
        ms(statistics.median(ours)),
        f"{ms(statistics.median(raw))} (SDK create + start)",
        f"+{ms(median)} median, +{ms(p95)} p95",
        "≤ +120 ms, ≤ +250 ms",
        median <= 0.12 and p95 <= 0.25,
    )
    more = statistics.median(gone) - statistics.median(removed)
    bench.add(
        "Delete: DELETE → gone",
        ms(statistics.median(gone)),
        f"{ms(statistics.median(removed))} (SDK remove)",
        f"+{ms(more)}",
        "≤ +150 ms",
        more <= 0.15,
    )


async def eight_at_once(bench: Bench) -> None:
    """Launches a second with eight at once, against a bare workflow with the same calls, and the bare SDK."""
    connections = [bench.connection() for _ in range(8)]
    client = await Client.connect(bench.endpoint["temporal_address"])
    made: list[str] = []

    async def bare(_: Connection, n: int) -> None:
        name = f"bare-{os.getpid()}-{n}-{next(bench.ports)}"
        made.append(name)
        await client.execute_workflow("Bare", name, id=name, task_queue="bare")

    async def raw(_: Connection, n: int) -> None:
        port = next(bench.ports)
        made.append(await asyncio.to_thread(bench.raw_create, f"raw-{os.getpid()}-{port}", port))

    async def ours(connection: Connection, _: int) -> None:
        await bench.completed(connection, "docker", ports="80")

    rates: dict[str, list[float]] = {"ours": [], "bare": [], "raw": []}
    for _ in range(3):
        for name, call in (("bare", bare), ("ours", ours), ("raw", raw)):
            rate, _took = await closed_loop(connections, 24, call)
            rates[name].append(rate)
            for left in made:
                await asyncio.to_thread(bench.engine.remove_container, left, force=True, v=True)
            made.clear()
            await clear(bench, connections[0], "docker")
    mine, theirs, sdk = (statistics.median(rates[name]) for name in ("ours", "bare", "raw"))
    bench.add(
        "Eight launches at once",
        f"{mine:.1f}/s",
        f"{theirs:.1f}/s (bare workflow, same SDK calls); {sdk:.1f}/s (SDK)",
        f"{mine / theirs:.2f} x",
        "≥ 0.85 x",
        mine / theirs >= 0.85,
    )


async def clear(bench: Bench, connection: Connection, backend: str) -> None:
    """Delete all instances of one kind that run."""
    _, page = await connection.call("GET", "/instances?limit=500&status=running")
    for row in page["data"]:
        if row["backend"] == backend:
            await connection.call("DELETE", f"/instances/{row['id']}")
    await bench.drained(connection)


async def simulated(bench: Bench) -> None:
    """Completed launches a second with no engine, against a bare workflow with as many no-op activities."""
    connections = [bench.connection() for _ in range(16)]
    client = await Client.connect(bench.endpoint["temporal_address"])

    async def bare(_: Connection, n: int) -> None:
        name = f"nothing-{os.getpid()}-{next(numbers)}"
        await client.execute_workflow("Nothing", name, id=name, task_queue="bare")

    async def ours(connection: Connection, _: int) -> None:
        await bench.completed(connection, "simulated")

    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(3):
        for name, call in (("bare", bare), ("ours", ours)):
            rate, _took = await closed_loop(connections, 200, call)
            rates[name].append(rate)
    mine, theirs = statistics.median(rates["ours"]), statistics.median(rates["bare"])
    bench.add(
        "Launches completed, simulated, 16 at once",
        f"{mine:.1f}/s",
        f"{theirs:.1f}/s (bare workflow, {ACTIVITIES} no-ops)",
        f"{mine / theirs:.2f} x",
        "≥ 0.50 x",
        mine / theirs >= 0.5,
    )
