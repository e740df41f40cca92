"""A workflow that failed, tried again: on the same resource, once, whatever dies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.stack import Json, Stack


def failed_launch(stack: Stack) -> Json:
    """A launch that was called off before its start; nothing of it is left."""
    point = "instance.start.before"
    before = len(stack.hits(point))
    stack.fault(point, "pause")
    launched = stack.launch()
    stack.wait_for_hit(point, before)
    stack.cancelled(launched, 15)
    stack.plant()
    assert stack.instance(launched)["status"] == "error"
    return launched


def retry(stack: Stack, accepted: Json) -> Json:
    return stack.accept("POST", f"/workflows/{accepted['meta']['workflow_id']}/retry")


def test_launch_that_was_called_off_runs_when_it_is_retried(stack: Stack) -> None:
    launched = failed_launch(stack)
    again = retry(stack, launched)
    row = stack.completed(again)
    assert row["retry_of"] == launched["meta"]["workflow_id"]
    instance = stack.instance(launched)
    assert (instance["status"], instance["error"]) == ("running", None)
    assert len(stack.simulated_machines()) == 1


@pytest.mark.parametrize("process", ["api", "control_worker"])
def test_process_that_is_killed_right_after_the_answer_changes_nothing(stack: Stack, process: str) -> None:
    launched = failed_launch(stack)
    again = retry(stack, launched)
    stack.kill(process)
    stack.wait_for_api()
    stack.completed(again)
    assert stack.instance(launched)["status"] == "running"
    assert len(stack.simulated_machines()) == 1


@pytest.mark.parametrize("point", ["instance.place.after_commit", "instance.create.after_effect"])
def test_retried_launch_goes_on_where_it_was_killed(stack: Stack, point: str) -> None:
    launched = failed_launch(stack)
    before = len(stack.hits(point))
    stack.fault(point, "kill")
    again = retry(stack, launched)
    stack.wait_for_hit(point, before)
    stack.completed(again)
    assert len(stack.simulated_machines()) == 1


def test_of_many_retries_at_once_one_runs(stack: Stack) -> None:
    launched = failed_launch(stack)
    path = f"/workflows/{launched['meta']['workflow_id']}/retry"
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: stack.request("POST", path), range(20)))
    accepted = [answer.json() for answer in answers if answer.status_code == httpx.codes.ACCEPTED]
    assert len(accepted) == 1
    stack.completed(accepted[0])
    assert len(stack.simulated_machines()) == 1


def test_retry_that_fails_too_is_retried_by_its_own_id(stack: Stack) -> None:
    launched = failed_launch(stack)
    stack.fault("instance.start.before", "pause")
    before = len(stack.hits("instance.start.before"))
    again = retry(stack, launched)
    stack.wait_for_hit("instance.start.before", before)
    stack.cancelled(again, 15)
    stack.plant()
    refused = stack.request("POST", f"/workflows/{launched['meta']['workflow_id']}/retry")
    assert refused.json()["error"]["details"]["workflow_id"] == again["meta"]["workflow_id"]
    stack.completed(retry(stack, again))


def test_stop_that_was_called_off_stops_when_it_is_retried(stack: Stack) -> None:
    instance = stack.running()
    point = "instance.stop.before"
    before = len(stack.hits(point))
    stack.fault(point, "pause")
    stopping = stack.act("stop", instance)
    stack.wait_for_hit(point, before)
    stack.cancelled(stopping, 15)
    stack.plant()
    stack.completed(retry(stack, stopping))
    assert stack.instance(instance)["status"] == "stopped"
