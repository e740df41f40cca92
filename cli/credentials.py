"""``cairn credential``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import credentials as credential_names
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.options import cannot_open
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

app = typer.Typer(no_args_is_help=True, add_completion=False, help="With what workspaces are fetched.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=credential_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=credential_names),
]
Host = Annotated[str, typer.Option(help="The only server that it is sent to.")]
FromFile = Annotated[str | None, typer.Option("--from-file", help="Take the token or key from this file, not stdin.")]
KnownHosts = Annotated[str | None, typer.Option(help="Of ssh: file with the server's public keys (ssh-keyscan HOST).")]


@app.command(epilog="Example: cairn credential create gitlab --host git.example.org --from-file token.txt")
def create(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    host: Host,
    ssh: Annotated[bool, typer.Option("--ssh", help="A private key for ssh, not a token for https.")] = False,
    username: Annotated[str | None, typer.Option(help="Of https, where the server looks at it.")] = None,
    from_file: FromFile = None,
    known_hosts: KnownHosts = None,
    output: Output = Format.TABLE,
) -> None:
    """Keep a token, or a private key, from stdin or a file; nobody is shown it again."""
    body = {"name": name, "type": "ssh" if ssh else "https", "host": host} | _value(ssh, from_file, known_hosts)
    if username is not None:
        body["username"] = username
    with Client() as client:
        _print(client.request("POST", "/credentials", body=body)["data"], output)


@app.command("list", epilog="Example: cairn credential list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List credentials, newest first; never their values."""
    table = Table(
        ["NAME", "TYPE", "HOST", "USERNAME", "ROTATED", "ID"],
        lambda row: [
            row["name"],
            row["type"],
            row["host"],
            row["username"],
            render.age(row["rotated_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/credentials", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn credential show gitlab")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one credential, without its value."""
    with Client() as client:
        _print(client.find("credential", name), output)


@app.command(epilog="Example: cairn credential rotate gitlab --from-file token.txt")
def rotate(
    name: Name, from_file: FromFile = None, known_hosts: KnownHosts = None, output: Output = Format.TABLE
) -> None:
    """Give a credential another value, with which workspaces are fetched from then on."""
    with Client() as client:
        found = client.find("credential", name)
        body = _value(found["type"] == "ssh", from_file, known_hosts)
        _print(client.request("PUT", f"/credentials/{found['id']}", body=body)["data"], output)


@app.command(epilog="Example: cairn credential rm gitlab")
def rm(names: Names) -> None:
    """Forget credentials that no workspace names."""
    remove_each(names, lambda client, name: client.path_of("credential", name))


def _value(ssh: bool, from_file: str | None, known_hosts: str | None) -> dict[str, Any]:
    text = sys.stdin.read() if from_file is None else _read(from_file)
    value: dict[str, Any] = {"private_key": text} if ssh else {"token": text.strip()}
    return value | ({} if known_hosts is None else {"known_hosts": _read(known_hosts)})


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise usage(cannot_open(path, error)) from None


def _print(credential: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(credential)
        return
    shown = ("name", "id", "type", "host", "username")
    rotated = f"{credential['rotated_at']} ({render.age(credential['rotated_at'])} ago)"
    render.print_facts([*((what, str(credential[what])) for what in shown), ("rotated", rotated)])
