"""``cairn key``: one's own API keys."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from cli import key_views, render
from cli.client import Client
from cli.completion import keys as key_names
from cli.key_views import OWN, Overlap
from cli.listing import Listing, print_list
from cli.options import seconds
from cli.render import All, Format, Limit, Output
from cli.several import one_by_one, remove

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Your API keys: for programs, each for one project.")
HINT = "see yours: cairn key list"
Wanted = Annotated[str, typer.Argument(metavar="KEY", help="Name or id.", show_default=False, autocompletion=key_names)]
Several = Annotated[
    list[str], typer.Argument(metavar="KEY...", help="Names or ids.", show_default=False, autocompletion=key_names)
]


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
        key_views.print_new(client.request("POST", OWN, body=body)["data"], output)


@app.command("list", epilog="Example: cairn key list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List your keys, newest first."""
    with Client() as client:
        print_list(client, OWN, {}, Listing(limit, everything, output), key_views.TABLE)


@app.command(epilog="Example: cairn key show ci")
def show(key: Wanted, output: Output = Format.TABLE) -> None:
    """Show one key; not the key itself, of which a digest is kept."""
    with Client() as client:
        _print(_find(client, key), output)


@app.command(epilog="Example: cairn key rotate ci --overlap 1d")
def rotate(key: Wanted, overlap: Overlap = "1h", output: Output = Format.TABLE) -> None:
    """Make a key like this one, which ends after the overlap. To end both, revoke them by their name."""
    beside = key_views.overlap_seconds(overlap)
    with Client() as client:
        path = f"{OWN}/{_find(client, key)['id']}/rotate"
        key_views.print_new(client.request("POST", path, body={"overlap_seconds": beside})["data"], output)


@app.command(epilog="Example: cairn key revoke ci")
def revoke(key: Wanted, output: Output = Format.TABLE) -> None:
    """Let every key of this name open nothing from now on, rotated ones too; by its id, just that one."""
    with Client() as client:
        key_views.revoke(client, OWN, key, HINT, output)


@app.command(epilog="Example: cairn key rm ci")
def rm(keys: Several) -> None:
    """Revoke keys and forget them: every one of a name, rotated ones too, or the one of an id."""
    with Client() as client:

        def forget(wanted: str) -> None:
            rows = key_views.doomed(client, OWN, wanted, HINT)
            for row in rows:
                remove(client, f"{OWN}/{row['id']}")
                render.say(f"key {row['name']} ({row['id']}) is deleted")
            if len(rows) > 1:
                render.say(
                    f"{len(rows)} keys were named {wanted}, and all are void; to end one of several, give its id"
                )

        one_by_one(keys, forget)


def _find(client: Client, wanted: str) -> dict[str, Any]:
    return key_views.the_one(client, OWN, wanted, HINT)


def _print(key: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(key)
        return
    render.print_facts(
        [
            ("name", key["name"]),
            ("id", key["id"]),
            ("project", key["project_id"]),
            ("scopes", key_views.scopes(key)),
            ("last used", key["last_used_at"] or "never"),
            ("state", key_views.state(key)),
            ("expires", key["expires_at"] or ""),
            ("revoked", key["revoked_at"] or ""),
            ("created", f"{key['created_at']} ({render.age(key['created_at'])} ago)"),
        ]
    )
