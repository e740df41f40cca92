"""Values of options, as they are written on the command line."""

from __future__ import annotations

import re

from cli.errors import usage

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def pairs(option: str, values: list[str] | None) -> dict[str, str]:
    """``KEY=VALUE``, each."""
    found = {}
    for value in values or []:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise usage(f"{option} {value}: expected KEY=VALUE")
        found[key] = rest
    return found


def seconds(option: str, value: str) -> int:
    """A time such as 90s, 30m, 1h or 7d."""
    written = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if not written or not int(written[1]):
        raise usage(f"{option} {value}: expected a number and s, m, h or d, such as 1h")
    return int(written[1]) * _UNITS[written[2]]
