"""``--watch`` and ``cairn watch``: what a command shows, again whenever something happens.

A thread reads the project's events; the command itself is run when one came. On a terminal it is drawn in
place; elsewhere only what changed is printed, line by line.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.commands import COMMANDS, VIEWS
from cli.errors import CommandFailed, Exit, usage
from cli.events import follow

#: Events that come together are shown together.
TOGETHER_SECONDS = 0.2
#: What makes no event of the project (a host's lease, the time that passes) is seen this late.
LOOK_SECONDS = 10.0
#: Columns that change by themselves.
PASSING = frozenset({"AGE", "TOOK", "SEEN"})
PASSING_FACTS = frozenset({"created", "seen", "took"})


def _watchable(incomplete: str) -> list[str]:
    return [name for name, place in COMMANDS.items() if not place.local and name.startswith(incomplete)]


def command(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", help="What shows it: a list or a show.", autocompletion=_watchable),
    ],
) -> None:
    """Show what a command shows, again whenever something happens: COMMAND with --watch."""
    program: Any = context.find_root().command
    root: Any = context.find_root()
    name, found, rest = program.resolve_command(root, list(what))
    _check_shows(found, rest)
    with found.make_context(name, [*rest, "--watch"], parent=root) as inner:
        found.invoke(inner)


def _check_shows(found: Any, words: Sequence[str]) -> None:
    """Raises a usage error where what is named is no view: what it was given to carry out would get the --watch."""
    words = list(words)
    while (within := getattr(found, "commands", None)) and words:
        found = within.get(words.pop(0))
    if "--" in words or getattr(found, "name", None) not in VIEWS:
        raise usage("only a list or a show can be watched: cairn watch instance list")


def watch(show: Callable[[], None]) -> None:
    """Run ``show`` now and after events, until Ctrl-C. Raises what its first run raises."""
    happened = threading.Event()
    # Never closed: it listens for as long as the process lives.
    threading.Thread(target=_listen, args=(Client(), happened), daemon=True).start()
    try:
        if sys.stdout.isatty():
            _draw(show, happened)
        else:
            _print_changes(show, happened)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    finally:
        render.instead = None


def _listen(client: Client, happened: threading.Event) -> None:
    """Follow the events for ever; without them it is only looked now and then."""
    while True:
        try:
            for _ in follow(client, None, told=lambda message: None, begun=happened.set):
                happened.set()
        except CommandFailed:
            time.sleep(LOOK_SECONDS)


def _ticks(happened: threading.Event) -> Iterator[None]:
    while True:
        happened.wait(LOOK_SECONDS)
        time.sleep(TOGETHER_SECONDS)
        happened.clear()
        yield


class _Screen(io.StringIO):
    """Written to as to the terminal itself."""

    encoding = sys.__stdout__.encoding if sys.__stdout__ else "utf-8"

    def isatty(self) -> bool:
        return True


def _draw(show: Callable[[], None], happened: threading.Event) -> None:
    terminal = sys.stdout
    drawn = _run(show)
    terminal.write("\x1b[2J")
    note = ""
    ticks = _ticks(happened)
    while True:
        size = shutil.get_terminal_size()
        lines = drawn.splitlines()
        if len(lines) > size.lines - 2:
            lines = [*lines[: size.lines - 3], f"({len(lines) - size.lines + 3} more lines)"]
        foot = note or f"{time.strftime('%H:%M:%S')}  Ctrl-C ends"
        lines.append(render.paint(foot[: size.columns - 1], terminal, dim=True))
        terminal.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J\n")
        terminal.flush()
        next(ticks)
        try:
            drawn, note = _run(show), ""
        except CommandFailed as failure:
            note = _noted(failure)


def _run(show: Callable[[], None]) -> str:
    with redirect_stdout(_Screen()) as screen, redirect_stderr(screen):
        show()
    return screen.getvalue()


def _noted(failure: CommandFailed) -> str:
    """An API that is away is waited for. Raises any other failure again."""
    if failure.exit is not Exit.UNREACHABLE or failure.code == "unauthenticated":
        raise failure
    return f"{time.strftime('%H:%M:%S')}  {failure.message}; trying again"


def _print_changes(show: Callable[[], None], happened: threading.Event) -> None:
    changes = render.instead = Changes()
    away = False
    ticks = _ticks(happened)
    while True:
        try:
            show()
            away = False
        except CommandFailed as failure:
            if not changes.seen:
                raise
            note = _noted(failure)
            if not away:
                render.say(note)
            away = True
        next(ticks)


class Changes:
    """A printer that, of what it is given again and again, prints what is new."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] | None = None
        self.widths: list[int] = []
        #: What is listed, by id.
        self.names: dict[str, str] = {}

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        key = headers.index("ID") if "ID" in headers else 0
        now = {row[key]: row for row in rows}
        if self.seen is None:
            self.widths = [max(render.cells_of(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
            self._line(headers)
        for id, row in reversed(now.items()):  # newest last, as things happen
            if self._differs(id, [cell for name, cell in zip(headers, row, strict=True) if name not in PASSING]):
                self._line(row)
            if "NAME" in headers:
                self.names[id] = row[headers.index("NAME")]
        for id in self._gone(now):
            name = self.names.pop(id, id)
            print(render.clean(f"{name} ({id})" if name != id else id), "is no longer listed", flush=True)

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        for label, value in facts:
            if label not in PASSING_FACTS and self._differs(label, value) and value:
                print(f"{label}: {render.clean(value)}", flush=True)

    def lines(self, lines: Sequence[str]) -> None:
        for line in lines:
            if self._differs(line, line):
                print(render.clean(line), flush=True)

    def data(self, data: Any) -> None:
        rows = data if isinstance(data, list) else [data]
        now = {str(row.get("id") or row) if isinstance(row, dict) else str(row): row for row in rows}
        for id, row in reversed(now.items()):
            if self._differs(id, row):
                render.print_line(row)
            if isinstance(row, dict) and row.get("name"):
                self.names[id] = str(row["name"])
        for id in self._gone(now):
            name = self.names.pop(id, None)
            render.print_line({"id": id, **({"name": name} if name else {}), "gone": True})

    def _differs(self, id: str, value: Any) -> bool:
        seen = self.seen if self.seen is not None else {}
        self.seen = seen
        if id in seen and seen[id] == value:
            return False
        seen[id] = value
        return True

    def _gone(self, now: dict[str, Any]) -> list[str]:
        self.seen = self.seen or {}
        gone = [id for id in self.seen if id not in now]
        for id in gone:
            del self.seen[id]
        return gone

    def _line(self, cells: Sequence[str]) -> None:
        """Columns keep the places that they had at first, as far as their values let them."""
        padded = [
            render.clean(cell) + " " * (width - render.cells_of(cell))
            for cell, width in zip(cells, self.widths, strict=False)
        ]
        print(render.GAP.join(padded).rstrip(), flush=True)
