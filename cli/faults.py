"""``cairn faults``: for tests that kill, fail or hold the platform at chosen points."""

from __future__ import annotations

import typer

from cli import render
from cli.render import Format, Output

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fault points of the platform; for testing only.")


@app.callback()
def group() -> None:
    """Keeps ``list`` a command of a group, though it is the only one."""


@app.command("list", epilog="Example: cairn faults list -o json")
def list_(output: Output = Format.TABLE) -> None:
    """List every activity's fault points, and the queue that the activity runs on."""
    from activities.registry import fault_points

    points = fault_points()
    if output is Format.JSON:
        render.print_json(points)
    else:
        render.print_table(
            ["ACTIVITY", "POINT", "QUEUE"], [[row["activity"], row["point"], row["queue"]] for row in points]
        )
