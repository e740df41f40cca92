"""``cairn event``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx
import typer
from httpx_sse import EventSource, ServerSentEvent

from cli import render
from cli.client import Client
from cli.errors import CommandFailed
from cli.render import Format, Output
from cli.streams import until_interrupted

app = typer.Typer(no_args_is_help=True, help="Watch what happens.")

LONGEST_PAUSE = 5.0


@app.callback()
def group() -> None:
    """Keeps ``watch`` a command of a group, though it is the only one."""


@app.command(epilog="Example: cairn event watch --after 0-0-0 -o json")
def watch(
    after: Annotated[
        str | None,
        typer.Option(help="Start after the event of this id; 0-0-0: from the beginning."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Print events as they happen, until Ctrl-C. A lost connection is resumed where it was lost."""
    with Client() as client, until_interrupted():
        for count, event in enumerate(follow(client, after), start=1):
            _print(event, output)
            if count == limit:
                return


def follow(
    client: Client,
    last_id: str | None,
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
            for answer in client.events(last_id):
                connected, pause = True, 0.2
                begun()
                for event in EventSource(answer).iter_sse():
                    last_id = event.id or last_id
                    if event.data:
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
    words = [
        render.paint(f"{moment.astimezone():%H:%M:%S}", sys.stdout, dim=True) if moment else "",
        render.paint(render.clean(type_), sys.stdout, bold=True),
        f"{fields.get('resource_type') or ''} {fields.get('resource_id') or ''}".strip(),
    ]
    about = fields.get("data")
    if isinstance(about, dict):
        values = " ".join(f"{k}={v}" for k, v in about.items() if isinstance(v, str | int | float))
        words.append(render.clean(values))
    print("  ".join(word for word in words if word), flush=True)
