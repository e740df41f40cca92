"""``cairn quota``."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_id
from cli.errors import usage
from cli.projects import Which, chosen, find
from cli.render import Format, Output

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What a project may use, and uses.")
NO_LIMIT = "none"
#: As the API calls them.
NAMES = ("instances", "vcpus", "memory_mb", "images", "image_bytes", "load_balancers")


@app.command(epilog="Example: cairn quota show")
def show(project: Which = None, output: Output = Format.TABLE) -> None:
    """Show limits, what is used of them, and what is reserved for launches under way."""
    with Client() as client:
        found = find(client, project)
        quotas = client.get(f"/projects/{found['id']}/quotas")
    if output is Format.TABLE:
        render.print_facts([("project", f"{found['name']} ({found['unix_name']})")])
    _print(quotas, output)


@app.command("set", epilog="Example: cairn quota set payments instances=50 vcpus=none")
def set_(
    project: Annotated[str, typer.Argument(help="Id, unix name or name of the project.", show_default=False)],
    limits: Annotated[list[str], typer.Argument(metavar="WHAT=LIMIT...", help="none: no limit.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Set limits of any project. For administrators of the platform."""
    body = dict(_limit(word) for word in limits)
    with Client() as client:
        _print(client.request("PATCH", f"/projects/{_of_platform(client, project)}/quotas", body=body)["data"], output)


def _of_platform(client: Client, wanted: str) -> str:
    if is_id(wanted):
        return wanted
    rows = client.pages("/projects", {"all": "true"}, None)[0]
    return str(chosen(rows, wanted, "see all: cairn project list --platform")["id"])


def _limit(word: str) -> tuple[str, float | None]:
    what, equals, limit = word.partition("=")
    if what not in NAMES or not equals:
        raise usage(f"'{word}': expected WHAT=LIMIT, WHAT one of {', '.join(NAMES)}")
    if limit == NO_LIMIT:
        return what, None
    try:
        number = float(limit) if what == "vcpus" else int(limit)
        if not math.isfinite(number):
            raise ValueError
        return what, number
    except ValueError:
        raise usage(f"'{word}': expected a number, or {NO_LIMIT}") from None


def _print(quotas: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(quotas)
        return
    rows = [[what, *(_number(of[column]) for column in ("limit", "used", "reserved"))] for what, of in quotas.items()]
    render.print_table(["QUOTA", "LIMIT", "USED", "RESERVED"], rows, [])


def _number(value: float | None) -> str:
    if value is None:
        return NO_LIMIT
    return str(int(value)) if value == int(value) else f"{value:g}"
