"""Requests of the API: accepting, reading, lists."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time

import psycopg

from bench.client import Connection, closed_loop, quantile
from bench.stack import ROOT, Bench


async def accept(bench: Bench) -> None:
    """POST → 202, committed, with the workers running."""
    connections = [bench.connection() for _ in range(16)]
    took: list[float] = []

    async def one(n: int) -> None:
        began = time.perf_counter()
        await bench.launch(connections[n % 16])
        took.append(time.perf_counter() - began)

    tasks = []
    for n in range(220):
        tasks.append(asyncio.create_task(one(n)))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    took = took[20:]
    median, p99 = statistics.median(took), quantile(took, 0.99)
    bench.add(
        "POST → 202 at 20 requests/s",
        f"{median * 1000:.1f} ms median, {p99 * 1000:.1f} ms p99",
        f"{await commit_time(bench)} (one committed INSERT)",
        "",
        "≤ 10 ms, ≤ 50 ms",
        median <= 0.01 and p99 <= 0.05,
    )
    await bench.drained(connections[0])
    rate, took = await closed_loop(connections, 1200, lambda connection, _: bench.launch(connection))
    p99 = quantile(took, 0.99)
    bench.add(
        "POST → 202, 16 clients",
        f"{rate:.0f}/s, {p99 * 1000:.0f} ms p99",
        "",
        "",
        "≥ 300/s, ≤ 200 ms p99",
        rate >= 300 and p99 <= 0.2,
    )
    await bench.drained(connections[0])


async def commit_time(bench: Bench) -> str:
    """The raw cost of being durable: one INSERT and its commit, from this process."""
    took = []
    async with await psycopg.AsyncConnection.connect(bench.database("cairn_owner")) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS bench_commits (n int)")
        for n in range(100):
            began = time.perf_counter()
            await connection.execute("INSERT INTO bench_commits VALUES (%s)", (n,))
            await connection.commit()
            took.append(time.perf_counter() - began)
        await connection.execute("DROP TABLE bench_commits")
    return f"{statistics.median(took) * 1000:.1f} ms"


async def read(bench: Bench) -> None:
    """GET one instance, against bare FastAPI handlers with the same SELECT."""
    first = bench.connection()
    id = await bench.launch(first)
    await bench.until(first, id, "running")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bench.beside(str(ROOT / "bench" / "bare_api.py"), bench.database("cairn_owner"), str(port))
    ours = [bench.connection() for _ in range(8)]
    bare = [Connection(f"http://127.0.0.1:{port}", "") for _ in range(8)]
    for _ in range(100):
        with contextlib.suppress(OSError):
            await bare[0].call("GET", f"/instances/{id}")
            break
        await asyncio.sleep(0.1)
    prefix = {"ours": "/instances", "psycopg": "/instances", "sqlalchemy": "/sqlalchemy"}
    rates: dict[str, list[float]] = {name: [] for name in prefix}
    for turn in range(6):
        for name, before in prefix.items():

            async def get(connection: Connection, _: int, path: str = f"{before}/{id}") -> None:
                status, _answer = await connection.call("GET", path)
                if status != 200:
                    raise RuntimeError(status)

            rate, _took = await closed_loop(ours if name == "ours" else bare, 1500, get)
            if turn:
                rates[name].append(rate)
    mine, theirs, same = (statistics.median(rates[name]) for name in prefix)
    for name, other in (("psycopg", theirs), ("SQLAlchemy, as here", same)):
        bench.add(
            "GET one instance, 8 clients",
            f"{mine:.0f}/s",
            f"{other:.0f}/s (bare handler, same SELECT, {name})",
            f"{mine / other:.2f} x",
            "≥ 0.60 x",
            mine / other >= 0.6,
        )


FILL = """
WITH p AS (SELECT id FROM projects WHERE name = 'default'),
     n AS (SELECT uuidv7() AS id, uuidv7() AS workflow, g FROM generate_series(1, %(rows)s) g),
     w AS (INSERT INTO workflows (id, project_id, kind, state, resource_type, resource_id, actor, "order", finished_at)
           SELECT workflow, p.id, 'ProvisionInstance', 'completed', 'instance', n.id, 'bench', '{}', now() FROM n, p)
INSERT INTO instances
    (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend, workflow_id, quota)
SELECT n.id, p.id, 'fill-' || g, 'error', 'x', 'basic-1', 1, 512, 'simulated', workflow, 'none' FROM n, p
"""


async def pages(bench: Bench) -> None:
    """A page of 50, of 100 rows and of 100,000."""
    connection = bench.connection()
    medians = {}
    for rows, fill in ((100, 100), (100_000, 99_900)):
        async with await psycopg.AsyncConnection.connect(bench.database("cairn_owner"), autocommit=True) as database:
            await database.execute(FILL.replace("'fill-'", f"'fill-{rows}-'"), {"rows": fill})
            await database.execute("VACUUM ANALYZE instances")
        took = []
        for _ in range(210):
            began = time.perf_counter()
            await connection.call("GET", "/instances?limit=50")
            took.append(time.perf_counter() - began)
        medians[rows] = statistics.median(took[10:])
    async with await psycopg.AsyncConnection.connect(bench.database("cairn_owner"), autocommit=True) as database:
        await database.execute("DELETE FROM instances WHERE name LIKE 'fill-%'")
        await database.execute("DELETE FROM workflows WHERE actor = 'bench'")
        await database.execute("VACUUM ANALYZE instances, workflows")
    ratio = medians[100_000] / medians[100]
    bench.add(
        "List page, 100,000 rows",
        f"{medians[100_000] * 1000:.1f} ms",
        f"{medians[100] * 1000:.1f} ms (100 rows)",
        f"{ratio:.2f} x",
        "≤ 1.5 x",
        ratio <= 1.5,
    )
