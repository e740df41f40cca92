"""Cache volumes whose runs are interrupted: emptied or deleted on their host, or as they were before."""

from __future__ import annotations

import uuid
from pathlib import Path

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.chaos.sessions import workspace_of
from tests.stack import Json, Stack


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    workspace = workspace_of(stack)
    body = {"name": f"c-{uuid.uuid4().hex[:8]}", "path": "/root/.cache/pip"}
    cache: Json = stack.accept("POST", "/cache-volumes", body)["data"]
    session = stack.accept("POST", f"/workspaces/{workspace}/sessions", {"caches": [cache["name"]]})
    stack.completed(session)
    (folder,) = folders(stack, cache)
    (folder / "http").mkdir()
    (folder / "http" / "wheel").write_text("x")
    deletes = cell.plan == "cache delete"
    if deletes:
        stack.completed(stack.accept("DELETE", f"/sessions/{session['data']['id']}"))
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, "pause" if alone else cell.what)
    path = f"/cache-volumes/{cache['id']}"
    accepted = stack.accept("DELETE", path) if deletes else stack.accept("POST", f"{path}/clear")
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    done = row["state"] == "completed"
    assert done or (cell.what == "cancel" and row["state"] == "cancelled"), row
    now = stack.get(path)
    assert now["status"] == ("deleted" if deletes and done else "ready"), now
    if deletes:
        assert done is not bool(folders(stack, cache)), now
    else:
        # Its folder is the same, for those who have it.
        assert folders(stack, cache) == [folder]
        assert not done or (list(folder.iterdir()) == [] and now["cleared_at"])
        stack.completed(stack.accept("DELETE", f"/sessions/{session['data']['id']}"))
    if now["status"] != "deleted":
        stack.completed(stack.accept("DELETE", path))
    assert not list(stack.data.glob(f"**/trees/**/caches/*/*{cache['id']}*")), "its files are left"
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace}"))


def folders(stack: Stack, cache: Json) -> list[Path]:
    return list(stack.data.glob(f"**/trees/**/caches/{cache['project_id']}/{cache['id']}"))
