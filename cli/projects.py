"""``cairn project``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.render import Format, Output

app = typer.Typer(no_args_is_help=True, help="The project that the API key stands for, and its policies.")


class DriftPolicy(StrEnum):
    REPORT = "report"
    HEAL = "heal"


@app.command(epilog="Example: cairn project show -o json")
def show(output: Output = Format.TABLE) -> None:
    """Show the project."""
    with Client() as client:
        _print(_project(client), output)


@app.command("set", epilog="Example: cairn project set --drift-policy heal")
def set_(
    drift_policy: Annotated[
        DriftPolicy,
        typer.Option(help="What happens where an instance is not as it should be: show it, or mend it too."),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Change the project."""
    with Client() as client:
        path = f"/projects/{_project(client)['id']}"
        _print(client.request("PATCH", path, body={"drift_policy": drift_policy.value})["data"], output)


def _project(client: Client) -> dict[str, Any]:
    (project,) = client.get("/projects")
    return dict(project)


def _print(project: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(project)
        return
    render.print_facts(
        [
            ("name", project["name"]),
            ("id", project["id"]),
            ("drift policy", project["drift_policy"]),
            ("created", f"{project['created_at']} ({render.age(project['created_at'])} ago)"),
        ]
    )
