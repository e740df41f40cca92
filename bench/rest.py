"""What the platform costs while nothing happens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from bench.stack import Bench


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
