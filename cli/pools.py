"""``cairn pool``: sandboxes that run before a session asks for one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import networks, render
from cli.client import Client
from cli.completion import images as image_names
from cli.completion import pools as pool_names
from cli.completion import types as type_names
from cli.ending import Ending, each, finish, kind_of
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Sandboxes that run before a session asks for one.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=pool_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=pool_names)
]
Most = Annotated[int | None, typer.Option("--max", help="As many, where they are asked for (default: the size).")]


@app.command(epilog="Example: cairn pool create python --image python:3.13-slim --size 3 --max 10")
def create(
    name: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    size: Annotated[int, typer.Option(help="Sandboxes that are kept ready.")],
    most: Most = None,
    image: Annotated[
        str | None, typer.Option(help="As sessions name it (default: the platform's).", autocompletion=image_names)
    ] = None,
    instance_type: Annotated[
        str, typer.Option("--type", help="Instance type, as of the sessions.", autocompletion=type_names)
    ] = "basic-1",
    network: networks.Network = None,
    allow: networks.Allow = None,
    host: Annotated[str | None, typer.Option(help="Where the workspaces are (default: any host).")] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Make a pool, and launch its sandboxes."""
    wanted: dict[str, Any] = {
        "name": name,
        "size": size,
        "max_size": most,
        "image": image,
        "instance_type": instance_type,
        "network": networks.wanted(network, allow),
        "host": host,
    }
    body = {what: value for what, value in wanted.items() if value is not None}
    with Client() as client:
        finish(client, [client.request("POST", "/pools", body=body)], "filling of", Ending(wait, timeout, output), KIND)


@app.command("list", epilog="Example: cairn pool list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List pools, newest first."""
    table = Table(
        ["NAME", "STATUS", "READY", "CLAIMED", "IMAGE", "TYPE", "NETWORK", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            f"{row['ready']}/{row['wanted']}",
            str(row["claimed"]),
            row["image"],
            row["instance_type"],
            row["network"]["mode"],
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/pools", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn pool show python")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one pool."""
    with Client() as client:
        _print(client.find("pool", name), output)


@app.command("set", epilog="Example: cairn pool set python --size 5 --max 20")
def set_(
    name: Name,
    size: Annotated[int | None, typer.Option(help="Sandboxes that are kept ready.", show_default=False)] = None,
    most: Most = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Change how many sandboxes a pool keeps ready."""
    if size is None and most is None:
        raise usage("there is nothing to change", "name --size or --max")
    body = {what: value for what, value in (("size", size), ("max_size", most)) if value is not None}
    with Client() as client:
        path = client.path_of("pool", name)
        finish(client, [client.request("PATCH", path, body=body)], "change of", Ending(wait, timeout, output), KIND)


@app.command(epilog="Example: cairn pool rm python")
def rm(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Delete pools, with the sandboxes that no session has."""
    ending = Ending(wait, timeout, output)
    each(KIND, names, "delete of", lambda client, path: client.request("DELETE", path), ending)


def _print(pool: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(pool)
        return
    error = pool["error"]
    render.print_facts(
        [
            ("name", pool["name"]),
            ("id", pool["id"]),
            ("status", pool["status"]),
            ("error", f"{error['code']}: {error['message']}" if error else ""),
            ("ready", f"{pool['ready']} of {pool['wanted']}{_under_way(pool)}"),
            ("claimed", str(pool["claimed"])),
            ("size", f"{pool['size']} to {pool['max_size']}"),
            ("image", pool["image"]),
            ("type", pool["instance_type"]),
            ("network", pool["network"]["mode"]),
            ("host", pool["host"] or ""),
        ]
    )


def _under_way(pool: dict[str, Any]) -> str:
    """What becomes of the numbers that are not what they will be."""
    if pool["status"] in ("deleting", "deleted"):
        return ""
    if pool["filling"]:
        return f"; under way: {pool['filling']}"
    if pool["status"] in ("pending", "scaling", "updating"):
        return "; under way: what is too many is removed"
    if pool["wanted"] > pool["size"]:
        return f"; sessions asked for more than its size: it goes back to {pool['size']} by itself"
    return ""


KIND = kind_of("pool", _print)
