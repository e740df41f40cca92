"""Work sessions that are interrupted: made, stopped, started and deleted, or as they were before; with their files."""

from __future__ import annotations

import uuid

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.stack import Json, Stack

#: What ends in which state, done and not.
ENDS = {
    **dict.fromkeys(("session", "session warm"), ("running", "error")),
    "session stop": ("stopped", "running"),
    **dict.fromkeys(("session commit", "session commit undone"), ("running", "running")),
    "session delete": ("removed", "running"),
}


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    workspace = workspace_of(stack)
    new = cell.plan in ("session", "session warm")
    session = None if new else _made(stack, workspace)
    pool = _pool(stack) if cell.plan == "session warm" else None
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before, undone = len(stack.hits(cell.point)), cell.plan == "session commit undone"
    held, holding = "commit.write.before", len(stack.hits("commit.write.before"))
    what = [(cell.point, "pause" if alone else cell.what), *([(held, "pause")] if undone else [])]
    stack.plant(*({"point": point, "action": action, "times": 1, "seconds": 0} for point, action in what))
    accepted = _begin(stack, cell, workspace, session)
    if undone:
        stack.wait_for_hit(held, holding)
        assert stack.cancel(accepted).status_code == httpx.codes.ACCEPTED
    assert pool is None or accepted["data"]["pool_id"] == pool["id"], accepted
    assert pool is None or accepted["data"]["start"] == "warm", accepted
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    ends = ("cancelled",) if undone else ("completed", "cancelled") if cell.what == "cancel" else ("completed",)
    assert row["state"] in ends, row
    _expect(stack, cell, accepted["data"], done=row["state"] == "completed")
    if stack.get(f"/sessions/{accepted['data']['id']}")["status"] != "removed":
        stack.completed(stack.accept("DELETE", f"/sessions/{accepted['data']['id']}"))
    assert not left(stack, accepted["data"]), "its files are left"
    if pool is not None:
        stack.completed(stack.accept("DELETE", f"/pools/{pool['id']}"))
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace}"))


def left(stack: Stack, session: Json) -> list[str]:
    """What is on the disk of a session."""
    return [str(path) for path in stack.data.glob(f"**/sessions/{session['id']}")]


def _pool(stack: Stack) -> Json:
    """With one sandbox."""
    host = next(host["name"] for host in stack.get("/hosts") if host["backend"] == "simulated")
    accepted = stack.accept("POST", "/pools", {"name": f"p-{uuid.uuid4().hex[:8]}", "host": host, "size": 1})
    stack.completed(accepted)
    found: Json = accepted["data"]
    return found


def workspace_of(stack: Stack) -> str:
    host = next(host["name"] for host in stack.get("/hosts") if host["backend"] == "simulated")
    source = {"git_url": "https://git.example/shop.git"}
    accepted = stack.accept(
        "POST", "/workspaces", {"name": f"w-{uuid.uuid4().hex[:8]}", "source": source, "host": host}
    )
    stack.completed(accepted)
    return str(accepted["data"]["id"])


def _made(stack: Stack, workspace: str) -> Json:
    accepted = stack.accept("POST", f"/workspaces/{workspace}/sessions", {})
    stack.completed(accepted)
    found: Json = accepted["data"]
    return found


def _begin(stack: Stack, cell: Cell, workspace: str, session: Json | None) -> Json:
    if session is None:
        return stack.accept("POST", f"/workspaces/{workspace}/sessions", {})
    path = f"/sessions/{session['id']}"
    if cell.plan.startswith("session commit"):
        return stack.accept("POST", f"{path}/commit", {"message": "Mend it"})
    return stack.accept("DELETE", path) if cell.plan == "session delete" else stack.accept("POST", f"{path}/stop")


def _expect(stack: Stack, cell: Cell, session: Json, *, done: bool) -> None:
    now = stack.get(f"/sessions/{session['id']}")
    finished, undone = ENDS[cell.plan]
    assert now["status"] == (finished if done else undone), now
    machines = [one for one in stack.simulated_machines() if one["labels"]["io.cairn.id"] == session["instance_id"]]
    there = now["status"] in ("running", "stopped")
    assert len(machines) == (1 if there else 0), machines
    assert bool(left(stack, session)) is there
    if cell.plan.startswith("session commit"):
        # The workspace is at what was committed, with its files, or where it was; nothing else is there.
        workspace = stack.get(f"/workspaces/{now['workspace_id']}")
        commits = {now["commit"], workspace["commit"]}
        assert (len(commits), now["head"]) == ((2, workspace["commit"]) if done else (1, None)), (now, workspace)
        bases = {path.name for path in stack.data.glob(f"**/trees/**/workspaces/{workspace['id']}/bases/*")}
        assert bases == commits, bases
