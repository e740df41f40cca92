"""Workspaces that are interrupted: brought, fetched anew and deleted, or as they were before; with their files."""

from __future__ import annotations

import uuid

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.stack import Json, Stack

#: Where each leads, done and not.
ENDS = {
    "workspace": ("ready", "error"),
    "workspace sync": ("ready", "ready"),
    "workspace delete": ("deleted", "ready"),
}


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    workspace = None if cell.plan == "workspace" else _made(stack)
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, "pause" if alone else cell.what)
    accepted = _begin(stack, cell, workspace)
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    ends = ("completed", "cancelled") if cell.what == "cancel" else ("completed",)
    assert row["state"] in ends, row
    id = (workspace or accepted["data"])["id"]
    now = stack.get(f"/workspaces/{id}")
    assert now["status"] == ENDS[cell.plan][row["state"] != "completed"], now
    # There are files where there is a commit, and nothing where none came.
    assert bool(_files(stack, id)) == (now["status"] == "ready"), (now, _files(stack, id))
    if now["status"] != "deleted":
        stack.completed(stack.accept("DELETE", f"/workspaces/{id}"))
    assert not _files(stack, id), "its files are left"
    held = stack.sql(
        "SELECT id FROM workspaces WHERE host_id IS NOT NULL UNION SELECT workspace_id FROM workspace_logins"
    )
    assert not held, held


def _create(stack: Stack) -> Json:
    host = next(host["name"] for host in stack.list("/hosts") if host["backend"] == "simulated")
    source = {"git_url": "https://git.example/shop.git"}
    return stack.accept("POST", "/workspaces", {"name": f"w-{uuid.uuid4().hex[:8]}", "source": source, "host": host})


def _made(stack: Stack) -> Json:
    accepted = _create(stack)
    stack.completed(accepted)
    made: Json = accepted["data"]
    return made


def _begin(stack: Stack, cell: Cell, workspace: Json | None) -> Json:
    if workspace is None:
        return _create(stack)
    path = f"/workspaces/{workspace['id']}"
    return stack.accept("DELETE", path) if cell.plan == "workspace delete" else stack.accept("POST", f"{path}/sync")


def _files(stack: Stack, id: str) -> list[str]:
    return [str(path) for path in stack.data.glob(f"**/trees/**/workspaces/{id}/bases/*")]
