"""What tracing costs the acceptance of a request: ``python bench/observed.py [ROUNDS] [OTHER_CHECKOUT]``.

Two APIs on one database and one Temporal, one of them traced; with another checkout, a third that runs its code. They
are asked in turn, in an order that is drawn anew in each round, so that whatever else the machine does meets all of
them; the CPU time of each API says what the clock of a busy machine cannot. The workers are traced. The collector only
throws away.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("CAIRN_CHAOS_SEED", str(os.getpid()))

from bench.client import Connection, quantile
from tests.stack import Stack, wait_for
from worker import ports, postgres

#: Requests a second, all together; below what the workers carry out.
RATE = 20
WARM = 20


class Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def api(stack: Stack, taken: set[int], checkout: Path, **environ: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Another API on the stack's servers, with its own port."""
    port = ports.choose("127.0.0.1", taken, stack.port_range)
    known = stack.endpoint()
    environ = (
        {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        | {
            "PYTHONPATH": str(checkout),
            "CAIRN_DATA_DIR": str(stack.data),
            "CAIRN_API_PORT": str(port),
            "CAIRN_DATABASE_URL": postgres.find(stack.data).url("cairn_api"),
            "CAIRN_TEMPORAL_ADDRESS": known["temporal_address"],
            "CAIRN_OVERCOMMIT_CPU": "100",
            "CAIRN_OVERCOMMIT_MEMORY": "10",
        }
        | environ
    )
    program = Path(sys.executable).with_name("cairn-api")
    process = subprocess.Popen([program], env=environ, stderr=subprocess.DEVNULL, cwd=checkout)
    return process, Connection(f"http://127.0.0.1:{port}/v1", known["api_key"])


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(connections: dict[str, Connection], rounds: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in connections}
    for number in range(rounds):
        for name in random.sample(list(connections), len(connections)):
            began = time.perf_counter()
            body = {"name": f"{name}-{rounds}-{number}", "image": "cairn/base:latest", "backend": "simulated"}
            status, answer = await connections[name].call("POST", "/instances", body)
            seconds = time.perf_counter() - began
            if status != 202:
                raise RuntimeError(answer)
            took[name].append(seconds)
            await asyncio.sleep(max(1 / RATE - seconds, 0))
    return took


async def measured(
    apis: dict[str, tuple[subprocess.Popen[bytes], Connection]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each request, and CPU seconds of all, by API; after some that do not count."""
    connections = {name: connection for name, (_, connection) in apis.items()}
    await measure(connections, WARM)
    before = {name: cpu_seconds(process) for name, (process, _) in apis.items()}
    took = await measure(connections, rounds)
    await asyncio.sleep(3)  # until all is started, and told
    return took, {name: cpu_seconds(process) - before[name] for name, (process, _) in apis.items()}


def main(rounds: int, other: Path | None) -> None:
    sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    traced = {"CAIRN_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}"}
    stack = Stack(docker=False, **traced)
    here = Path(__file__).parents[1]
    apis = {}
    try:
        stack.start().ready()
        taken: set[int] = set()
        apis = {"off": api(stack, taken, here), "traced": api(stack, taken, here, **traced)}
        if other is not None:
            apis["other"] = api(stack, taken, other)
        wait_for("the APIs are up", lambda: all(not ports.is_free("127.0.0.1", port) for port in taken), 60)
        time.sleep(2)
        took, cpu = asyncio.run(measured(apis, rounds))
        for name, seconds in took.items():
            points = " ".join(f"p{part * 100:g} {quantile(seconds, part) * 1000:.2f} ms" for part in (0.5, 0.95, 0.99))
            paired = statistics.median(mine - off for mine, off in zip(seconds, took["off"], strict=True))
            each = cpu[name] / rounds
            costs = f"median difference to off {paired * 1000:+.2f} ms; CPU {each * 1000:.2f} ms each"
            print(f"{name:7} {points}; {costs}")
    finally:
        for process, _ in apis.values():
            process.terminate()
            process.wait(20)
        stack.remove()
        sink.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 300, Path(sys.argv[2]) if sys.argv[2:] else None)
