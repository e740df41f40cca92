"""``cairn role``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import roles as role_names
from cli.errors import CommandFailed, Exit
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import remove_each

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="What may be done in a project, and who has which role."
)

Name = Annotated[str, typer.Argument(help="Name of the role.", show_default=False, autocompletion=role_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names of roles.", show_default=False, autocompletion=role_names),
]
Who = Annotated[
    str, typer.Argument(help="A user's e-mail address or id, or a service account's id.", show_default=False)
]
Permissions = Annotated[list[str], typer.Argument(help="Such as instances:read.", show_default=False)]


@app.command("list", epilog="Example: cairn role list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List the built-in roles and the project's own."""
    table = Table(
        ["NAME", "BUILT IN", "PERMISSIONS"],
        lambda row: [row["name"], "yes" if row["built_in"] else "", str(len(row["permissions"]))],
    )
    with Client() as client:
        print_list(client, "/rbac/roles", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn role show developer")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show what a role may do."""
    with Client() as client:
        _print(client.get(f"/rbac/roles/{name}"), output)


@app.command(epilog="Example: cairn role create releaser instances:read instances:create")
def create(
    name: Annotated[str, typer.Argument(help="Its name, unique in the project.", show_default=False)],
    permissions: Permissions,
    output: Output = Format.TABLE,
) -> None:
    """Make a role of the project's own, of permissions that you have."""
    with Client() as client:
        body = {"name": name, "permissions": permissions}
        _print(client.request("POST", "/rbac/roles", body=body)["data"], output)


@app.command("set", epilog="Example: cairn role set releaser instances:read")
def set_(name: Name, permissions: Permissions, output: Output = Format.TABLE) -> None:
    """Give a role of the project's own just these permissions; who has it may do that from now on."""
    with Client() as client:
        _print(client.request("PATCH", f"/rbac/roles/{name}", body={"permissions": permissions})["data"], output)


@app.command(epilog="Example: cairn role rm releaser")
def rm(names: Names) -> None:
    """Delete roles of the project's own that nobody has."""
    remove_each(names, lambda _, name: f"/rbac/roles/{name}", looked_up=False)


@app.command(epilog="Example: cairn role bindings")
def bindings(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List who has which role."""
    table = Table(
        ["ROLE", "WHO", "AGE", "ID"],
        lambda row: [row["role_name"], _who(row), render.age(row["created_at"]), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/rbac/bindings", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn role bind developer jo@example.org")
def bind(name: Name, who: Who) -> None:
    """Give somebody a role in the project."""
    with Client() as client:
        client.request("POST", "/rbac/bindings", body={"role_name": name, "user_identifier": who})
        render.say(f"{who} is {name}")


@app.command(epilog="Example: cairn role unbind developer jo@example.org")
def unbind(name: Name, who: Who) -> None:
    """Take a role from somebody, from their next request on."""
    with Client() as client:
        for row in client.pages("/rbac/bindings", {}, None)[0]:
            subject = row["user"] or row["service_account"]
            if row["role_name"] == name and who.lower() in (subject["id"], subject["email"], subject["name"]):
                client.request("DELETE", f"/rbac/bindings/{row['id']}")
                render.say(f"{who} is not {name} any more")
                return
    hint = "see who has which: cairn role bindings"
    raise CommandFailed(f"{who} does not have the role '{name}'", "not_found", Exit.NOT_FOUND, hint)


def _who(row: dict[str, Any]) -> str:
    user, account = row["user"], row["service_account"]
    return str(user["email"]) if user else f"service account {account['name']}"


def _print(role: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(role)
        return
    render.print_facts(
        [
            ("name", role["name"]),
            ("built in", "yes" if role["built_in"] else "no"),
            ("description", role["description"]),
            ("permissions", " ".join(role["permissions"])),
        ]
    )
