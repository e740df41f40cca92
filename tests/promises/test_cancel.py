"""Promise 3: cancel works at every step: `cancelled` with nothing left, or `completed`."""

from __future__ import annotations

import time

import pytest

from tests.installation import Installation
from tests.promises.test_processes import CELLS

POINTS = ("before", "after_effect", "after_commit")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("verb", "step"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_cancel_at_step(cairn: Installation, verb: str, step: str, point: str) -> None:
    instance = None if verb == "launch" else cairn.running("docker")
    prior = {"start": "stopped", "stop": "running"}.get(verb)
    if verb == "start" and instance:
        cairn.ended(cairn.act(instance, "stop")["workflow_id"])
    name = f"{step}.{point}"
    before = cairn.hits(name)
    cairn.fault(name, "pause")
    accepted = cairn.act(instance, verb) if instance else cairn.launch("docker")
    cairn.held(name, beyond=before)
    asked = time.monotonic()
    answer = cairn.call("POST", f"/workflows/{accepted['workflow_id']}/cancel")
    assert answer.status_code == 202, answer.text
    if step == "instance.settle" or verb == "delete":
        # Past its last step a run completes, and a delete is not called off: the fault has to be lifted.
        cairn.clear()
    row = cairn.ended(accepted["workflow_id"], 30)
    assert time.monotonic() - asked < 20
    after = cairn.instance(accepted)
    if row["state"] == "cancelled":
        assert verb != "delete"
        assert after["status"] == (prior or "error")
        if verb == "launch":
            assert after["error"]["code"] == "cancelled"
            assert all(c.labels["io.cairn.id"] != accepted["id"] for c in cairn.containers())
    else:
        assert row["state"] == "completed"
        assert (
            after["status"] == {"launch": "running", "start": "running", "stop": "stopped", "delete": "deleted"}[verb]
        )
    cairn.converged()


def test_cancel_during_a_long_engine_call_acts_within_ten_seconds(cairn: Installation) -> None:
    cairn.fault("instance.start.after_effect", "delay", seconds=60)
    instance = cairn.launch("docker")
    cairn.held("instance.start.after_effect", beyond=0)
    asked = time.monotonic()
    cairn.call("POST", f"/workflows/{instance['workflow_id']}/cancel")
    row = cairn.ended(instance["workflow_id"], 30)
    assert time.monotonic() - asked < 10
    assert row["state"] == "cancelled"
    names = [step["name"] for step in row["steps"] if not step["undo"]]
    assert names[-1] == "instance.start"
    assert [step["name"] for step in row["steps"] if step["undo"]] == ["instance.delete"]


def test_a_row_that_temporal_never_saw_is_cancelled_without_it(cairn: Installation) -> None:
    import os
    import signal

    pid = cairn.endpoint["pids"]["temporal"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        instance = cairn.launch("docker")
        assert time.monotonic() - began < 0.5
        row = cairn.call("POST", f"/workflows/{instance['workflow_id']}/cancel").json()["data"]
        assert row["state"] == "cancelled"
        assert cairn.instance(instance)["status"] == "error"
    finally:
        os.kill(pid, signal.SIGCONT)
    cairn.converged()
