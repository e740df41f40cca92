"""``cairn session chat`` and ``messages``: what is said to the agent of a session."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer

from cli import render
from cli.client import Client
from cli.completion import sessions as session_names
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=session_names)]
END, WIDTH = "end", 60
LONGEST_PAUSE = 5.0


def chat(
    name: Name,
    prompt: Annotated[str | None, typer.Argument(help="What to say (default: stdin).", show_default=False)] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Call off what its agent works on, instead.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Say something to a session's agent, and print what it answers as that comes."""
    if cancel and prompt is not None:
        raise usage("--cancel takes no prompt", "leave one of both out")
    with Client() as client:
        path = client.path_of("session", name)
        if cancel:
            client.request("POST", f"{path}/chat/cancel")
            return
        said = sys.stdin.read() if prompt is None else prompt
        accept = {"Accept": "application/json"}
        request = client.build("POST", f"{path}/chat", json={"prompt": said}, headers=accept)
        answer = client.send(request)
        told = client.opened(answer.status_code, answer.content, f"{path}/chat")["data"]
        _follow(client, path, int(told["prompt"]["number"]), output)


def messages(name: Name, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List what was said in a session, newest first."""
    table = Table(
        ["NUMBER", "ROLE", "STATUS", "AGE", "CONTENT"],
        lambda row: [
            str(row["number"]),
            row["role"],
            row["status"],
            render.age(row["created_at"]),
            " ".join(row["content"].split())[:WIDTH],
        ],
    )
    with Client() as client:
        path = f"{client.path_of('session', name)}/messages"
        print_list(client, path, {}, Listing(limit, everything, output), table)


def _follow(client: Client, path: str, number: int, output: Format) -> None:
    for kind, data in _events(client, path, f"{number}.0"):
        if output is not Format.TABLE:
            sys.stdout.write(json.dumps({"event": kind, "data": data}) + "\n")
        elif kind == "text":
            sys.stdout.write(str(data.get("text", "")))
        elif kind != END:
            sys.stdout.flush()
            render.say(f"[{kind}] {json.dumps(data, ensure_ascii=False)}")
        sys.stdout.flush()
        if kind == END and data["status"] != "completed":
            error = data["error"] or {"code": data["status"], "message": f"the turn was {data['status']}"}
            raise CommandFailed(error["message"], error["code"], Exit.FAILED)


def _events(client: Client, path: str, last: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of one answer, over as many connections as it takes."""
    from httpx_sse import EventSource

    pause = 0.2
    while True:
        try:
            for answer in client.events(last, path=f"{path}/stream"):
                for event in EventSource(answer).iter_sse():
                    if not event.data:
                        continue
                    last, pause = event.id or last, 0.2
                    data = json.loads(event.data)
                    yield event.event, data
                    if event.event == END:
                        return
        except httpx.TransportError:
            pass
        except CommandFailed as failure:
            if failure.code != "unavailable":
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
