"""How far a platform scales out: a load generator's launches on one API and one control worker, and on two and three.

    make load        about ten minutes; writes its table into docs/scaling.md

The processes are those of tests/cluster.py, behind the proxy; the generator is wrk, of the distribution. Both shapes
are one installation, measured in turn: for the small one the other processes are stopped.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("CAIRN_CHAOS_SEED", "0")  # of the tests' own, and of no meaning here
# Compiled once for all processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parents[1] / ".pytest_cache" / "pycache"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster import Cluster
from tests.deploy import servers
from tests.platform import wait_for

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- bench/load.py writes from here -->\n", "<!-- to here -->\n"
SCRIPT = ROOT / "bench" / "load.lua"
CONNECTIONS, ACCEPT_SECONDS, COMPLETE_SECONDS = 16, 5, 10
ROUNDS = int(os.environ.get("ROUNDS", "3"))
DRAIN_SECONDS = 600
#: APIs and control workers.
SHAPES = ((1, 1), (2, 3))
Figures = dict[str, float]
_numbers = itertools.count(1)


def wrk(cluster: Cluster, seconds: int, prefer: str) -> Figures:
    """One run of the generator: requests, refused, broken; p50, p95, p99 in ms."""
    known = cluster.endpoint()
    environ = os.environ | {
        "CAIRN_API_KEY": known["api_key"],
        "CAIRN_LOAD_PREFIX": f"load{next(_numbers)}",
        "CAIRN_LOAD_PREFER": prefer,
    }
    command = ["wrk", "-t", "2", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "--timeout", "70s", "-s", str(SCRIPT)]
    done = subprocess.run(
        [*command, f"{known['api_url']}/instances"], env=environ, capture_output=True, text=True, check=True
    )
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(cluster: Cluster) -> dict[str, Figures]:
    """What is accepted, and how long it takes until all of that has ended; then what is waited for to its end."""
    began = time.monotonic()
    accepted = wrk(cluster, ACCEPT_SECONDS, "respond-async")
    drain(cluster)
    accepted["per_second"] = (accepted["requests"] - accepted["refused"]) / accepted["seconds"]
    accepted["ended_per_second"] = accepted["requests"] / (time.monotonic() - began)
    completed = wrk(cluster, COMPLETE_SECONDS, "wait=60")
    completed["per_second"] = (completed["requests"] - completed["refused"]) / completed["seconds"]
    drain(cluster)
    clear(cluster)
    return {"accepted": accepted, "completed": completed}


def drain(cluster: Cluster) -> None:
    query = "SELECT count(*) FROM workflows WHERE state IN ('accepted', 'running')"
    wait_for("all has ended", lambda: cluster.sql(query)[0][0] == 0, DRAIN_SECONDS)


def clear(cluster: Cluster) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda instance: cluster.act("delete", instance), cluster.list("/instances")))
    drain(cluster)


def shaped(cluster: Cluster, apis: int, controls: int) -> None:
    """Only so many of them run."""
    wanted = {*cluster.apis[:apis], *cluster.controls[:controls]}
    for name in (*cluster.apis, *cluster.controls):
        if name in wanted and name not in cluster.made.processes:
            cluster.made.start(name)
            cluster.becomes_healthy(name)
        elif name not in wanted and name in cluster.made.processes:
            cluster.made.stop(name)
    time.sleep(5)  # until the proxy has seen it


def report(found: dict[tuple[int, int], list[dict[str, Figures]]]) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30

    def median(rounds: list[dict[str, Figures]], what: str, figure: str) -> float:
        return statistics.median(one[what][figure] for one in rounds)

    def cells(rounds: list[dict[str, Figures]], what: str, form: str, *figures: str) -> str:
        return " / ".join(format(median(rounds, what, figure), form) for figure in figures)

    rows: list[tuple[str, str, str, tuple[str, ...]]] = [
        ("accepted launches a second", "accepted", ".0f", ("per_second",)),
        ("until accepted, p50 / p95 / p99, ms", "accepted", ".0f", ("p50", "p95", "p99")),
        ("of these, ended a second, once all had", "accepted", ".1f", ("ended_per_second",)),
        ("completed launches a second, each waited for", "completed", ".1f", ("per_second",)),
        ("until running, p50 / p95 / p99, ms", "completed", ".0f", ("p50", "p95", "p99")),
    ]
    head = " | ".join(f"APIs: {apis}, control workers: {controls}" for apis, controls in found)
    lines = [
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory} GiB, load average {os.getloadavg()[2]:.1f}, Linux "
        f"{platform.release()}, Python {platform.python_version()}, Cairn {version('cairn-platform')}; wrk with "
        f"{CONNECTIONS} connections, medians of {ROUNDS} rounds in turn.",
        "",
        f"| | {head} |",
        "|---|" + "---|" * len(found),
    ]
    for what, part, form, figures in rows:
        lines.append(f"| {what} | {' | '.join(cells(rounds, part, form, *figures) for rounds in found.values())} |")
    bad = sum(one[part][kind] for of in found.values() for one in of for part in one for kind in ("refused", "broken"))
    sent = sum(one[part]["requests"] for rounds in found.values() for one in rounds for part in one)
    return "\n".join([*lines, "", f"{sent:.0f} requests, of which {bad:.0f} failed.", ""])


def main() -> None:
    servers.install("wrk")
    # Durable, as a platform's is.
    cluster = Cluster(docker=False, postgres={"fsync": "on", "shared_buffers": "256MB"}, CAIRN_LOG_LEVEL="warning")
    found: dict[tuple[int, int], list[Any]] = {shape: [] for shape in SHAPES}
    try:
        cluster.start()
        wrk(cluster, 2, "wait=60")  # everything has been used once
        clear(cluster)
        for _ in range(ROUNDS):
            for shape in SHAPES:
                shaped(cluster, *shape)
                found[shape].append(measure(cluster))
                print(shape, found[shape][-1], flush=True)
    finally:
        cluster.remove()
    table = report(found)
    print(table)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
