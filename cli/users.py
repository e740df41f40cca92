"""``cairn user``: all users, for administrators of the platform."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_id
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, help="All users of the platform; for its administrators.")
Wanted = Annotated[str, typer.Argument(metavar="USER", help="Address or id.", show_default=False)]


@app.command("list", epilog="Example: cairn user list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List users, newest first."""
    table = Table(
        ["EMAIL", "NAME", "ADMIN", "ACTIVE", "AGE", "ID"],
        lambda row: [
            row["email"],
            row["name"],
            "yes" if row["is_admin"] else "no",
            "yes" if row["active"] else "no",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/users", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn user show jo@example.org")
def show(user: Wanted, output: Output = Format.TABLE) -> None:
    """Show one user."""
    with Client() as client:
        _print(_find(client, user), output)


@app.command("set", epilog="Example: cairn user set jo@example.org --admin")
def set_(
    user: Wanted,
    name: Annotated[str | None, typer.Option(help="Another name.", show_default=False)] = None,
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="Administrator of the platform.", show_default=False)
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a user."""
    body = {key: value for key, value in (("name", name), ("is_admin", admin)) if value is not None}
    if not body:
        raise usage("nothing to change: give --name, --admin or --no-admin")
    _patch(user, body, output)


@app.command(epilog="Example: cairn user deactivate jo@example.org")
def deactivate(user: Wanted, output: Output = Format.TABLE) -> None:
    """Refuse a user, and all their keys, from now on; what they run goes on."""
    _patch(user, {"active": False}, output)


@app.command(epilog="Example: cairn user activate jo@example.org")
def activate(user: Wanted, output: Output = Format.TABLE) -> None:
    """Let a user in again, who logs in anew."""
    _patch(user, {"active": True}, output)


@app.command(epilog="Example: cairn user rm jo@example.org")
def rm(user: Wanted) -> None:
    """Delete a user with keys, sessions and memberships, where the personal project is empty."""
    with Client() as client:
        client.request("DELETE", f"/users/{_find(client, user)['id']}")
    render.say(f"removed {user}")


def _patch(user: str, body: dict[str, Any], output: Format) -> None:
    with Client() as client:
        _print(client.request("PATCH", f"/users/{_find(client, user)['id']}", body=body)["data"], output)


def _find(client: Client, wanted: str) -> dict[str, Any]:
    if is_id(wanted):
        return dict(client.get(f"/users/{wanted}"))
    for row in client.get("/users", email=wanted):
        return dict(row)
    raise CommandFailed(f"there is no user '{wanted}'", "not_found", Exit.NOT_FOUND, "cairn user list")


def _print(user: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(user)
        return
    render.print_facts(
        [
            ("email", user["email"]),
            ("id", user["id"]),
            ("name", user["name"]),
            ("administrator", "yes" if user["is_admin"] else "no"),
            ("active", "yes" if user["active"] else "no"),
            ("default project", user["default_project_id"] or ""),
            ("created", f"{user['created_at']} ({render.age(user['created_at'])} ago)"),
        ]
    )
