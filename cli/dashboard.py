"""``cairn dashboard``."""

from __future__ import annotations

from typing import Any

from cli import render
from cli.client import Client
from cli.render import Format, Output


def dashboard(output: Output = Format.TABLE) -> None:
    """What there is by state, what is under way, and how full the hosts are."""
    with Client() as client:
        summary = client.get("/dashboard/summary")
    if output is Format.JSON:
        render.print_json(summary)
        return
    workflows, hosts = summary["workflows"], summary["hosts"]
    under_way = f"{workflows['running']} running, {workflows['accepted']} accepted"
    render.print_facts(
        [
            *((name, _states(counts)) for name, counts in summary["resources"].items()),
            ("workflows", f"{under_way}, {workflows['failed_24h']} failed in 24 h"),
            ("hosts", f"{_states(hosts)}; {hosts['reachable']} reachable"),
            ("vcpus", _held(summary, "vcpus", "")),
            ("memory", _held(summary, "memory_mb", " MiB")),
        ]
    )
    if summary["running_workflows"]:
        render.say("")
        render.print_table(
            ["KIND", "RESOURCE", "STATE", "AGE", "ID"],
            [
                [
                    row["kind"],
                    f"{row['resource_type']} {row['name']}",
                    row["state"],
                    render.age(row["created_at"]),
                    row["id"],
                ]
                for row in summary["running_workflows"]
            ],
            wide=["ID"],
        )


def _states(counts: dict[str, Any]) -> str:
    """``5 (3 running, 2 stopped)``; most first."""
    by_state = sorted(counts["by_state"].items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{number} {state}" for state, number in by_state)
    return f"{counts['total']} ({shown})" if shown else "0"


def _held(summary: dict[str, Any], what: str, unit: str) -> str:
    return f"{summary['allocated'][what]:g} held of {summary['capacity'][what]:g}{unit}"
