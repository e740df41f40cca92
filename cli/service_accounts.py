"""``cairn service-account``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.errors import CommandFailed, Exit
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, help="Members of a project who are programs, and their keys.")

Name = Annotated[str, typer.Argument(help="Name or id of the account.", show_default=False)]
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
def rm(name: Name) -> None:
    """Delete a service account with its keys, which open nothing from then on."""
    with Client() as client:
        client.request("DELETE", _path(client, name))
        render.say(f"removed {name}")


@app.command(epilog="Example: cairn service-account keys ci")
def keys(name: Name, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List its keys; the keys themselves are not shown."""
    table = Table(
        ["NAME", "SCOPES", "AGE", "LAST USED", "EXPIRES", "REVOKED", "ID"],
        lambda row: [
            row["name"],
            " ".join(row["scopes"] or ["all"]),
            render.age(row["created_at"]),
            *(row[at] or "" for at in ("last_used_at", "expires_at", "revoked_at")),
            row["id"],
        ],
        wide=["SCOPES", "ID"],
    )
    with Client() as client:
        print_list(client, f"{_path(client, name)}/keys", {}, Listing(limit, everything, output), table)


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
        _print_key(client.request("POST", f"{_path(client, name)}/keys", body=body)["data"], output)


@app.command(epilog="Example: cairn service-account rotate ci build-server --overlap-seconds 600")
def rotate(
    name: Name,
    key_name: Key,
    overlap_seconds: Annotated[int, typer.Option(help="For so long the old one works too.")] = 3600,
    output: Output = Format.TABLE,
) -> None:
    """Make a key in the place of another."""
    with Client() as client:
        path = f"{_key_path(client, name, key_name)}/rotate"
        _print_key(client.request("POST", path, body={"overlap_seconds": overlap_seconds})["data"], output)


@app.command(epilog="Example: cairn service-account revoke ci build-server")
def revoke(name: Name, key_name: Key) -> None:
    """Make a key void at once."""
    with Client() as client:
        client.request("POST", f"{_key_path(client, name, key_name)}/revoke")
        render.say(f"key {key_name} is void")


def _path(client: Client, wanted: str) -> str:
    return f"/service-accounts/{client.named('/service-accounts', 'service account', wanted)['id']}"


def _key_path(client: Client, account: str, wanted: str) -> str:
    """The newest of this name that is not revoked, or the one of this id."""
    path = f"{_path(client, account)}/keys"
    for row in client.pages(path, {}, None)[0]:
        if row["id"] == wanted or (row["name"] == wanted and row["revoked_at"] is None):
            return f"{path}/{row['id']}"
    hint = f"see its keys: cairn service-account keys {account}"
    raise CommandFailed(f"there is no key named '{wanted}'", "not_found", Exit.NOT_FOUND, hint)


def _print(account: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(account)
        return
    render.print_facts([(label, account[label]) for label in ("name", "id", "description")])


def _print_key(made: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(made)
        return
    render.say(f"key {made['name']}; it is not shown again:")
    typer.echo(made["key"])
