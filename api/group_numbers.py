"""How many members a group may have, and should."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from api.group_schemas import check_bounds
from model.errors import ValidationFailed

NUMBERS = ("min_instances", "max_instances", "desired_count")


def scaled(group: Row[Any], wanted: dict[str, int]) -> dict[str, int]:
    """All numbers of a group of which these are named: as many members as before, as far as the bounds allow that.
    Raises ValidationFailed."""
    known = {name: getattr(group, name) for name in NUMBERS} | wanted
    least, most, desired = (known[name] for name in NUMBERS)
    if "desired_count" not in wanted:
        known["desired_count"] = desired = max(least, min(desired, most))
    check_numbers(least, most, desired)
    return known


def check_numbers(least: int, most: int, desired: int) -> None:
    """Raises ValidationFailed."""
    try:
        check_bounds(least, most, desired)
    except ValueError as error:
        raise ValidationFailed(str(error), fields=[{"field": "desired_count", "message": str(error)}]) from None
