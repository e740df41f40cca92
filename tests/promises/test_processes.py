"""Promise 1: kill -9 of the API, Temporal or PostgreSQL, at each step of launch, start, stop and delete."""

from __future__ import annotations

import pytest

from tests.installation import Installation

STEPS = {
    "launch": ["instance.place", "image.ensure", "instance.create", "instance.start", "instance.settle"],
    "start": ["instance.claim", "instance.start", "instance.settle"],
    "stop": ["instance.claim", "instance.stop", "instance.settle"],
    "delete": ["instance.claim", "instance.delete", "instance.settle"],
}
CELLS = [(verb, step) for verb, steps in STEPS.items() for step in steps]


@pytest.mark.parametrize("process", ["api", "temporal", "postgres"])
@pytest.mark.parametrize(("verb", "step"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_kill_process_at_step(cairn: Installation, process: str, verb: str, step: str) -> None:
    instance = None if verb == "launch" else cairn.running("docker")
    if verb == "start" and instance:
        cairn.ended(cairn.act(instance, "stop")["workflow_id"])
    point = f"{step}.after_effect"
    before = cairn.hits(point)
    cairn.fault(point, "pause")
    accepted = cairn.act(instance, verb) if instance else cairn.launch("docker")
    cairn.held(point, beyond=before)
    cairn.kill(process)
    cairn.clear()
    assert cairn.ended(accepted["workflow_id"], 90)["state"] == "completed"
    wanted = {"launch": "running", "start": "running", "stop": "stopped", "delete": "deleted"}[verb]
    assert cairn.instance(accepted)["status"] == wanted
    cairn.converged()
