"""The end of a project that is interrupted: what was in it is gone, and then the project."""

from __future__ import annotations

import uuid

import httpx
import psycopg

from model.secrets import digest
from tests.chaos.cells import PROCESSES, Cell
from tests.stack import IMAGE, Json, Stack, wait_for


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    project = stack.accept("POST", "/projects", {"name": "chaos"})["data"]
    key = {"X-API-Key": _key(stack, project)}
    body = {"name": "web", "image": IMAGE, "backend": "simulated"}
    launched = stack.request("POST", "/instances", json=body, headers=key | {"Prefer": "wait=30"})
    assert launched.status_code == httpx.codes.CREATED, launched.text
    image = {"name": "own", "source": {"type": "upload"}}
    assert stack.request("POST", "/images", json=image, headers=key).is_success
    cache = {"name": "pip", "path": "/root/.cache/pip"}
    assert stack.request("POST", "/cache-volumes", json=cache, headers=key).is_success
    before = len(stack.hits(cell.point))
    alone = cell.what in PROCESSES
    stack.fault(cell.point, "pause" if alone else cell.what)
    accepted = stack.request("DELETE", f"/projects/{project['id']}?cascade=true", headers=key)
    assert accepted.status_code == httpx.codes.ACCEPTED, accepted.text
    stack.wait_for_hit(cell.point, before)
    if alone:
        stack.kill(cell.what)
        stack.plant()
    wait_for("the project is gone", lambda: _is_gone(stack, project["id"]), 60)
    wait_for("its key opens nothing", lambda: _status(stack, key) == httpx.codes.UNAUTHORIZED, 60)
    ended = stack.sql("SELECT DISTINCT state FROM workflows WHERE project_id = %s", project["id"])
    assert ended == [("completed",)]
    for table in ("instances", "cache_volumes"):
        live = f"SELECT count(*) FROM {table} WHERE project_id = %s AND status <> 'deleted'"
        assert stack.sql(live, project["id"]) == [(0,)], table


def _key(stack: Stack, project: Json) -> str:
    """A key of its owner's, which no route makes for a key of another project."""
    key = f"cairn_{uuid.uuid4().hex}"
    stack.sql(
        "INSERT INTO api_keys (id, project_id, user_id, name, digest)"
        " SELECT %s, project_id, user_id, 'chaos', %s FROM bindings WHERE project_id = %s",
        *(uuid.uuid4(), digest(key), project["id"]),
    )
    return key


def _status(stack: Stack, key: dict[str, str]) -> int | None:
    try:
        return stack.request("GET", "/instances", headers=key).status_code
    except httpx.TransportError:  # the API may be what was killed
        return None


def _is_gone(stack: Stack, project_id: str) -> bool:
    query = (
        "SELECT 1 FROM projects p WHERE id = %s AND deleted_at IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM workflows w WHERE w.project_id = p.id AND w.finished_at IS NULL)"
    )
    try:
        return bool(stack.sql(query, project_id))
    except psycopg.OperationalError:  # the database may be what was killed
        return False
