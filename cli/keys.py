"""``cairn key``: one's own API keys."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_id
from cli.errors import CommandFailed, Exit
from cli.listing import Listing, Table, print_list
from cli.options import seconds
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, help="Your API keys: for programs, each for one project.")
Wanted = Annotated[str, typer.Argument(metavar="KEY", help="Name or id.", show_default=False)]


@app.command(epilog="Example: cairn key create ci --scope instances:* --scope images:read --expires 90d")
def create(
    name: Annotated[str, typer.Argument(help="What it is for.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Permission, or noun:*; more than once. Without: all that you may.", show_default=False),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Ends after this time, such as 90d.", show_default=False)] = None,
    project: Annotated[str | None, typer.Option(help="Id of the project that it opens.", show_default=False)] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a key. It is printed here, and never again."""
    body: dict[str, Any] = {"name": name}
    if scope:
        body["scopes"] = scope
    if expires:
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds("--expires", expires))
        body["expires_at"] = ends.isoformat()
    if project:
        body["project"] = project
    with Client() as client:
        _print_new(client.request("POST", "/auth/keys", body=body)["data"], output)


@app.command("list", epilog="Example: cairn key list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List your keys, newest first."""
    table = Table(
        ["NAME", "PROJECT", "SCOPES", "LAST USED", "ENDS", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["project_id"],
            _scopes(row),
            render.age(row["last_used_at"]) if row["last_used_at"] else "never",
            _ends(row),
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["PROJECT"],
    )
    with Client() as client:
        print_list(client, "/auth/keys", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn key show ci")
def show(key: Wanted, output: Output = Format.TABLE) -> None:
    """Show one key; not the key itself, of which a digest is kept."""
    with Client() as client:
        _print(_find(client, key), output)


@app.command(epilog="Example: cairn key rotate ci --overlap 1d")
def rotate(
    key: Wanted,
    overlap: Annotated[str, typer.Option(help="For how long the old one goes on, such as 30m; 0s: not at all.")] = "1h",
    output: Output = Format.TABLE,
) -> None:
    """Make a key like this one, which ends after the overlap."""
    beside = 0 if overlap in ("0", "0s") else seconds("--overlap", overlap)
    with Client() as client:
        path = f"/auth/keys/{_find(client, key)['id']}/rotate"
        _print_new(client.request("POST", path, body={"overlap_seconds": beside})["data"], output)


@app.command(epilog="Example: cairn key revoke ci")
def revoke(key: Wanted, output: Output = Format.TABLE) -> None:
    """Let it open nothing from now on."""
    with Client() as client:
        _print(client.request("POST", f"/auth/keys/{_find(client, key)['id']}/revoke")["data"], output)


@app.command(epilog="Example: cairn key rm ci")
def rm(key: Wanted) -> None:
    """Revoke it and forget it."""
    with Client() as client:
        client.request("DELETE", f"/auth/keys/{_find(client, key)['id']}")
    render.say(f"removed {key}")


def _find(client: Client, wanted: str) -> dict[str, Any]:
    """The one of this id, or the one of this name that is in use."""
    if is_id(wanted):
        return dict(client.get(f"/auth/keys/{wanted}"))
    named = client.get("/auth/keys", name=wanted[:63])
    found = [row for row in named if row["name"] == wanted and row["revoked_at"] is None] or named
    if not found:
        raise CommandFailed(f"there is no key named '{wanted}'", "not_found", Exit.NOT_FOUND, "cairn key list")
    if len(found) > 1:
        message = f"{len(found)} keys are named '{wanted}': give the id of one"
        raise CommandFailed(message, "ambiguous", Exit.REFUSED, "cairn key list")
    return dict(found[0])


def _scopes(row: dict[str, Any]) -> str:
    return "all" if row["scopes"] is None else ",".join(row["scopes"])


def _ends(row: dict[str, Any]) -> str:
    return min([str(row[name]) for name in ("revoked_at", "expires_at") if row[name]], default="")


def _print_new(key: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(key)
        return
    print(key["key"])
    render.say(f"key {key['id']}: keep it now, it is not shown again")


def _print(key: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(key)
        return
    render.print_facts(
        [
            ("name", key["name"]),
            ("id", key["id"]),
            ("project", key["project_id"]),
            ("scopes", _scopes(key)),
            ("last used", key["last_used_at"] or "never"),
            ("ends", _ends(key)),
            ("created", f"{key['created_at']} ({render.age(key['created_at'])} ago)"),
        ]
    )
