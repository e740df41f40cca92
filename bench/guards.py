"""What guards the API costs its callers: the audit log; authentication, authorisation and row-level security."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time

from bench.client import Connection, closed_loop
from bench.rest import cpu_seconds
from bench.stack import ROOT, Bench

ROUNDS, REQUESTS, CLIENTS = 8, 250, 16
#: One at a time: of reads, and of acceptances.
READS, ACCEPTED = 200, 50


async def audit(bench: Bench) -> None:
    """Acceptances a second of two API processes on one database, in turn: one writes the log, the other does not.

    The control worker stands still meanwhile: what was accepted waits.
    """
    served = {"with": _serve(bench, "cairn_api"), "without": _serve(bench, "cairn_api", "audit")}
    key = bench.endpoint["api_key"]
    connections = {how: [Connection(url, key) for _ in range(CLIENTS)] for how, (url, _) in served.items()}
    used: dict[str, float] = dict.fromkeys(served, 0.0)
    worker = bench.endpoint["pids"]["control_worker"]
    rates: dict[str, list[float]] = {"with": [], "without": []}
    os.kill(worker, signal.SIGSTOP)
    try:
        for turn in range(ROUNDS + 1):
            for how in sorted(rates, reverse=turn % 2 == 0):
                before = cpu_seconds({served[how][1]})
                rate, _ = await closed_loop(connections[how], REQUESTS, lambda connection, _: bench.launch(connection))
                if turn:  # the first warms up
                    rates[how].append(rate)
                    used[how] += cpu_seconds({served[how][1]}) - before
    finally:
        os.kill(worker, signal.SIGCONT)
    mine, without = (statistics.median(rates[how]) for how in ("with", "without"))
    each = {how: seconds / ROUNDS / REQUESTS * 1000 for how, seconds in used.items()}
    bench.add(
        "Acceptances with the audit log, 16 clients",
        f"{mine:.0f}/s, {each['with']:.2f} ms of the API's CPU",
        f"{without:.0f}/s, {each['without']:.2f} ms (the same, nothing written into it)",
        f"{mine / without:.2f} x",
        "≥ 0.90 x",
        mine / without >= 0.9,
    )
    await bench.drained(bench.connection())


async def identity(bench: Bench) -> None:
    """One instance read, and launches accepted, one at a time, of two API processes in turn: one finds out who asks and
    what that may, in a database that shows it its project alone; the other does not."""
    first = bench.connection()
    id = await bench.launch(first)
    await bench.until(first, id, "running")
    with_it, without = _serve(bench, "cairn_api"), _serve(bench, "cairn_owner", "identity")
    key, worker = bench.endpoint["api_key"], bench.endpoint["pids"]["control_worker"]
    connections = [Connection(url, key) for url, _ in (with_it, without)]
    took: dict[str, list[list[float]]] = {"read": [[], []], "accepted": [[], []]}

    async def read(connection: Connection, _: int) -> None:
        status, answer = await connection.call("GET", f"/instances/{id}")
        if status != 200:
            raise RuntimeError(answer)

    os.kill(worker, signal.SIGSTOP)
    try:
        for turn in range(ROUNDS + 1):
            for which in sorted((0, 1), reverse=turn % 2 == 0):
                one = [connections[which]]
                for name, count, call in (
                    ("read", READS, read),
                    ("accepted", ACCEPTED, lambda connection, _: bench.launch(connection)),
                ):
                    _, seconds = await closed_loop(one, count, call)
                    if turn:  # the first warms up
                        took[name][which] += seconds
    finally:
        os.kill(worker, signal.SIGCONT)
    medians = {name: [statistics.median(seconds) for seconds in both] for name, both in took.items()}
    for name, what in (("read", "GET one instance"), ("accepted", "POST → 202")):
        mine, bare = medians[name]
        share = (mine - bare) / mine
        bench.add(
            f"{what}, one client: authentication, authorisation, row-level security",
            f"{mine * 1000:.1f} ms",
            f"{bare * 1000:.1f} ms (the same without them)",
            f"{(mine - bare) * 1000:+.1f} ms, {share:.0%} of it",
            "≤ 5 ms" if name == "read" else "≤ 20 %",
            mine - bare <= 0.005 if name == "read" else share <= 0.2,
        )
    await bench.drained(first)


def _serve(bench: Bench, role: str, missing: str = "nothing") -> tuple[str, int]:
    """Where an API of its own is, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = os.environ | {
        "CAIRN_API_PORT": str(port),
        "CAIRN_DATABASE_URL": bench.database(role),
        "CAIRN_TEMPORAL_ADDRESS": bench.endpoint["temporal_address"],
        "CAIRN_LOG_LEVEL": "warning",
        "CAIRN_DATA_DIR": str(bench.folder / f"without-{missing}"),
    }
    argv = [sys.executable, str(ROOT / "bench" / "without.py"), missing]
    process = subprocess.Popen(argv, env=environ)
    bench.processes.append(process)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return f"http://127.0.0.1:{port}/v1", process.pid
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the API without {missing} did not begin")
