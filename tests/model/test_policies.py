"""How many members a policy wants."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.policies import LOW_FOR, TOLERANCE, Seen, Verdict, judge, together

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LONG_LOW = NOW - LOW_FOR


def seen(value: float | None, **more: Any) -> Seen:
    fields = {"target": 50, "desired": 4, "least": 1, "most": 10, "out_step": None, "in_step": None, "low_since": None}
    return Seen(value=value, **fields | more)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (seen(50), (4, None)),
        (seen(54), (4, None)),  # within the tolerance
        (seen(46), (4, None)),
        (seen(75), (6, None)),
        (seen(1000), (10, None)),
        (seen(1e308, target=1e-300), (10, None)),  # infinitely many, of which there is no whole number
        (seen(75, out_step=1, in_step=1), (5, None)),
        (seen(20), (4, NOW)),  # not before it has been so for a while
        (seen(20, low_since=LONG_LOW), (2, LONG_LOW)),
        (seen(20, low_since=LONG_LOW, out_step=1, in_step=1), (3, LONG_LOW)),
        (seen(20, low_since=LONG_LOW, least=3), (3, LONG_LOW)),
        (seen(0, low_since=LONG_LOW), (1, LONG_LOW)),  # of none nothing could be measured
        (seen(44, low_since=LONG_LOW), (4, None)),  # three could not bear it
        (seen(49, low_since=LONG_LOW), (4, None)),
        (seen(None, low_since=LONG_LOW), (4, None)),
        (seen(90, desired=0, least=0), (0, None)),
    ],
)
def test_what_is_wanted(what: Seen, expected: Verdict) -> None:
    assert judge(what, NOW) == expected


@given(load=st.floats(1, 2000), desired=st.integers(1, 50), steps=st.sampled_from([None, 1, 3]))
def test_same_load_never_makes_it_swing(load: float, desired: int, steps: int | None) -> None:
    """Once it has come to rest it stays there: no number is left in both directions."""
    visited = [desired]
    for _ in range(200):
        what = seen(load / desired, desired=desired, most=50, out_step=steps, in_step=steps, low_since=LONG_LOW)
        wanted = judge(what, NOW).desired
        if wanted == desired:
            break
        desired = wanted
        visited.append(desired)
    else:
        raise AssertionError(f"it swings: {visited[-6:]}")
    assert desired == 50 or load / desired <= 50 * (1 + TOLERANCE)


def test_of_several_the_one_that_wants_most_decides() -> None:
    assert together(4, [3, 6, 2]) == 6
    assert together(4, [3, 4]) == 4
    assert together(4, [3, 2]) == 3
    assert together(4, []) == 4
