"""``cairn webhook``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import webhooks as webhook_names
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import one_by_one, remove
from model.secrets import new_webhook_secret

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Send events to other programs, and see what became of them."
)

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=webhook_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=webhook_names)
]
Events = Annotated[
    list[str] | None,
    typer.Option(
        "--type", "--event", "-e", help="A type, or all that begin so: instance. May be repeated; none: every event."
    ),
]
Secret = Annotated[
    str | None,
    typer.Option(help="What deliveries are signed with (16 characters or more).", envvar="CAIRN_WEBHOOK_SECRET"),
]


#: What the types of events begin with.
NOUNS = (
    *(
        "cache_volume",
        "cron_job",
        "deployment",
        "group",
        "host",
        "image",
        "instance",
        "lb",
        "platform",
        "pool",
        "project",
    ),
    *("session", "user", "webhook", "workflow", "workspace"),
)


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@app.command(epilog="Example: cairn webhook create chat https://example.com/hook --type instance.error --type host.")
def create(
    name: Annotated[str, typer.Argument(help="A name of your choice.", show_default=False)],
    url: Annotated[str, typer.Argument(help="Where events are sent, by POST.", show_default=False)],
    event: Events = None,
    secret: Secret = None,
    inactive: Annotated[bool, typer.Option("--inactive", help="Send nothing yet.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Send events to a URL, from now on. Without --secret one is made, and shown here, once."""
    # Made here, so that a lost answer does not lose it: the API shows none again.
    made = secret or new_webhook_secret()
    body: dict[str, Any] = {"name": name, "url": url, "secret": made, "active": not inactive}
    with Client() as client:
        hook = client.request("POST", "/webhooks", body=body | ({"events": event} if event else {}))["data"]
    _warn(event)
    _print(hook | ({} if secret else {"secret": made}), output)
    if not secret:
        render.say("keep the secret: it is not shown again")


@app.command("list", epilog="Example: cairn webhook list -o json")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List webhooks, newest first."""
    table = Table(
        ["NAME", "STATE", "EVENTS", "URL", "AGE", "ID"],
        lambda row: [
            row["name"],
            _state(row),
            ", ".join(row["events"]),
            row["url"],
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/webhooks", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn webhook show chat")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one webhook."""
    with Client() as client:
        _print(client.find("webhook", name), output)


@app.command(epilog="Example: cairn webhook update chat --active")
def update(
    name: Name,
    rename: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Another URL. What waits for its next attempt is sent at once.")
    ] = None,
    event: Events = None,
    secret: Secret = None,
    active: Annotated[
        bool | None, typer.Option("--active/--inactive", help="Send what comes from now on; send nothing more.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a webhook; what is not named stays."""
    body = {"name": rename, "url": url, "events": event, "secret": secret, "active": active}
    changes = {what: value for what, value in body.items() if value is not None}
    if not changes:
        raise usage("nothing to change", "name what: --url, --type, --active, --inactive, --name, --secret")
    with Client() as client:
        path = client.path_of("webhook", name)
        hook = client.request("PATCH", path, body=changes)["data"]
    _warn(event)
    _print(hook, output)


@app.command(epilog="Example: cairn webhook rm chat")
def rm(names: Names) -> None:
    """Forget webhooks and their deliveries."""
    with Client() as client:

        def forget(name: str) -> None:
            hook = client.find("webhook", name)
            remove(client, f"/webhooks/{hook['id']}")
            render.say(f"webhook {hook['name']} is deleted")

        one_by_one(names, forget)


@app.command(epilog="Example: cairn webhook deliveries chat --state dead")
def deliveries(
    name: Name,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """What became of events, newest first."""
    table = Table(
        ["EVENT", "STATE", "ATTEMPTS", "ANSWER", "AGE", "ID"],
        lambda row: [
            row["event_type"],
            row["state"],
            str(row["attempts"]),
            row["error"] or str(row["status_code"] or ""),
            render.age(row["created_at"]),
            row["id"],
        ],
    )
    with Client() as client:
        path = f"{client.path_of('webhook', name)}/deliveries"
        print_list(client, path, {"state": state}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn webhook redeliver chat 0199b3f0-0000-7000-8000-00000000000a")
def redeliver(
    name: Name,
    delivery: Annotated[str, typer.Argument(help="Its id; see: cairn webhook deliveries NAME", show_default=False)],
) -> None:
    """Send an event once more, under the same delivery id."""
    with Client() as client:
        path = f"{client.path_of('webhook', name)}/deliveries/{delivery}/redeliver"
        made = client.request("POST", path)["data"]
    render.say(f"{made['event_type']} is sent again; see: cairn webhook deliveries {name}")


def _warn(events: list[str] | None) -> None:
    """Of what will never come, as far as this program knows: a platform that is newer may have more."""
    for event in events or []:
        if event != "*" and event.partition(".")[0] not in NOUNS:
            render.say(f"warning: no event begins as '{event}' does, but with {', '.join(NOUNS)}: see docs/events.md")


def _print(hook: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(hook)
        return
    render.print_facts(
        [
            ("name", hook["name"]),
            ("id", hook["id"]),
            ("state", _state(hook)),
            ("url", hook["url"]),
            ("events", ", ".join(hook["events"])),
            ("secret", hook.get("secret") or ""),
            ("created", f"{hook['created_at']} ({render.age(hook['created_at'])} ago)"),
        ]
    )


def _state(hook: dict[str, Any]) -> str:
    if hook["active"]:
        return "active"
    return f"switched off: {hook['disabled_reason']}" if hook["disabled_reason"] else "inactive"
