"""``cairn quota``."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.render import Format, Output

app = typer.Typer(no_args_is_help=True, help="Quotas: what a project may have, and has.")

#: Of the API → how it is shown.
NAMES = {
    "instances": "instances",
    "vcpus": "vCPUs",
    "memory_mb": "memory, MiB",
    "images": "images",
    "image_bytes": "image bytes",
}
NO_LIMIT = "none"


@app.command(epilog="Example: cairn quota show")
def show(output: Output = Format.TABLE) -> None:
    """Show what the project may have, uses, and has reserved for what is under way."""
    with Client() as client:
        (project,) = client.get("/projects")
        _print(client.get(f"/projects/{project['id']}/quotas"), output)


@app.command("set", epilog="Example: cairn quota set instances=50 vcpus=none")
def set_(
    limits: Annotated[
        list[str],
        typer.Argument(metavar="NAME=LIMIT…", help=f"{', '.join(NAMES)}; {NO_LIMIT}: no limit.", show_default=False),
    ],
    project: Annotated[str | None, typer.Option(help="Id of the project (default: the key's).")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change the limits of a project, as an administrator of the platform. Nothing that is there is ended."""
    body = dict(_parse(one) for one in limits)
    with Client() as client:
        if project is None:
            (own,) = client.get("/projects")
            project = own["id"]
        _print(client.request("PATCH", f"/projects/{project}/quotas", body=body)["data"], output)


def _parse(said: str) -> tuple[str, dict[str, float | None]]:
    name, equals, limit = said.partition("=")
    if name not in NAMES or not equals:
        raise typer.BadParameter(f"'{said}': expected NAME=LIMIT, NAME one of {', '.join(NAMES)}")
    if limit == NO_LIMIT:
        return name, {"limit": None}
    try:
        number = float(limit) if name == "vcpus" else int(limit)
        if not math.isfinite(number):
            raise ValueError
        return name, {"limit": number}
    except ValueError:
        raise typer.BadParameter(f"'{said}': expected a number, or {NO_LIMIT}") from None


def _print(quotas: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(quotas)
        return
    rows = [
        [NAMES.get(name, name), *(_number(row[column]) for column in ("limit", "used", "reserved"))]
        for name, row in quotas.items()
    ]
    render.print_table(["QUOTA", "LIMIT", "USED", "RESERVED"], rows)


def _number(value: float | None) -> str:
    if value is None:
        return NO_LIMIT
    return str(int(value)) if value == int(value) else f"{value:g}"
