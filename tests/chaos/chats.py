"""Turns that are interrupted: the prompt is worked on once, and its answer is whole; or it says how it ended."""

from __future__ import annotations

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.chaos.sessions import workspace_of
from tests.stack import Json, Stack, wait_for

#: The simulated machines' agent takes a moment for each.
WORDS = [f"word{number}" for number in range(12)]


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    workspace, session = _made(stack)
    path = f"/sessions/{session['id']}"
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, "pause" if alone else cell.what)
    # What is to be called off must not have ended before.
    words = WORDS * 20 if cell.plan == "chat called off" else WORDS
    # Repeated under one key where its answer is lost.
    accepted = _ask(stack, path, words)
    if cell.plan == "chat called off":
        wait_for("it is answered", lambda: _answer(stack, path)["content"])
        stack.cancel(accepted)
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    called_off = cell.what == "cancel" or cell.plan == "chat called off"
    assert row["state"] in (("completed", "cancelled") if called_off else ("completed",)), row
    _expect(stack, path, row["state"], words)
    stack.completed(stack.accept("DELETE", path))
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace}"))


def _made(stack: Stack) -> tuple[str, Json]:
    if not stack.list("/agents", name="chaos"):
        answer = stack.request("POST", "/agents", json={"name": "chaos"})
        assert answer.status_code == httpx.codes.CREATED, answer.text
    agent = stack.list("/agents", name="chaos")[0]["id"]
    workspace = workspace_of(stack)
    accepted = stack.accept("POST", f"/workspaces/{workspace}/sessions", {"agent_id": agent})
    stack.completed(accepted)
    found: Json = accepted["data"]
    return workspace, found


def _ask(stack: Stack, path: str, words: list[str]) -> Json:
    asked = {"json": {"prompt": " ".join(words)}, "headers": {"Accept": "application/json", "Idempotency-Key": path}}
    answer = stack.answered("POST", f"{path}/chat", **asked)
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    found: Json = answer.json()
    return found


def _answer(stack: Stack, path: str) -> Json:
    found: Json = stack.get(f"{path}/messages")[0]
    return found


def _expect(stack: Stack, path: str, state: str, words: list[str]) -> None:
    answer = _answer(stack, path)
    assert (answer["status"], stack.get(path)["status"]) == (state, "ready")
    said = answer["content"].split()
    assert said == words[: len(said)], "something is missing, or was told twice"
    assert state == "cancelled" or said == words
    ends = stack.sql("SELECT count(*) FROM message_chunks WHERE message_id = %s AND kind = 'end'", answer["id"])
    assert ends == [(1,)]
