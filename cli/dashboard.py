"""``cairn dashboard``."""

from __future__ import annotations

from typing import Any

from cli import render
from cli.client import Client
from cli.projects import in_use
from cli.render import Format, Output


def dashboard(output: Output = Format.TABLE) -> None:
    """What there is by state, what is under way, and how full the hosts are."""
    with Client() as client:
        summary = client.get("/dashboard/summary")
        project = in_use(client) if output is Format.TABLE else None
    if output is Format.JSON:
        render.print_json(summary)
        return
    workflows, hosts = summary["workflows"], summary["hosts"]
    under_way = f"{workflows['running']} running, {workflows['accepted']} accepted"
    render.print_facts(
        [
            ("project", f"{project['name']} ({project['unix_name']})" if project else ""),
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
    """Of what may be given, over-committed; of an older platform only what there is is known."""
    held, may = summary["allocated"][what], (summary.get("allocatable") or summary["capacity"])[what]
    return f"{_number(held)} held of {_number(may)}{unit}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
