"""``cairn service-account``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import key_views, render
from cli.client import Client
from cli.completion import service_accounts as account_names
from cli.key_views import Overlap
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Members of a project who are programs, and their keys."
)

Name = Annotated[
    str, typer.Argument(help="Name or id of the account.", show_default=False, autocompletion=account_names)
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=account_names),
]
Key = Annotated[str, typer.Argument(help="Name or id of the key.", show_default=False)]


@app.command(epilog="Example: cairn service-account create ci --role developer")
def create(
    name: Annotated[str, typer.Argument(help="Its name, unique in the project.", show_default=False)],
    role: Annotated[str | None, typer.Option(help="What it is to be.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a service account."""
    body = {"name": name, "description": description} | ({"role_name": role} if role else {})
    with Client() as client:
        _print(client.request("POST", "/service-accounts", body=body)["data"], output)


@app.command("list", epilog="Example: cairn service-account list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List service accounts, newest first."""
    table = Table(
        ["NAME", "DESCRIPTION", "AGE", "ID"],
        lambda row: [row["name"], row["description"], render.age(row["created_at"]), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/service-accounts", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn service-account rm ci")
def rm(names: Names) -> None:
    """Delete service accounts with their keys, which open nothing from then on."""
    remove_each(names, _path)


@app.command(epilog="Example: cairn service-account keys ci")
def keys(name: Name, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List its keys; the keys themselves are not shown."""
    with Client() as client:
        print_list(client, f"{_path(client, name)}/keys", {}, Listing(limit, everything, output), key_views.TABLE)


@app.command("key", epilog="Example: cairn service-account key ci build-server --scope 'instances:*'")
def key(
    name: Name,
    key_name: Annotated[str, typer.Argument(metavar="KEY", help="What to call it.", show_default=False)],
    scopes: Annotated[list[str] | None, typer.Option("--scope", help="No more than this; repeatable.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Such as 2027-01-01T00:00:00Z.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a key. It is printed once, on stdout alone."""
    body: dict[str, Any] = {"name": key_name}
    body |= ({"scopes": scopes} if scopes else {}) | ({"expires_at": expires_at} if expires_at else {})
    with Client() as client:
        key_views.print_new(client.request("POST", f"{_path(client, name)}/keys", body=body)["data"], output)


@app.command(epilog="Example: cairn service-account rotate ci build-server --overlap 10m")
def rotate(name: Name, key_name: Key, overlap: Overlap = "1h", output: Output = Format.TABLE) -> None:
    """Make a key in the place of another, which ends after the overlap. To end both, revoke them by their name."""
    beside = key_views.overlap_seconds(overlap)
    with Client() as client:
        path = f"{_path(client, name)}/keys"
        old = key_views.the_one(client, path, key_name, _hint(name))
        made = client.request("POST", f"{path}/{old['id']}/rotate", body={"overlap_seconds": beside})["data"]
        key_views.print_new(made, output)


@app.command(epilog="Example: cairn service-account revoke ci build-server")
def revoke(name: Name, key_name: Key, output: Output = Format.TABLE) -> None:
    """Make every key of this name void at once, rotated ones too; by its id, just that one."""
    with Client() as client:
        key_views.revoke(client, f"{_path(client, name)}/keys", key_name, _hint(name), output)


def _path(client: Client, wanted: str) -> str:
    return client.path_of("service-account", wanted)


def _hint(account: str) -> str:
    return f"see its keys: cairn service-account keys {account}"


def _print(account: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(account)
        return
    render.print_facts([(label, account[label]) for label in ("name", "id", "description")])
