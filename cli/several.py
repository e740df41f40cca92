"""Commands that remove what is named, one or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cli import render
from cli.client import Client
from cli.errors import CommandFailed


def one_by_one(names: Sequence[str], do: Callable[[str], None]) -> None:
    """``do`` for each; one that fails does not keep the others from being tried. The first one that fails decides."""
    failures: list[CommandFailed] = []
    for name in dict.fromkeys(names):
        try:
            do(name)
        except CommandFailed as failure:
            failures.append(failure)
    end(failures)


def remove_each(names: Sequence[str], path: Callable[[Client, str], str], *, looked_up: bool = True) -> None:
    """DELETE each, at its path. ``looked_up``: whoever says the path has seen that it is there."""
    with Client() as client:

        def forget(name: str) -> None:
            if looked_up:
                remove(client, path(client, name))
            else:
                client.request("DELETE", path(client, name))
            render.say(f"{name} is deleted")

        one_by_one(names, forget)


def end(failures: Sequence[CommandFailed]) -> None:
    """Tell them in their order; the exit code is that of the first."""
    for earlier in failures[:-1]:
        render.print_failure(earlier)
    if failures:
        failures[-1].exit = failures[0].exit
        raise failures[-1]


def remove(client: Client, path: str) -> None:
    """Of what was there a moment ago: where it is gone, an answer was lost, and asking again found that."""
    try:
        client.request("DELETE", path)
    except CommandFailed as failure:
        if failure.code != "not_found":
            raise
