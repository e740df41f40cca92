"""Measure Cairn beside raw baselines, in one run, and write docs/benchmarks.md.

    make bench                                   everything, about five minutes
    .venv/bin/python bench/run.py launch idle    some parts; prints, and does not write

Every figure of ours has its baseline measured in the same run, in turn, on the same machine and servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import docker
import psycopg
from temporalio.client import Client

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.bare_temporal import ACTIVITIES, IMAGE
from bench.client import Connection, closed_loop, quantile

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
_numbers = itertools.count(1)


class Row(NamedTuple):
    what: str
    ours: str
    baseline: str
    compared: str
    target: str
    met: bool | None


class Bench:
    """A platform of its own, and what the parts share."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
        self.rows: list[Row] = []
        self.engine = docker.APIClient("unix:///var/run/docker.sock", max_pool_size=64)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ports = itertools.count(25000)
        self._environ = os.environ | {
            "CAIRN_DATA_DIR": str(self.folder / "d"),
            "CAIRN_API_PORT": "0",
            "CAIRN_TEMPORAL_PORT": "0",
            "CAIRN_TEMPORAL_UI_PORT": "0",
            "CAIRN_PORT_RANGE": "26000-29999",
            "CAIRN_SIMULATED_HOSTS": "1",
        }

    def start(self) -> None:
        subprocess.run([PROGRAMS / "cairn", "up", "--detach"], env=self._environ, check=True, stdout=subprocess.DEVNULL)
        self.endpoint = json.loads((self.folder / "d" / "endpoint.json").read_text())

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        label = f"io.cairn.installation={self.endpoint['installation']}"
        subprocess.run([PROGRAMS / "cairn", "down"], env=self._environ, check=True, stdout=subprocess.DEVNULL)
        for left in self.engine.containers(all=True, filters={"label": label}):
            self.engine.remove_container(left["Id"], force=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def beside(self, *argv: str) -> None:
        self.processes.append(subprocess.Popen([sys.executable, *argv]))

    def connection(self) -> Connection:
        return Connection(self.endpoint["api_url"], self.endpoint["api_key"])

    def database(self, role: str) -> str:
        return f"postgresql://{role}@/cairn?host={self.folder / 'd' / 'run'}&port=5432"

    def add(self, *row: Any) -> None:
        self.rows.append(Row(*row))
        print(" | ".join(str(cell) for cell in row), flush=True)

    async def launch(self, connection: Connection, backend: str = "simulated", **more: Any) -> str:
        name = f"b{next(_numbers)}"
        status, answer = await connection.call(
            "POST", "/instances", {"name": name, "image": IMAGE, "backend": backend, **more}
        )
        if status != 202:
            raise RuntimeError(answer)
        return str(answer["data"]["id"])

    async def completed(self, connection: Connection, backend: str, **more: Any) -> None:
        """A launch that is waited for, as the bare workflow's result is."""
        body = {"name": f"b{next(_numbers)}", "image": IMAGE, "backend": backend, **more}
        status, answer = await connection.call("POST", "/instances", body, "Prefer: wait=60\r\n")
        if status != 201:
            raise RuntimeError(answer)

    async def until(self, connection: Connection, id: str, status: str) -> None:
        """Look every 5 ms."""
        while True:
            _, answer = await connection.call("GET", f"/instances/{id}")
            if answer["data"]["status"] == status:
                return
            if answer["data"]["status"] == "error":
                raise RuntimeError(answer["data"]["error"])
            await asyncio.sleep(0.005)

    async def drained(self, connection: Connection) -> None:
        for state in ("accepted", "running"):
            while (await connection.call("GET", f"/workflows?state={state}&limit=1"))[1]["data"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    def raw_create(self, name: str, port: int) -> str:
        shape = self.engine.create_host_config(
            cpu_period=100_000,
            cpu_quota=100_000,
            mem_limit="512m",
            memswap_limit="512m",
            pids_limit=1024,
            init=True,
            port_bindings={"80/tcp": ("127.0.0.1", port)},
        )
        made = self.engine.create_container(IMAGE, name=name, ports=[(80, "tcp")], host_config=shape)
        self.engine.start(made["Id"])
        return str(made["Id"])


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


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

    async def clear() -> None:
        for name in made:
            await asyncio.to_thread(bench.engine.remove_container, name, force=True, v=True)
        made.clear()
        _, page = await connections[0].call("GET", "/instances?limit=500&status=running")
        for row in page["data"]:
            if row["backend"] == "docker":
                await connections[0].call("DELETE", f"/instances/{row['id']}")
        await bench.drained(connections[0])

    rates: dict[str, list[float]] = {"ours": [], "bare": [], "raw": []}
    for _ in range(3):
        for name, call in (("bare", bare), ("ours", ours), ("raw", raw)):
            rate, _took = await closed_loop(connections, 24, call)
            rates[name].append(rate)
            await clear()
    mine, theirs, sdk = (statistics.median(rates[name]) for name in ("ours", "bare", "raw"))
    bench.add(
        "Eight launches at once",
        f"{mine:.1f}/s",
        f"{theirs:.1f}/s (bare workflow, same SDK calls); {sdk:.1f}/s (SDK)",
        f"{mine / theirs:.2f} x",
        "≥ 0.85 x",
        mine / theirs >= 0.85,
    )


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


async def simulated(bench: Bench) -> None:
    """Completed launches a second with no engine, against a bare workflow with as many no-op activities."""
    connections = [bench.connection() for _ in range(16)]
    client = await Client.connect(bench.endpoint["temporal_address"])

    async def bare(_: Connection, n: int) -> None:
        name = f"nothing-{os.getpid()}-{next(_numbers)}"
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


def cpu_seconds(pids: set[int]) -> float:
    """Of these processes and their children."""

    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return (
            int(fields[11]) + int(fields[12]) + sum(ticks(int(child)) for child in children if int(child) not in pids)
        )

    return sum(map(ticks, pids)) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


async def idle(bench: Bench) -> None:
    """CPU of everything, and resident memory, after ten seconds of rest."""
    await asyncio.sleep(10)
    pids = {name: pid for name, pid in bench.endpoint["pids"].items() if pid}
    before = cpu_seconds(set(pids.values()))
    await asyncio.sleep(30)
    used = (cpu_seconds(set(pids.values())) - before) / 30
    bench.add("Idle stack, all processes", f"{used * 100:.1f} % of a core", "", "", "≤ 8 %", used <= 0.08)
    for name, limit in (("api", 160), ("control_worker", 200), ("host_agent", 200)):
        rss = resident_mb(pids[name])
        bench.add(f"Resident memory, {name}", f"{rss} MB", "", "", f"≤ {limit} MB", rss <= limit)


PARTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "idle": idle,
    "launch": launch_and_delete,
    "eight": eight_at_once,
    "read": read,
    "pages": pages,
    "accept": accept,
    "simulated": simulated,
}
HEAD = """# Benchmarks

Written by `make bench`. Each figure stands beside its raw baseline, measured in the same run, in turn, on the
same machine and the same servers; times are medians unless they say otherwise. The load generator, PostgreSQL,
Temporal and all of Cairn share the machine.

"""


def report(bench: Bench) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    lines = [
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}, Python "
        f"{platform.python_version()}, Cairn {version('cairn-platform')}, temporalio {version('temporalio')}, Docker "
        f"{bench.engine.version()['Version']}.",
        "",
        "| what | Cairn | baseline | compared | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in bench.rows:
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.what} | {row.ours} | {row.baseline} | {row.compared} | {row.target} | {met} |")
    return HEAD + "\n".join(lines) + "\n"


async def main(parts: list[str]) -> None:
    bench = Bench()
    bench.start()
    try:
        bench.beside(str(ROOT / "bench" / "bare_temporal.py"), bench.endpoint["temporal_address"])
        await asyncio.sleep(3)
        for part in parts or PARTS:
            await PARTS[part](bench)
        if not parts:
            notes = ROOT / "docs" / "benchmarks.notes.md"
            (ROOT / "docs" / "benchmarks.md").write_text(report(bench) + (notes.read_text() if notes.exists() else ""))
    finally:
        bench.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    asyncio.run(main(sys.argv[1:]))
