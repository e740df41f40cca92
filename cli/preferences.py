"""``cairn preference``."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import render
from cli.client import Client
from cli.completion import preferences as keys
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

Key = Annotated[str, typer.Argument(help="Its key.", show_default=False, autocompletion=keys)]
Keys = Annotated[
    list[str], typer.Argument(metavar="KEY...", help="Their keys.", show_default=False, autocompletion=keys)
]
app = typer.Typer(no_args_is_help=True, add_completion=False, help="What the platform remembers for you.")


@app.command("list", epilog="Example: cairn preference list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List what is remembered, by key."""
    table = Table(
        ["KEY", "VALUE", "AGE"],
        lambda row: [row["key"], _said(row["value"]), render.age(row["updated_at"])],
        wide=["VALUE"],
    )
    with Client() as client:
        print_list(client, "/preferences", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn preference show editor")
def show(key: Key, output: Output = Format.TABLE) -> None:
    """Show one value."""
    with Client() as client:
        _print(client.get(_path(key)), output)


@app.command("set", epilog="""Example: cairn preference set editor '{"theme": "dark"}'""")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON; what is none is taken as text.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Remember a value under a key, in the place of the one before."""
    try:
        said = json.loads(value)
    except ValueError:
        said = value
    with Client() as client:
        _print(client.request("PUT", _path(key), body={"value": said})["data"], output)


@app.command(epilog="Example: cairn preference rm editor")
def rm(names: Keys) -> None:
    """Forget values."""
    remove_each(names, lambda client, key: _path(client.get(_path(key))["key"]))


def _path(key: str) -> str:
    return f"/preferences/{quote(key, safe='')}"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print(found: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(found)
        return
    render.print_facts(
        [
            ("key", found["key"]),
            ("value", _said(found["value"])),
            ("updated", f"{found['updated_at']} ({render.age(found['updated_at'])} ago)"),
        ]
    )
