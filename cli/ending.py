"""How a command ends that starts workflows: wait for them or not, then show what they changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cli import render
from cli.client import Client, workflow_of
from cli.errors import CommandFailed, Exit
from cli.progress import interrupted, require_completed, watch
from cli.render import Format
from cli.routes import PATHS
from cli.several import end


class Ending(NamedTuple):
    """What to do once requests are accepted. ``alone``: there is one, and JSON is it, not a list of it."""

    wait: bool
    timeout: float
    output: Format
    alone: bool = True


def _state(row: dict[str, Any]) -> str:
    return str(row.get("status") or row.get("state") or "")


def _no_names(client: Client, row: dict[str, Any]) -> dict[str, str]:
    return {}


class Kind(NamedTuple):
    """One kind of resource: ``path`` is that of its list; ``find`` gets one by its name or id, ``show`` prints it,
    ``state`` says how it is, ``names`` gets the names of what it names by ids, for people."""

    path: str
    find: Callable[[Client, str], dict[str, Any]]
    show: Callable[[dict[str, Any], Format], None]
    state: Callable[[dict[str, Any]], str] = _state
    noun: str | None = None
    names: Callable[[Client, dict[str, Any]], dict[str, str]] = _no_names

    def display(self, client: Client, row: dict[str, Any], output: Format) -> None:
        self.show(row | (self.names(client, row) if output is Format.TABLE else {}), output)


def kind_of(
    noun: str,
    show: Callable[[dict[str, Any], Format], None],
    state: Callable[[dict[str, Any]], str] = _state,
    names: Callable[[Client, dict[str, Any]], dict[str, str]] = _no_names,
) -> Kind:
    """Of what commands call so."""
    return Kind(PATHS[noun], lambda client, wanted: client.find(noun, wanted), show, state, noun, names)


def each(
    kind: Kind, names: Sequence[str], verb: str, send: Callable[[Client, str], dict[str, Any]], ending: Ending
) -> None:
    """Send for all of them first, then wait for one after the other: they run side by side.

    ``send`` gets the path of one. One that fails does not keep the others from being tried.
    """
    accepted: list[dict[str, Any]] = []
    failures: list[CommandFailed] = []
    with Client() as client:
        for name in dict.fromkeys(names):
            try:
                accepted.append(send(client, f"{kind.path}/{kind.find(client, name)['id']}"))
            except CommandFailed as failure:
                failures.append(failure)
        finish(client, accepted, verb, ending._replace(alone=len(names) == 1), kind, failures)


def finish(
    client: Client,
    accepted: Sequence[dict[str, Any]],
    verb: str,
    ending: Ending,
    kind: Kind,
    failures: Sequence[CommandFailed] = (),
) -> None:
    """Wait for what the envelopes of ``accepted`` started, print where it ended; the first failure decides.

    ``ending.timeout`` is for all of them together. ``failures``: those that were not accepted.
    """
    rows: list[dict[str, Any]] = []
    failed = list(failures)
    began = time.monotonic()
    for number, envelope in enumerate(accepted):
        row, workflow_id = envelope["data"], workflow_of(envelope)
        name = row.get("name") or row.get("id") or row["instance_id"]
        if workflow_id and ending.wait:
            render.say(f"{verb} {name}: workflow {workflow_id}")
            try:
                ended = watch(client, workflow_id, ending.timeout, began)
                row = _again(client, kind, row)
                if kind.noun:
                    client.about(kind.noun, name)
                require_completed(ended)
            except (CommandFailed, KeyboardInterrupt) as failure:
                if isinstance(failure, KeyboardInterrupt) or failure.exit is Exit.INTERRUPTED:
                    raise interrupted([id for later in accepted[number:] if (id := workflow_of(later))]) from None
                client.advise(failure)
                failed.append(failure)
                if failure.exit is Exit.TIMED_OUT:
                    row = _again(client, kind, row)  # how far it is by now
        elif workflow_id:
            render.say(f"{verb} {name} accepted; wait for it: cairn workflow wait {workflow_id}")
        rows.append(row)
    _print(client, rows, ending, kind)
    end(failed)


def _again(client: Client, kind: Kind, row: dict[str, Any]) -> dict[str, Any]:
    """As it is now; as it was where nothing is left to be read."""
    if "id" not in row:  # a part of another resource, which is in the list alone
        gone = row | {"state": "removed", "health": "", "workflow_id": None}
        return next((one for one in client.get(kind.path) if one["instance_id"] == row["instance_id"]), gone)
    try:
        return dict(client.get(f"{kind.path}/{row['id']}"))
    except CommandFailed as failure:
        if failure.code not in ("not_found", "forbidden"):
            raise
        if failure.code == "forbidden":
            render.say(f"shown as it was accepted; how it is now may not be seen: {failure.message}")
        return row


def _print(client: Client, rows: list[dict[str, Any]], ending: Ending, kind: Kind) -> None:
    if ending.alone:
        for row in rows:
            kind.display(client, row, ending.output)
    elif ending.output is Format.TABLE and rows:
        render.print_table(
            ["NAME", "STATUS", "ID"], [[str(row.get("name") or ""), kind.state(row), row["id"]] for row in rows]
        )
    elif ending.output is not Format.TABLE:
        render.print_json(rows)
