"""``cairn event``."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any

import httpx
import typer
from httpx_sse import EventSource, ServerSentEvent

from cli import render
from cli.client import Client
from cli.errors import CommandFailed, of_option, usage
from cli.render import Format, Output
from cli.resources import HELP, resource_id
from cli.streams import until_interrupted

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Watch what happens.")

LONGEST_PAUSE = 5.0
#: So long after the last event there are no more for now, seconds.
SILENCE = 1.5
BEGINNING = "0-0-0"
#: Not an event, but why a stream ends.
CUT = "cut"


After = Annotated[str | None, typer.Option(help="Start after the event of this id; 0-0-0: from the beginning.")]
Most = Annotated[int | None, typer.Option(min=1, help="End after so many events.")]
Resource = Annotated[str | None, typer.Option(help=f"Only events of this {HELP}.")]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", "--event", "-e", help="Only this type; instance. takes all that begin so. May be repeated."),
]


@app.command(epilog="Example: cairn event watch --after 0-0-0 -o json")
def watch(
    after: After = None,
    limit: Most = None,
    resource: Resource = None,
    type_: Types = None,
    output: Output = Format.TABLE,
) -> None:
    """Print events as they happen, until Ctrl-C. A lost connection is resumed where it was lost."""
    told: list[str] = []

    def begun() -> None:
        if not told and sys.stderr.isatty():
            render.say("waiting for what happens; Ctrl-C ends it. What there was: cairn events")
        told.append("once")

    with Client() as client, until_interrupted():
        chosen = wanted(client, resource, type_)
        for count, event in enumerate(follow(client, after, chosen, begun=begun), start=1):
            _print(event, output)
            if count == limit:
                return


@app.command("list", epilog="Example: cairn event list --resource group/web")
def events(
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    after: After = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the newest so many; with --after or -f the first, then end.")
    ] = None,
    resource: Resource = None,
    type_: Types = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, as without --limit.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print the events there were, oldest first; with -f only those that come, or both from --after on.

    Each line has the time, the id of the event, its type, whose it is, and what it says.
    """
    if everything and limit is not None:
        raise usage("give either --all or --limit")
    if follow_:
        watch(after, limit, resource, type_, output)
        return
    with Client() as client:
        found = past(client, after or BEGINNING, wanted(client, resource, type_))
        # The newest are known when all have come.
        chosen = found if limit is None else islice(found, limit) if after else deque(found, limit)
        for event in chosen:
            _print(event, output)


def wanted(client: Client, resource: str | None, types: list[str] | None) -> dict[str, Any]:
    """The parameters that choose these events."""
    found: dict[str, Any] = {"type": types} if types else {}
    if resource:
        with of_option("--resource"):
            found["resource_id"] = resource_id(client, resource)
    return found


def past(client: Client, last_id: str, params: dict[str, Any]) -> Iterator[ServerSentEvent]:
    """What there is; it ends where the stream pauses."""
    try:
        for answer in client.events(last_id, params, SILENCE):
            yield from (event for event in EventSource(answer).iter_sse() if event.data and event.event != CUT)
    except httpx.ReadTimeout:
        return
    except httpx.TransportError as error:
        raise client.unreachable(error) from None


def follow(
    client: Client,
    last_id: str | None,
    params: dict[str, Any] | None = None,
    *,
    told: Callable[[str], None] = render.say,
    begun: Callable[[], None] = lambda: None,
) -> Iterator[ServerSentEvent]:
    """All events after ``last_id``, over as many connections as it takes; none twice, none left out.

    The first connection must succeed; later ones are tried again until they do. ``told`` is given what
    there is to say of that, ``begun`` is called whenever a connection stands.
    """
    connected = False
    pause = 0.2
    while True:
        try:
            for answer in client.events(last_id, params):
                connected, pause = True, 0.2
                begun()
                for event in EventSource(answer).iter_sse():
                    last_id = event.id or last_id
                    if event.data and event.event != CUT:
                        yield event
        except httpx.TransportError as error:
            if not connected:
                raise client.unreachable(error) from None
        except CommandFailed as failure:
            if not connected or failure.code != "unavailable":
                raise
        told(f"the event stream ended; resuming after {last_id or 'the start'}")
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _print(event: ServerSentEvent, output: Format) -> None:
    try:
        data: Any = json.loads(event.data)
    except ValueError:
        data = event.data
    fields: dict[str, Any] = data if isinstance(data, dict) else {"data": data}
    if output is Format.JSON:
        # One line per event, so that programs can read while it goes on.
        render.print_line({"id": event.id, "type": event.event} | fields)
        return
    moment = render.time_of(fields.get("created_at"))
    type_ = str(fields.get("type") or event.event)
    whose = f"{fields.get('resource_type') or ''} {fields.get('resource_id') or ''}".strip()
    words = [
        render.paint(f"{moment.astimezone():%m-%d %H:%M:%S}", sys.stdout, dim=True) if moment else "",
        render.clean(event.id),
        render.paint(render.clean(type_), sys.stdout, bold=True),
        render.clean(whose),
    ]
    about = fields.get("data")
    if isinstance(about, dict):
        values = " ".join(f"{k}={v}" for k, v in about.items() if isinstance(v, str | int | float))
        words.append(render.clean(values))
    print("  ".join(word for word in words if word), flush=True)
