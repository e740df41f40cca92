"""The end of a user that is interrupted: what nobody else owned is gone, and then the user."""

from __future__ import annotations

import httpx
import psycopg

from tests.chaos.cells import PROCESSES, Cell
from tests.stack import IMAGE, Stack, wait_for

PERSON = {"email": "chaos@example.org", "password": "correct horse battery staple"}


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    user = stack.accept("POST", "/auth/register", PERSON | {"name": "Chaos"})["data"]
    granted = stack.accept("POST", "/auth/login", PERSON)["data"]
    theirs = {"Authorization": f"Bearer {granted['access_token']}", "X-API-Key": ""}
    other = stack.request("POST", "/projects", json={"name": "other"}, headers=theirs).json()["data"]
    for project in (user["default_project_id"], other["id"]):
        body = {"name": "web", "image": IMAGE, "backend": "simulated"}
        headers = theirs | {"X-Project-ID": project, "Prefer": "wait=30"}
        launched = stack.request("POST", "/instances", json=body, headers=headers)
        assert launched.status_code == httpx.codes.CREATED, launched.text
    before = len(stack.hits(cell.point))
    alone = cell.what in PROCESSES
    stack.fault(cell.point, "pause" if alone else cell.what)
    accepted = stack.request("DELETE", f"/users/{user['id']}?cascade=true")
    assert accepted.status_code == httpx.codes.ACCEPTED, accepted.text
    stack.wait_for_hit(cell.point, before)
    if alone:
        stack.kill(cell.what)
        stack.plant()
    workflow = accepted.json()["meta"]["workflow_id"]
    wait_for("the user is gone", lambda: _is_over(stack, workflow), 60)
    assert stack.sql("SELECT state FROM workflows WHERE id = %s", workflow) == [("completed",)]
    assert stack.sql("SELECT 1 FROM users WHERE id = %s", user["id"]) == []
    ids = [user["default_project_id"], other["id"]]
    assert stack.sql("SELECT 1 FROM projects WHERE id = ANY(%s::uuid[]) AND deleted_at IS NULL", ids) == []
    live = "SELECT 1 FROM instances WHERE project_id = ANY(%s::uuid[]) AND status <> 'deleted'"
    assert stack.sql(live, ids) == []


def _is_over(stack: Stack, workflow: str) -> bool:
    try:
        return bool(stack.sql("SELECT 1 FROM workflows WHERE id = %s AND finished_at IS NOT NULL", workflow))
    except psycopg.OperationalError:  # the database may be what was killed
        return False
