"""``cairn audit``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from cli import render
from cli.client import Client
from cli.errors import CommandFailed, Exit, of_option, usage
from cli.listing import Listing, Table, print_list
from cli.options import between, cannot_open, new_file
from cli.render import All, Format, Limit, Output
from cli.resources import HELP, resource_id

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Who did what, or was refused; and that nobody changed it since."
)

OfPlatform = Annotated[bool, typer.Option("--platform", help="What belongs to no project; for its administrators.")]
#: A large log is gone through in some seconds; nothing is answered before.
VERIFY_SECONDS = 600.0
#: The last line of an export is shorter.
END_BYTES = 4096


class Outcome(StrEnum):
    ALLOWED = "allowed"
    DENIED = "denied"


@app.command("list", epilog="Example: cairn audit list --outcome denied --since 24h")
def list_(
    actor: Annotated[str | None, typer.Option(help="Who: key:laptop, user:jo@example.org.")] = None,
    action: Annotated[str | None, typer.Option(help="Under which permission: instances:create.")] = None,
    resource_type: Annotated[str | None, typer.Option("--type", help="Of what: instance, webhook.")] = None,
    resource: Annotated[str | None, typer.Option(help=f"Of this {HELP}.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="What was allowed, or denied.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Of so long (30m, 24h, 7d), or from this time on (ISO 8601).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this time, or so long ago.")] = None,
    platform: OfPlatform = False,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List what was done and what was refused, newest first."""
    after, before = between(since, until)
    params = {
        "actor": actor,
        "action": action,
        "resource_type": resource_type,
        "outcome": outcome,
        "since": after,
        "until": before,
        "platform": "true" if platform else None,
    }
    table = Table(
        ["AGE", "ACTOR", "ACTION", "OUTCOME", "RESOURCE", "FROM", "OPERATION"],
        lambda row: [
            render.age(row["at"]),
            row["actor"],
            row["action"],
            row["outcome"] if row["code"] is None else f"{row['outcome']}: {row['code']}",
            _resource(row),
            row["address"] or "",
            row["operation"],
        ],
        wide=["FROM", "OPERATION"],
    )
    with Client() as client, of_option("--resource"):
        params["resource_id"] = resource_id(client, resource) if resource else None
        print_list(client, "/audit", params, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn audit export audit.ndjson")
def export(
    file: Annotated[Path | None, typer.Argument(help="A file (default: stdout).", show_default=False)] = None,
    platform: OfPlatform = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write all of the log as lines of JSON, with the hash of each; the last says where the chain ends."""
    tail = b""
    if file is not None:
        new_file("FILE", file)
        if file.is_file() and not force:
            raise usage(f"FILE {file}: it is there already: name another, or write over it with --force")
    with Client() as client, client.text("/audit/export", _chosen(platform)) as answer:
        try:
            out = file.open("wb") if file is not None else sys.stdout.buffer
        except OSError as error:
            raise usage(cannot_open(f"FILE {file}", error)) from None
        try:
            for chunk in answer.iter_bytes():
                out.write(chunk)
                tail = (tail + chunk)[-END_BYTES:]
        finally:
            out.flush()
            if file is not None:
                out.close()
    end = tail.rstrip(b"\n").rpartition(b"\n")[2]
    if not end.startswith(b'{"end":'):
        raise CommandFailed("the export broke off: what was written is not whole", "export_broken", Exit.FAILED)
    found = orjson.loads(end)["end"]
    head = found["head"]
    render.say(f"{found['entries']} entries; head {_head(head) if head else 'none: nothing is sealed yet'}")


@app.command(epilog="Example: cairn audit verify --platform")
def verify(
    head: Annotated[
        str | None, typer.Option(help="A head that was printed before: the chain must hold it.", metavar="N:HASH")
    ] = None,
    platform: OfPlatform = False,
    output: Output = Format.TABLE,
) -> None:
    """Go through the whole chain; ends with 1 where it is not what it was, and says where.

    Keep the head that it prints outside of the platform, and give it next time.
    """
    body: dict[str, Any] = {}
    if head is not None:
        position, _, digest = head.partition(":")
        if not position.isdecimal() or not digest:
            raise usage("--head: expected N:HASH, as an earlier verification printed it")
        body["remembered"] = {"position": int(position), "hash": digest}
    with Client() as client:
        path = "/audit/verify" + ("?platform=true" if platform else "")
        found = client.request("POST", path, body=body, timeout=VERIFY_SECONDS)["data"]
    broken = found["broken"]
    if output is Format.JSON:
        render.print_json(found)
    else:
        facts = [
            ("verified", "yes" if found["verified"] else "NO"),
            ("entries", str(found["entries"])),
            ("sealed", str(found["sealed"])),
            ("head", _head(found["head"]) if found["head"] else ""),
        ]
        if broken:
            facts.append(("broken", f"{broken['what']}, at position {broken['position']}, row {broken['audit_id']}"))
        render.print_facts(facts)
    if not found["verified"]:
        raise CommandFailed("the audit log is not what it was", "audit_broken", Exit.FAILED)


def _resource(row: dict[str, Any]) -> str:
    """By its name where the row says it: a new one where it got one."""
    name = (row.get("after") or {}).get("name") or (row.get("before") or {}).get("name")
    return " ".join(str(part) for part in (row["resource_type"], name or row["resource_id"]) if part)


def _chosen(platform: bool) -> dict[str, str]:
    return {"platform": "true"} if platform else {}


def _head(head: dict[str, Any]) -> str:
    return f"{head['position']}:{head['hash']}"
