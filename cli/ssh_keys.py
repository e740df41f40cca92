"""``cairn ssh-key``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from cli import render
from cli.client import Client
from cli.completion import ssh_keys as key_names
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.options import cannot_open
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

#: What private keys have in them; the platform looks closer.
_PRIVATE = ("PRIVATE KEY", "PuTTY-User-Key-File")
Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=key_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=key_names)
]
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Public keys that instances are launched with.")


@app.command(epilog="Example: cairn ssh-key add laptop ~/.ssh/id_ed25519.pub")
def add(
    name: Annotated[str, typer.Argument(help="Its name, unique in the project.")],
    file: Annotated[str, typer.Argument(help="The .pub file, or - for stdin.")] = "-",
    output: Output = Format.TABLE,
) -> None:
    """Keep a public key under a name."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise usage(cannot_open(file, error)) from None
    if any(mark in text for mark in _PRIVATE):
        public = f"; its public half is {file}.pub" if Path(f"{file}.pub").exists() else ""
        raise usage(f"{file} is a private key: it was not sent anywhere{public}")
    with Client() as client:
        _print(client.request("POST", "/ssh-keys", body={"name": name, "public_key": text.strip()})["data"], output)


@app.command("list", epilog="Example: cairn ssh-key list -o json")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List keys, newest first."""
    table = Table(
        ["NAME", "TYPE", "FINGERPRINT", "AGE", "ID"],
        lambda row: [row["name"], row["type"], row["fingerprint"], render.age(row["created_at"]), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/ssh-keys", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn ssh-key show laptop")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one key."""
    with Client() as client:
        _print(find(client, name), output)


@app.command(epilog="Example: cairn ssh-key rm laptop")
def rm(
    names: Names,
) -> None:
    """Forget keys. Instances that were launched with one keep it."""
    remove_each(names, lambda client, name: f"/ssh-keys/{find(client, name)['id']}")


def find(client: Client, wanted: str) -> dict[str, Any]:
    """The key of this name, or of this id."""
    for row in client.get("/ssh-keys", name=wanted[:63]):
        if row["name"] == wanted:
            return dict(row)
    try:
        return dict(client.get(f"/ssh-keys/{UUID(wanted)}"))
    except ValueError:
        message = f"there is no key named '{wanted}'"
        raise CommandFailed(message, "not_found", Exit.NOT_FOUND, "see what there is: cairn ssh-key list") from None


def _print(key: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(key)
        return
    render.print_facts(
        [
            ("name", key["name"]),
            ("id", key["id"]),
            ("fingerprint", key["fingerprint"]),
            ("key", key["public_key"]),
            ("created", f"{key['created_at']} ({render.age(key['created_at'])} ago)"),
        ]
    )
