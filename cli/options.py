"""Values of options, as they are written on the command line."""

from __future__ import annotations

import datetime as dt
import re
import shlex
from pathlib import Path

import typer

from cli.errors import usage
from cli.fields import as_time
from cli.given import given

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def pairs(option: str, values: list[str] | None) -> dict[str, str]:
    """``KEY=VALUE``, each."""
    found = {}
    for value in values or []:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise usage(f"{option} {value}: expected KEY=VALUE")
        found[key] = rest
    return found


def command(before: str, words: list[str] | None) -> list[str] | None:
    """What is to be run. Words that are not set apart from names may be names: of one thing too many."""
    if words and not given.dashes:
        raise usage(f"'{words[0]}': write the command after --: cairn {before} -- {shlex.join(words)}")
    return words or None


def seconds(option: str, value: str) -> int:
    """A time such as 90s, 30m, 1h or 7d. Not a number alone: who means eight hours must not get eight seconds."""
    written = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if (written and not int(written[1])) or value.startswith("-"):
        raise usage(f"{option} {value}: expected more than 0, such as 1h")
    if not written:
        raise usage(f"{option} {value}: expected a number and s, m, h or d, such as 1h")
    return int(written[1]) * _UNITS[written[2]]


class Seconds(int):
    """A default that is shown as one writes it: 10m."""

    def __str__(self) -> str:
        return as_time(self)


def duration(value: str | float) -> float:
    """For options that may be 0, or a part of a second: 0, 0.5s, 90, 5m. An int where it is a whole number: the API
    takes no others of most. Raises BadParameter."""
    written = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", str(value))
    if not written:
        raise typer.BadParameter("expected seconds, or a number and s, m, h or d, such as 5m")
    said = float(written[1]) * _UNITS[written[2]]
    return int(said) if said.is_integer() else said


def moment(option: str, value: str | None) -> str | None:
    """A point in time as the API takes it, of one that is written so (RFC 3339), or of how long ago it was: 1h."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}[smhd]", value):
        try:
            return (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds(option, value))).isoformat()
        except OverflowError:
            raise usage(f"{option} {value}: there is no time so long ago") from None
    try:
        zoned = dt.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        zoned = False
    if not zoned:
        raise usage(f"{option} {value}: expected how long ago, such as 1h, or a time, such as 2026-01-31T00:00:00Z")
    return value


def between(since: str | None, until: str | None) -> tuple[str | None, str | None]:
    """``--since`` and ``--until`` as the API takes them; the first is the earlier one."""
    after, before = moment("--since", since), moment("--until", until)
    if after and before and dt.datetime.fromisoformat(after) >= dt.datetime.fromisoformat(before):
        raise usage(f"--since {since} is not before --until {until}: nothing is between them")
    return after, before


def reason(error: Exception) -> str:
    """Why the system refused it, without the number that it gives the reason."""
    return str(getattr(error, "strerror", None) or error)


def cannot_open(what: str, error: Exception) -> str:
    """Of a file that was named: which, and why."""
    return f"{what}: {reason(error)}"


def new_file(what: str, path: Path) -> None:
    """Refuse, before anything is asked for, a file that cannot be made there."""
    folder = path.absolute().parent
    if path.is_dir():
        raise usage(f"{what} {path}: it is a folder: name a file")
    if not folder.is_dir():
        raise usage(f"{what} {path}: there is no folder {folder}: make it, or name another")
