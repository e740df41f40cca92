"""What the commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CommandFailed

#: Below this many columns a terminal's table leaves its wide columns out.
WIDE = 120
#: A pipe's reader wants whole lines, however long.
ENDLESS = 10_000


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="table for people, json: the bare data for programs.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, newest first.")]
All = Annotated[bool, typer.Option("--all", help="All of them, page by page.")]

_COLOURS = {
    "running": "green",
    "completed": "green",
    "stopped": "yellow",
    "paused": "yellow",
    "cancelled": "yellow",
    "error": "red",
    "failed": "red",
    "deleted": "dim",
}


def out() -> Console:
    return _console(stderr=False)


def err() -> Console:
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = ENDLESS
    return console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the program, which ends all commands alike."""
        raise BrokenPipeError


def say(message: str) -> None:
    """A line for the person at the terminal; never part of the result."""
    err().print(Text(message), soft_wrap=True)


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[str] = ()) -> None:
    """One line per row; columns named in ``wide`` are left out on a narrow terminal."""
    console = out()
    shown = [i for i, header in enumerate(headers) if header not in wide or console.width >= WIDE]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i in shown:
        table.add_column(headers[i], overflow="fold")
    for row in rows:
        table.add_row(*(coloured(row[i]) for i in shown))
    _show(console, table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Label and value, line by line; empty values are left out."""
    console = out()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        if value:
            table.add_row(label, coloured(value))
    _show(console, table)


def grid(rows: Sequence[Sequence[str]]) -> Table:
    """A table to be redrawn in place; its first row is its head."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for number, row in enumerate(rows):
        table.add_row(*row, style="" if number else "bold")
    return table


def _show(console: Console, table: Table) -> None:
    """Without the blanks that fill a table's last column, where they would be kept."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def print_failure(failure: CommandFailed) -> None:
    console = err()
    first = Text("error: ", style="bold red").append(
        Text(f"{failure.message} ({failure.code})", style="not bold default")
    )
    console.print(first, soft_wrap=True)
    for field in failure.fields:
        line = f"{field.get('field')}: {field.get('message')}"
        if line not in failure.message:
            console.print(Text(f"  {line}"), soft_wrap=True)
    if failure.hint:
        console.print(Text("hint: ", style="bold").append(Text(failure.hint, style="not bold")), soft_wrap=True)


def pairs(values: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in (values or {}).items())


def coloured(value: str) -> Text:
    return Text(value, style=_COLOURS.get(value, ""))


def time_of(value: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(value) if value else None


def age(value: str | None) -> str:
    """How long ago, in the largest unit that fits: 12s, 5m, 3h, 8d."""
    then = time_of(value)
    return "" if then is None else span((dt.datetime.now(dt.UTC) - then).total_seconds())


def span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def size(count: float) -> str:
    """Bytes, in the unit that fits: 512 B, 1.5 MiB."""
    for unit, many in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= many:
            return f"{count / many:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """As exact as a person wants it: 84 ms, 1.4 s, 95 s."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"  # noqa: PLR2004


def between(start: str | None, end: str | None) -> str:
    """The time from one moment to another; to now where the other has not come."""
    began = time_of(start)
    if began is None:
        return ""
    return duration(((time_of(end) or dt.datetime.now(dt.UTC)) - began).total_seconds())
