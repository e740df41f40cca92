"""Writes what is generated of docs: every command in ``cli.md``, every setting in ``configuration.md``: ``make docs``.

``--check`` writes nothing, and ends with 1 where a file would change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- generated: make docs -->", "<!-- end of what is generated -->"
_EXAMPLE = "Example: "


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(words), command
    for name, each in (below or {}).items():
        yield from _commands((*words, name), each)


def commands() -> str:
    """Every command: how it is called, what it does, its options. Those that many have are explained once."""
    from cli.commands import COMMANDS
    from cli.everywhere import PANEL
    from cli.main import load

    everywhere: dict[str, str] = {}
    pieces: list[str] = []
    for top in COMMANDS:
        for words, command in _commands((top,), load(top)):
            context = command.make_context(f"cairn {words}", [], resilient_parsing=True)
            usage = re.sub(r"\s+", " ", command.get_usage(context).removeprefix("Usage: "))
            lines = [f"### cairn {words}", "", _plain(command.help), "", "```", usage]
            if (command.epilog or "").startswith(_EXAMPLE):
                lines.append(f"# {command.epilog}")
            lines += ["```", ""]
            for param in command.params:
                if (record := param.get_help_record(context)) is None:
                    continue
                row = f"- `{record[0]}`: {_plain(record[1])}"
                if getattr(param, "rich_help_panel", None) == PANEL:
                    everywhere[record[0]] = row
                else:
                    lines.append(row)
            pieces.append("\n".join(lines).rstrip())
    shared = "Those that many commands have (which, their `--help` says):\n\n" + "\n".join(everywhere.values())
    return "\n\n".join([shared, *pieces])


def _plain(text: str) -> str:
    """One line of Markdown that shows what was written: what is between ``<`` and ``>`` is no HTML."""
    return re.sub(r"\s+", " ", text.strip()).replace("<", "&lt;").replace("*", "\\*")


def settings() -> str:
    from model.settings import table

    return table()


def main() -> int:
    changed = []
    for name, make in (("cli.md", commands), ("configuration.md", settings)):
        path = DOCS / name
        text = path.read_text()
        head, begun, rest = text.partition(BEGIN)
        _, ended, tail = rest.partition(END)
        if not (begun and ended):
            raise SystemExit(f"{path} has no line '{BEGIN}' with '{END}' behind it")
        fresh = f"{head}{BEGIN}\n\n{make()}\n\n{END}{tail}"
        if fresh != text:
            changed.append(path)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    for path in changed:
        print(path)
    return 1 if changed and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
