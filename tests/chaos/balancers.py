"""Load balancers that are interrupted: made, changed and deleted, or as they were before."""

from __future__ import annotations

import uuid

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.stack import Json, Stack, wait_for

LAST = ("lb.settle.after_effect", "lb.settle.after_commit")


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    target = stack.running()
    front = None if cell.plan == "balancer" else _made(stack, target)
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, "pause" if alone else cell.what)
    accepted = _begin(stack, cell, target, front)
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    if cell.what == "cancel" and cell.plan != "balancer delete":
        assert row["state"] in ("completed", "cancelled"), row
    elif row["state"] != "cancelled":  # a delete that was still only a row
        assert row["state"] == "completed", row
    _expect(stack, cell, target, front or accepted["data"], row["state"])


def _made(stack: Stack, target: Json) -> Json:
    """A balancer with one target, which is drained when it leaves."""
    accepted = _create(stack, target)
    stack.completed(accepted)
    front: Json = accepted["data"]
    body = {"instance_id": target["id"], "port": 80}
    stack.completed(stack.accept("POST", f"/lb/{front['id']}/targets", body))
    return front


def _create(stack: Stack, target: Json) -> Json:
    name, port = f"lb-{uuid.uuid4().hex[:8]}", 80
    body = {"name": name, "port": port, "host_port": 0, "backend": "simulated", "host": target["host"]}
    return stack.accept("POST", "/lb", body | {"drain_seconds": 2})


def _begin(stack: Stack, cell: Cell, target: Json, front: Json | None) -> Json:
    if front is None:
        return _create(stack, target)
    path = f"/lb/{front['id']}"
    return stack.accept("DELETE", path if cell.plan == "balancer delete" else f"{path}/targets/{target['id']}")


def _expect(stack: Stack, cell: Cell, target: Json, front: Json, state: str) -> None:
    done = state == "completed"
    now = stack.get(f"/lb/{front['id']}")
    if cell.plan == "balancer":
        assert now["status"] == ("active" if done else "error"), now
        # One whose launch never began is a row in error, which the balancer's delete takes along.
        held = [one["id"] for one in stack.list("/instances") if one["managed_by"] and one["host"]]
        assert done or not held, "its proxy is left"
    elif cell.plan == "balancer delete":
        # Called off before it had begun, all is as it was.
        assert now["status"] in ("deleted",) if done else ("active", "error"), now
    else:

        def is_told() -> bool:
            """The proxy has the target, or not."""
            told = [m.get("proxy", {}).get("text", "") for m in stack.simulated_machines()]
            return any(target["id"].replace("-", "") in text for text in told) != done

        wait_for("the proxy runs with what is wanted", is_told, 30)
        targets = stack.get(f"/lb/{front['id']}/targets")
        assert len(targets) == (0 if done else 1), targets
    assert stack.instance(target)["status"] == "running"
