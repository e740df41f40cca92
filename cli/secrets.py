"""``cairn secret``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import secrets as secret_names
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=secret_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=secret_names)
]
RegistrySecret = Annotated[
    str | None,
    typer.Option(
        "--registry-secret",
        metavar="NAME",
        help="A secret with which the image's registry is asked: username:password, or JSON with these two.",
        autocompletion=secret_names,
    ),
]
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Values that instances are given, and nobody is shown."
)


@app.command("set", epilog="Example: cairn secret set db-password < password.txt")
def set_(
    name: Annotated[str, typer.Argument(help="Its name, unique in the project.")],
    value: Annotated[
        str | None,
        typer.Argument(help="The value: better left out, as the list of processes shows it.", metavar="[VALUE]"),
    ] = None,
    from_file: Annotated[str | None, typer.Option("--from-file", help="Take the value from this file.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Keep a value, from stdin or a file, under a name; a secret that there is gets another version.

    One line end is taken off the end of what comes from stdin or a file.
    """
    text = _value(value, from_file)
    with Client() as client:
        known = client.get("/secrets", name=name[:63])
        if not known:
            body = {"name": name, "value": text} | ({} if description is None else {"description": description})
            _print(client.request("POST", "/secrets", body=body)["data"], output)
            return
        path = f"/secrets/{known[0]['id']}"
        secret = client.request("POST", f"{path}/rotate", body={"value": text})["data"]
        if description is not None:
            secret = client.request("PATCH", path, body={"description": description})["data"]
        _print(secret, output)


@app.command("list", epilog="Example: cairn secret list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List secrets, newest first; never their values."""
    table = Table(
        ["NAME", "VERSION", "DESCRIPTION", "CHANGED", "ID"],
        lambda row: [
            row["name"],
            str(row["current_version"]),
            row["description"],
            render.age(row["updated_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/secrets", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn secret show db-password")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one secret, without its value."""
    with Client() as client:
        _print(client.get(f"/secrets/{name}"), output)


@app.command(epilog="Example: cairn secret versions db-password")
def versions(
    name: Name,
    destroy: Annotated[
        int | None, typer.Option("--destroy", metavar="N", help="Destroy this version: nobody reads it any more.")
    ] = None,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List the versions of a secret, newest first."""
    table = Table(
        ["VERSION", "STATE", "AGE", "ID"],
        lambda row: [
            str(row["version"]),
            "destroyed" if row["destroyed_at"] else "kept",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        if destroy is not None:
            client.request("DELETE", f"/secrets/{name}/versions/{destroy}")
            render.say(f"version {destroy} of {name} is destroyed")
            return
        print_list(client, f"/secrets/{name}/versions", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn secret rm db-password")
def rm(names: Names) -> None:
    """Forget secrets with all their versions. Refused while an instance names one."""
    remove_each(names, lambda _, name: f"/secrets/{name}", looked_up=False)


@app.command(epilog="Example: cairn secret keys")
def keys(output: Output = Format.TABLE) -> None:
    """Show under which master keys secrets lie. For operators of the platform."""
    with Client() as client:
        found = client.get("/operations/keys")
    if output is Format.JSON:
        render.print_json(found)
        return
    for key in found["keys"]:
        state = "newest" if key["newest"] else "known" if key["known"] else "missing"
        signed = f", {key['audit_heads']} audit heads" if "audit_heads" in key else ""
        values = key["secret_versions"] + key.get("sealed_values", 0)
        render.say(f"{key['id']}: {state}, {key['data_keys']} data keys, {values} values{signed}")
    if not found["left"]:
        render.say("nothing lies under any but the newest: others can be taken away")


def references(values: list[str] | None, env: list[str] | None) -> dict[str, Any]:
    """``--secret K=NAME[@VERSION][:env]``, each, as the API takes it."""
    found: dict[str, Any] = {}
    taken = {value.partition("=")[0] for value in env or []}
    for value in values or []:
        key, equals, rest = value.partition("=")
        named, _, how = rest.partition(":")
        name, at, version = named.partition("@")
        if not (key and equals and name) or how not in ("", "env", "file") or (at and not version.isdigit()):
            raise usage(f"--secret {value}: expected K=NAME, K=NAME@VERSION, with an optional :env")
        if key in found or key in taken:
            raise usage(f"{key} is given twice")
        found[key] = {"secret": name} | ({"version": int(version)} if at else {}) | ({"as": how} if how else {})
    return found


def _value(value: str | None, from_file: str | None) -> str:
    if value is not None:
        if from_file is not None:
            raise usage("give the value once: with --from-file, or on stdin")
        render.say("warning: a value on the command line is seen in the list of processes, and kept by your shell")
        return value
    try:
        if from_file is not None:
            text = Path(from_file).expanduser().read_bytes().decode()
        elif sys.stdin.isatty():
            text = str(typer.prompt("Value", hide_input=True, err=True))
        else:
            text = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise usage(f"{from_file}: {error.strerror}") from None
    except UnicodeDecodeError:  # whose message repeats what it read
        raise usage("the value is not UTF-8: keep it in base64") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise usage("the value is empty")
    return text


def _print(secret: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(secret)
        return
    render.print_facts(
        [
            ("name", secret["name"]),
            ("id", secret["id"]),
            ("version", str(secret["current_version"])),
            ("description", secret["description"]),
            ("changed", f"{secret['updated_at']} ({render.age(secret['updated_at'])} ago)"),
        ]
    )
