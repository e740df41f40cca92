"""What the commands print: results on stdout, everything else on stderr.

Tables and lines are written here, and not with rich: it takes as long to load as a whole command may
take. What moves in place on a terminal has it.
"""

from __future__ import annotations

import codecs
import datetime as dt
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import typer

from cli.errors import CommandFailed
from cli.given import given

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

#: Below this many columns a terminal's table leaves its wide columns out.
WIDE = 120
#: A pipe's reader wants whole lines, however long. (rich lays its lines out in memory: it needs a number.)
ENDLESS = 10_000
GAP = "  "
#: No column of a table is cut to less.
NARROWEST = 6
#: Columns that are copied from: they are there however narrow it is.
COPIED = ("ID", "NAME")
#: Columns that are never cut, and those that are only where nothing else is left.
WHOLE, KEPT = ("ID", "KIND"), ("NAME", "STATE")


class Format(StrEnum):
    """What a command prints. It asks only whether that is a table: YAML and JSON are the same data to it."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def notation(value: Format) -> Format:
    """``print_json`` knows how the data is written; commands get JSON for both."""
    given.yaml = value is Format.YAML
    return Format.JSON if value is Format.YAML else value


Output = Annotated[
    Format,
    typer.Option(
        "--output", "-o", callback=notation, help="table for people; json and yaml: the bare data for programs."
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
All = Annotated[bool, typer.Option("--all", help="All of them, page by page.")]


class Printer(Protocol):
    """Prints in place of the functions below."""

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...
    def facts(self, facts: Sequence[tuple[str, str]]) -> None: ...
    def data(self, data: Any) -> None: ...
    def lines(self, lines: Sequence[str]) -> None: ...


#: Set while only changes are wanted.
instead: Printer | None = None

_COLOURS: dict[str, dict[str, Any]] = {
    "running": {"fg": "green"},
    "completed": {"fg": "green"},
    "available": {"fg": "green"},
    "stopped": {"fg": "yellow"},
    "paused": {"fg": "yellow"},
    "cancelled": {"fg": "yellow"},
    "error": {"fg": "red"},
    "failed": {"fg": "red"},
    "deleted": {"dim": True},
}
#: Control characters, and what turns the direction of a line or begins another.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
#: What is written for a character that the locale has not.
_PLAIN = {"…": "...", "→": "->", "✓": "ok", "✗": "x", "⊘": "-", "•": "*", "·": "."}


def _as_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("cairn", _as_plain)


def prepare(stream: TextIO) -> None:
    """Nothing that a command has to say keeps it from going on, whatever the locale."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="cairn")


def has_colours(stream: TextIO) -> bool:
    """https://no-color.org, and https://bixense.com/clicolors: NO_COLOR is the strongest."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = [os.environ.get(name, "") for name in ("CLICOLOR_FORCE", "FORCE_COLOR")]
    if any(value not in ("", "0") for value in forced):
        return True
    plain = os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def width_of(stream: TextIO) -> int:
    return shutil.get_terminal_size().columns if stream.isatty() else sys.maxsize


def out() -> Console:
    """For what rich is needed for; everything else is printed by the functions below."""
    return _console(sys.stdout)


def err() -> Console:
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to the program, which ends all commands alike."""
            raise BrokenPipeError

    colours, on_terminal = has_colours(stream), stream.isatty()
    forced: Any = "standard" if colours and not on_terminal else "auto"
    # Colours may be forced into a pipe; what moves in place may not.
    made = Quiet(file=stream, highlight=False, no_color=not colours, force_terminal=on_terminal, color_system=forced)
    if not on_terminal:
        made.width = ENDLESS
    return made


def say(message: str) -> None:
    """A line for the person at the terminal; never part of the result."""
    sys.stderr.write(clean(message, keep="\r\n") + "\n")
    sys.stderr.flush()


def paint(value: str, stream: TextIO, **style: Any) -> str:
    return typer.style(value, **style) if style and has_colours(stream) else value


def status(value: str) -> str:
    """In the colour of such a state, for stdout."""
    return paint(value, sys.stdout, **_COLOURS.get(value, {}))


def clean(value: str, keep: str = "") -> str:
    """Without what would steer the terminal: others wrote it."""
    return _CONTROLS.sub(lambda found: "".join(c if c in keep else " " for c in found[0]), value)


def print_json(data: Any) -> None:
    """The API's data as it is, written as ``-o`` asks for it."""
    if instead:
        instead.data(data)
    elif given.yaml:
        sys.stdout.write(_yaml(data))
    else:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")


def print_line(data: Any) -> None:
    """One of many that come one after the other: a line of JSON, or a document of YAML; at once."""
    sys.stdout.write("---\n" + _yaml(data) if given.yaml else json.dumps(data) + "\n")
    sys.stdout.flush()


def _yaml(data: Any) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=ENDLESS))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[str] = ()) -> None:
    """One line per row. On a terminal that is too narrow for them, columns of ``wide`` are left out, then cells cut,
    then others left out: ids stay whole, and names as long as they can."""
    if instead:
        instead.table(headers, rows)
        return
    stream = sys.stdout
    table = [[clean(str(cell)) for cell in row] for row in (headers, *rows)]
    shown, widths = _fitted(table, {headers.index(name) for name in wide}, width_of(stream))
    for number, row in enumerate(table):
        cells = []
        for i in shown:
            cell = _cut(row[i], widths[i], stream)
            style = _COLOURS.get(row[i], {}) if number else {"bold": True}
            cells.append(paint(cell, stream, **style) + " " * (widths[i] - cells_of(cell)))
        stream.write(GAP.join(cells).rstrip() + "\n")


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Label and value, line by line; empty values are left out."""
    if instead:
        instead.facts(facts)
        return
    stream = sys.stdout
    longest = max((len(label) for label, value in facts if value), default=0)
    for label, value in facts:
        if value:
            text = clean(value)
            painted = paint(text, stream, **_COLOURS.get(text, {}))
            stream.write(paint(label.ljust(longest), stream, bold=True) + GAP + painted + "\n")


def print_lines(lines: Sequence[str]) -> None:
    if instead:
        instead.lines(lines)
        return
    for line in lines:
        sys.stdout.write(clean(line) + "\n")


def _fitted(table: Sequence[Sequence[str]], wide: set[int], room: int) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide each of them is."""
    widths = [max(cells_of(row[i]) for row in table) for i in range(len(table[0]))]
    shown = [i for i in range(len(widths)) if i not in wide or room >= WIDE]
    for i in sorted(wide & set(shown), reverse=True):
        if _excess(widths, shown, room) > 0:
            shown.remove(i)
    whole = {i for i in shown if table[0][i] in WHOLE}
    kept = whole | {i for i in shown if table[0][i] in KEPT}
    while _excess(_narrowed(widths, shown, kept, room), shown, room) > 0:
        others = [i for i in shown if table[0][i] not in COPIED]
        if not others:
            break
        shown.remove(max(others, key=lambda i: (i not in kept, i)))
    widths = _narrowed(widths, shown, kept, room)
    return shown, _narrowed(widths, shown, whole, room)


def _excess(widths: Sequence[int], shown: Sequence[int], room: int) -> int:
    return sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1) - room


def _narrowed(widths: Sequence[int], shown: Sequence[int], kept: set[int], room: int) -> list[int]:
    """With the widest columns, but those of ``kept``, cut as far as they must and may be."""
    widths = list(widths)
    cut = [i for i in shown if i not in kept]
    while cut and (excess := _excess(widths, shown, room)) > 0:
        # The widest one gives way, as far as the next; a name, which comes first, as the last of equals.
        widest = max(cut, key=lambda i: (widths[i], i))
        if widths[widest] <= NARROWEST:
            break
        others = max((widths[i] for i in cut if i != widest), default=0)
        widths[widest] = max(NARROWEST, min(widths[widest] - 1, max(others, widths[widest] - excess)))
    return widths


def _cut(text: str, width: int, stream: TextIO) -> str:
    if cells_of(text) <= width:
        return text
    dots = "…" if (stream.encoding or "").lower().startswith("utf") else "..."
    while cells_of(text) > width - len(dots):
        text = text[:-1]
    return text + dots


def cells_of(text: str) -> int:
    """Columns that it takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def grid(rows: Sequence[Sequence[str]]) -> Table:
    """A table to be redrawn in place; its first row is its head."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for number, row in enumerate(rows):
        table.add_row(*row, style="" if number else "bold")
    return table


def print_failure(failure: CommandFailed) -> None:
    stream = sys.stderr
    lines = [("error:", {"fg": "red", "bold": True}, f" {failure.message} ({failure.code})")]
    for field in failure.fields:
        line = f"{field.get('field')}: {field.get('message')}"
        if line not in failure.message and str(field.get("message")) not in failure.message:
            lines.append(("", {}, f"  {line}"))
    if failure.hint:
        lines.append(("hint:", {"bold": True}, f" {failure.hint}"))
    for label, style, text in lines:
        stream.write(paint(label, stream, **style) + clean(text, keep="\n") + "\n")
    stream.flush()


def pairs(values: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in (values or {}).items())


def coloured(value: str) -> Text:
    """For what rich prints."""
    from rich.text import Text

    style = _COLOURS.get(value, {})
    return Text(value, style=str(style.get("fg") or ("dim" if style else "")))


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
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"  # noqa: PLR2004 - a minute


def between(start: str | None, end: str | None) -> str:
    """The time from one moment to another; to now where the other has not come."""
    began = time_of(start)
    if began is None:
        return ""
    return duration(((time_of(end) or dt.datetime.now(dt.UTC)) - began).total_seconds())
