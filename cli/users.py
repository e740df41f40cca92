"""``cairn user``: all users, for administrators of the platform."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_id, workflow_of
from cli.completion import users as user_names
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.login import ask_password
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait, require_completed, watch
from cli.render import All, Format, Limit, Output
from cli.several import one_by_one, remove_each

app = typer.Typer(no_args_is_help=True, add_completion=False, help="All users of the platform; for its administrators.")
Wanted = Annotated[
    str, typer.Argument(metavar="USER", help="Address or id.", show_default=False, autocompletion=user_names)
]
Several = Annotated[
    list[str],
    typer.Argument(metavar="USER...", help="Addresses or ids.", show_default=False, autocompletion=user_names),
]


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


@app.command(epilog="Example: cairn user create jo@example.org --name Jo < password.txt")
def create(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="The address to log in with.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="As people call them. [default: of the address]")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a user, also where nobody can register. You vouch for the address, and hand the password over.

    The password is asked for, or CAIRN_PASSWORD, or a line of stdin.
    """
    body = {"email": email, "name": name or email.partition("@")[0]}
    with Client() as client:
        _print(client.request("POST", "/users", body=body | {"password": ask_password(confirm=True)})["data"], output)


@app.command("set", epilog="Example: cairn user set jo@example.org --admin")
def set_(
    user: Wanted,
    name: Annotated[str | None, typer.Option(help="Another name.", show_default=False)] = None,
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="Administrator of the platform.", show_default=False)
    ] = None,
    verified: Annotated[
        bool, typer.Option("--verified", help="You know that the address is theirs.", show_default=False)
    ] = False,
    password: Annotated[
        bool, typer.Option("--password", help="Set another password, which ends their sessions.", show_default=False)
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Change a user. A password is asked for, or CAIRN_PASSWORD, or a line of stdin; yours: cairn passwd."""
    given = (("name", name), ("is_admin", admin), ("verified", verified or None))
    body = {key: value for key, value in given if value is not None}
    if password:
        body["password"] = ask_password(confirm=True)
    if not body:
        raise usage("nothing to change: give --name, --admin, --no-admin, --verified or --password")
    _patch(user, body, output)


@app.command(epilog="Example: cairn user deactivate jo@example.org")
def deactivate(user: Wanted, output: Output = Format.TABLE) -> None:
    """Refuse a user, and all their keys, from now on; what they run goes on."""
    _patch(user, {"active": False}, output)


@app.command(epilog="Example: cairn user activate jo@example.org")
def activate(user: Wanted, output: Output = Format.TABLE) -> None:
    """Let a user in again, who logs in anew."""
    _patch(user, {"active": True}, output)


@app.command(epilog="Example: cairn user rm jo@example.org --cascade")
def rm(
    users: Several,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="With all projects that nobody else owns; a workflow.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Delete users with keys, sessions and memberships. What they alone own goes only with --cascade."""
    if not cascade:
        remove_each(users, lambda client, user: f"/users/{_find(client, user)['id']}")
        return
    began = time.monotonic()
    with Client() as client:

        def remove(user: str) -> None:
            workflow = workflow_of(client.request("DELETE", f"/users/{_find(client, user)['id']}?cascade=true"))
            if workflow is not None and not wait:
                render.say(f"removing {user}; wait for it: cairn workflow wait {workflow}")
                return
            if workflow is not None:
                render.say(f"removing {user}: workflow {workflow}")
                require_completed(watch(client, workflow, timeout, began))
            render.say(f"user {user} is deleted")

        one_by_one(users, remove)


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
            ("address verified", "yes" if user.get("verified") else "no"),
            ("default project", user["default_project_id"] or ""),
            ("created", f"{user['created_at']} ({render.age(user['created_at'])} ago)"),
        ]
    )
