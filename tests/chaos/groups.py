"""A group that is interrupted while it grows, changes and shrinks: it has just the members that it should have."""

from __future__ import annotations

import uuid

from tests.chaos.cells import PROCESSES, Cell
from tests.stack import IMAGE, Json, Stack, wait_for

#: Steps that only a group that shrinks, or is changed, passes.
REMOVING = ("group.release", "instance.delete")


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    body = {"name": f"g-{uuid.uuid4().hex[:8]}", "image": IMAGE, "backend": "simulated", "ports": "80"}
    removes = cell.activity in REMOVING
    body |= {"max_instances": 9, "desired_count": 3 if removes else 0}
    accepted = stack.accept("POST", "/autoscaling/groups", body)
    path = f"/autoscaling/groups/{accepted['data']['id']}"
    try:
        stack.completed(accepted)
        before = len(stack.hits(cell.point))
        alone = cell.what in PROCESSES
        stack.fault(cell.point, "pause" if alone else cell.what)
        scaled = stack.accept("PUT", f"{path}/scale", {"desired_count": 1 if removes else 3})
        stack.wait_for_hit(cell.point, before, 30)
        if alone:
            stack.kill(cell.what)
            stack.plant()
        row = stack.ended(scaled, 60)
        assert row["state"] == "completed", row
        _expect(stack, path, 1 if removes else 3)
    finally:
        stack.plant()
        stack.wait_for_api()
        stack.completed(stack.accept("DELETE", path), 60)


def _expect(stack: Stack, path: str, desired: int) -> None:
    group: Json = stack.get(path)
    members = stack.list("/instances", group_id=group["id"])
    assert (group["status"], group["ready_count"], len(members)) == ("active", desired, desired), (group, members)
    wait_for("nothing else is done", lambda: stack.get(path)["status"] == "active")
