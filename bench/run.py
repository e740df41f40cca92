"""Measure Cairn beside raw baselines, in one run, and write docs/benchmarks.md.

    make bench                                   everything, about twelve minutes
    .venv/bin/python bench/run.py launch idle    some parts; prints, and does not write

Every figure of ours has its baseline measured in the same run, in turn, on the same machine and servers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import calls, claims, groups, guards, launches, rest
from bench.stack import ROOT, Bench

PARTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "idle": rest.idle,
    "launch": launches.launch_and_delete,
    "eight": launches.eight_at_once,
    "read": calls.read,
    "pages": calls.pages,
    "accept": calls.accept,
    "audit": guards.audit,
    "identity": guards.identity,
    "simulated": launches.simulated,
    "group": groups.group,
    "cold": claims.cold,
    "claim": claims.claim,
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
