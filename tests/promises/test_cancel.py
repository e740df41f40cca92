"""Cancels that are not at a point of the matrix: in the middle of a long call, and without Temporal."""

from __future__ import annotations

import httpx

from tests.stack import Stack


def test_cancel_during_a_long_engine_call_acts_within_ten_seconds(stack: Stack) -> None:
    point = "instance.start.after_effect"
    before = len(stack.hits(point))
    stack.fault(point, "delay", seconds=60)
    launched = stack.launch(backend="docker")
    stack.wait_for_hit(point, before)
    row = stack.cancelled(launched, within=10)
    assert [step["name"] for step in row["steps"] if not step["undo"]][-1] == "instance.start"
    assert [step["name"] for step in row["steps"] if step["undo"]] == ["instance.delete"]
    assert stack.containers(launched["data"]["id"]) == []


def test_cancel_while_a_step_is_stuck_inside_its_transaction(stack: Stack) -> None:
    """It holds the very rows that the cancel is to be written on."""
    point = "instance.place.after_effect"
    before = len(stack.hits(point))
    stack.fault(point, "pause")
    launched = stack.launch()
    stack.wait_for_hit(point, before)
    stack.cancelled(launched, within=10)


def test_row_that_temporal_never_saw_is_cancelled_without_it(stack: Stack) -> None:
    with stack.frozen("temporal"):
        launched = stack.launch(backend="docker")
        answer = stack.cancel(launched)
        assert answer.status_code == httpx.codes.ACCEPTED
        assert answer.json()["data"]["state"] == "cancelled"
        assert stack.instance(launched)["status"] == "error"
