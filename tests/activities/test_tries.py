"""Tries of activities: what failed counts, and not what waited."""

from __future__ import annotations

from dataclasses import replace

from temporalio.testing import ActivityEnvironment

from activities.tries import Tries


def test_what_failed_is_tried_as_often_as_said_whatever_else_there_was() -> None:
    tries, here, there = Tries(3), ActivityEnvironment(), ActivityEnvironment()
    there.info = replace(there.info, activity_id="another", attempt=9)
    assert [here.run(tries.is_left) for _ in range(2)] == [True, True]
    assert there.run(tries.is_left), "as it waited eight times"
    assert not here.run(tries.is_left)
    assert here.run(tries.is_left), "its end was told: it begins anew"
