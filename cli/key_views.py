"""API keys as commands show, find and void them, whoever's they are."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, is_id
from cli.errors import CommandFailed, Exit
from cli.listing import Table
from cli.options import seconds
from cli.render import Format

#: Where one's own keys are: each can be asked for, and all of a name.
OWN = "/auth/keys"
Overlap = Annotated[str, typer.Option(help="For how long the old one goes on, such as 30m; 0s: not at all.")]
TABLE = Table(
    ["NAME", "STATE", "PROJECT", "SCOPES", "LAST USED", "AGE", "ID"],
    lambda row: [
        row["name"],
        state(row),
        row["project_id"],
        scopes(row),
        render.age(row["last_used_at"]) if row["last_used_at"] else "never",
        render.age(row["created_at"]),
        row["id"],
    ],
    wide=["PROJECT", "AGE"],
)


def state(row: dict[str, Any]) -> str:
    """``live``, ``3h left`` or ``void``: short enough to be shown whole beside long names."""
    ends = _ends(row)
    if ends is None:
        return "live"
    left = (ends - dt.datetime.now(dt.UTC)).total_seconds()
    return f"{render.span(left)} left" if left > 0 else "void"


def scopes(row: dict[str, Any]) -> str:
    return "all" if row["scopes"] is None else ",".join(row["scopes"])


def overlap_seconds(value: str) -> int:
    return 0 if value in ("0", "0s") else seconds("--overlap", value)


def rows_of(client: Client, path: str, wanted: str, hint: str) -> list[dict[str, Any]]:
    """The key of this id; else all of this name, newest first. Raises CommandFailed where there is none."""
    if is_id(wanted):
        rows = client.pages(path, {}, None)[0] if path != OWN else [dict(client.get(f"{path}/{wanted}"))]
        found = [row for row in rows if row["id"] == wanted.lower()]
    else:
        rows = client.pages(path, {"name": wanted[:63]} if path == OWN else {}, None)[0]
        found = [row for row in rows if row["name"] == wanted]
    if not found:
        raise CommandFailed(f"there is no key named '{wanted}'", "not_found", Exit.NOT_FOUND, hint)
    return found


def the_one(client: Client, path: str, wanted: str, hint: str) -> dict[str, Any]:
    """The key of this id; else the one of this name that nobody has revoked or rotated, or the only one there is."""
    rows = rows_of(client, path, wanted, hint)
    found = [row for row in rows if row["revoked_at"] is None] or rows
    if len(found) > 1:
        message = f"{len(found)} keys are named '{wanted}': give the id of one"
        raise CommandFailed(message, "ambiguous", Exit.REFUSED, hint)
    return found[0]


def doomed(client: Client, path: str, wanted: str, hint: str) -> list[dict[str, Any]]:
    """``rows_of``, the key that the program itself shows as the last: without it the others could not be ended."""
    rows = rows_of(client, path, wanted, hint)
    own = None
    if client.endpoint.api_key and len(rows) > 1:
        with suppress(CommandFailed):  # it may not ask who it is
            own = client.get("/auth/me")["key_id"]
    return sorted(rows, key=lambda row: bool(row["id"] == own))


def revoke(client: Client, path: str, wanted: str, hint: str, output: Format) -> None:
    """Void the key of this id; else every one of this name, also one that was rotated and goes on for its overlap.

    Told are those that opened something until now. Which those are the API says, and no clock of here: one that is fast
    would take a key for void that is not.
    """
    voided = []
    for row in doomed(client, path, wanted, hint):
        after = client.request("POST", f"{path}/{row['id']}/revoke")["data"]
        if row["revoked_at"] is None or after["revoked_at"] != row["revoked_at"]:
            voided.append(after)
            render.say(f"key {row['name']} ({row['id']}) is void")
    if not voided:
        render.say(f"key {wanted} was void before")
    elif len(voided) > 1:
        render.say(f"{len(voided)} keys were named {wanted}, and all are void; to end one of several, give its id")
    if output is not Format.TABLE:
        render.print_json(voided)


def print_new(key: dict[str, Any], output: Format) -> None:
    """The key itself is printed once, on stdout alone."""
    if output is not Format.TABLE:
        render.print_json(key)
        return
    print(key["key"])
    render.say(f"key {key['name']} ({key['id']}): keep it now, it is not shown again")


def _ends(row: dict[str, Any]) -> dt.datetime | None:
    ends = [render.time_of(row[name]) for name in ("revoked_at", "expires_at")]
    return min((end for end in ends if end is not None), default=None)
