"""What the audit log costs those who are accepted."""

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


async def audit(bench: Bench) -> None:
    """Acceptances a second of two API processes on one database, in turn: one writes the log, the other does not.

    The control worker stands still meanwhile: what was accepted waits.
    """
    served = {how: _serve(bench, how) for how in ("with", "without")}
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


def _serve(bench: Bench, how: str) -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = os.environ | {
        "CAIRN_API_PORT": str(port),
        "CAIRN_DATABASE_URL": bench.database("cairn_api"),
        "CAIRN_TEMPORAL_ADDRESS": bench.endpoint["temporal_address"],
        "CAIRN_LOG_LEVEL": "warning",
        "CAIRN_DATA_DIR": str(bench.folder / how),
    }
    argv = [sys.executable, str(ROOT / "bench" / "without_audit.py"), how]
    process = subprocess.Popen(argv, env=environ)
    bench.processes.append(process)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return f"http://127.0.0.1:{port}/v1", process.pid
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the API {how} the audit log did not begin")
