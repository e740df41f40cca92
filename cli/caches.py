"""``cairn cache``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import caches as cache_names
from cli.ending import Ending, each, kind_of
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What sessions share of package managers' caches.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=cache_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=cache_names),
]


@app.command(epilog="Example: cairn cache create pip /root/.cache/pip")
def create(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    path: Annotated[str, typer.Argument(help="Where sandboxes see it.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Make a cache that sessions of the project can share: cairn session create --cache NAME."""
    with Client() as client:
        _print(client.request("POST", "/cache-volumes", body={"name": name, "path": path})["data"], output)


@app.command("list", epilog="Example: cairn cache list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List caches, newest first."""
    table = Table(
        ["NAME", "STATUS", "PATH", "HOSTS", "CLEARED", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            row["path"],
            str(len(row["hosts"])),
            render.age(row["cleared_at"]) if row["cleared_at"] else "",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/cache-volumes", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn cache show pip")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one cache, and on which hosts it is."""
    with Client() as client:
        _print(client.find("cache", name), output)


@app.command(epilog="Example: cairn cache clear pip")
def clear(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Empty caches on all hosts; sessions that have them go on."""
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "clear of", lambda client, path: client.request("POST", f"{path}/clear"), ending)


@app.command(epilog="Example: cairn cache rm pip")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for a host that does not answer.")] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Delete caches that no session has."""
    ending, params = Ending(wait, timeout, output), {"force": "true"} if force else None
    each(_KIND, names, "delete of", lambda client, path: client.request("DELETE", path, params=params), ending)


def _print(cache: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(cache)
        return
    error, cleared = cache["error"] or {}, cache["cleared_at"]
    render.print_facts(
        [
            ("name", cache["name"]),
            ("id", cache["id"]),
            ("status", cache["status"]),
            ("error", error.get("message", "")),
            ("path", cache["path"]),
            ("hosts", ", ".join(cache["hosts"])),
            ("cleared", f"{cleared} ({render.age(cleared)} ago)" if cleared else ""),
            ("created", f"{cache['created_at']} ({render.age(cache['created_at'])} ago)"),
        ]
    )


_KIND = kind_of("cache", _print)
