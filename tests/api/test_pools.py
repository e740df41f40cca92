"""Pools as rows: accepted, changed, shown; and their sandboxes, which sessions claim once each."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.base import new_id
from model.pools import CAPABILITY
from tests.api.conftest import Api
from tests.api.test_work_sessions import create, put, workspace
from tests.services import TemporalServer

Json = dict[str, Any]
_SANDBOX = """
    INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend, host_id,
        generation, container_id, workflow_id, group_id, group_revision, warm, cmd)
    SELECT %s, project_id, %s, 'running', 'debian:stable-slim', 'basic-1', 1, 512, 'docker', %s, 1, %s, workflow_id,
        id, 1, true, '["sh"]' FROM scaling_groups WHERE id = %s
"""


async def pool(api: Api, ready: int = 0, host: str = "one", **body: Any) -> Json:
    """One that workers have filled with so many sandboxes on the host."""
    api.db.rows("UPDATE hosts SET capabilities = %s::jsonb", f'["{CAPABILITY}", "network.none"]')
    answer = await api.http.post("/v1/pools", json={"name": "warm", "size": ready} | body)
    assert answer.status_code == 202, answer.text
    made: Json = answer.json()["data"]
    for number in range(ready):
        api.db.rows(_SANDBOX, new_id(), f"warm-{number}", api.db.hosts[host], f"c{number}", made["id"])
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_id = %s", made["id"])
    api.db.rows("UPDATE scaling_groups SET status = 'active' WHERE id = %s", made["id"])
    return made


async def shown(api: Api, made: Json) -> Json:
    found: Json = (await api.http.get(f"/v1/pools/{made['id']}")).json()["data"]
    return found


async def test_a_pool_is_made_shown_resized_and_deleted_like_a_group_and_is_none(api: Api) -> None:
    made = await pool(api, 2, max_size=5, network={"mode": "none"})
    assert (made["status"], made["image"], made["network"]["mode"]) == ("pending", "debian:stable-slim", "none")
    run = api.db.one("SELECT * FROM workflows WHERE kind = 'ScaleGroup'")
    assert (run["resource_type"], str(run["resource_id"])) == ("pool", made["id"])
    now = await shown(api, made)
    counts = {name: now[name] for name in ("size", "max_size", "wanted", "ready", "filling", "claimed")}
    assert counts == {"size": 2, "max_size": 5, "wanted": 2, "ready": 2, "filling": 0, "claimed": 0}
    assert [one["id"] for one in (await api.http.get("/v1/pools?name=warm")).json()["data"]] == [made["id"]]
    for path in ("autoscaling/groups", "containers/deployments"):
        assert (await api.http.get(f"/v1/{path}/{made['id']}")).status_code == 404
        assert (await api.http.get(f"/v1/{path}")).json()["data"] == []
    sandbox = (await api.http.get(f"/v1/instances?group_id={made['id']}")).json()["data"][0]
    assert sandbox["managed_by"] == {"type": "pool", "id": made["id"]}
    for act in (
        api.http.delete(f"/v1/instances/{sandbox['id']}"),
        api.http.post(f"/v1/instances/{sandbox['id']}/stop"),
    ):
        assert (await act).json()["error"]["details"]["managed_by"]["type"] == "pool"

    path = f"/v1/pools/{made['id']}"
    bounds = await api.http.patch(path, json={"max_size": 9})
    assert (bounds.status_code, bounds.json()["data"]["max_size"]) == (200, 9)
    larger = await api.http.patch(path, json={"size": 12})
    assert (larger.status_code, larger.json()["data"]["wanted"], larger.json()["data"]["filling"]) == (202, 12, 10)
    assert larger.json()["data"]["max_size"] == 12
    for body in ({}, {"size": 13, "max_size": 3}, {"size": -1}, {"size": 1001}, {"image": "x"}):
        assert (await api.http.patch(path, json=body)).status_code == 422, body
    for more in ({"size": 3, "max_size": 2}, {"size": True}, {"ports": "80"}, {"image": "-x"}):
        assert (await api.http.post("/v1/pools", json={"name": "b", "size": 1} | more)).status_code == 422, more
    taken = await api.http.post("/v1/pools", json={"name": "warm", "size": 1})
    assert taken.json()["error"]["code"] == "name_taken"
    deleting = await api.http.delete(path)
    assert (deleting.status_code, deleting.json()["data"]["status"]) == (202, "deleting")
    assert (await api.http.patch(path, json={"size": 1})).status_code == 409


async def test_no_host_that_can_is_said_at_once(api: Api) -> None:
    answer = await api.http.post("/v1/pools", json={"name": "warm", "size": 1})
    assert answer.json()["error"]["code"] == "no_capacity" and CAPABILITY in answer.text


async def test_a_session_takes_a_sandbox_that_fits_or_says_why_it_does_not(api: Api) -> None:
    made, id = await pool(api, 1, max_size=3), await workspace(api)
    quota = api.db.quota()
    for more, why in (
        ({"ports": "80"}, "it publishes ports"),
        ({"network": {"mode": "none"}}, "no pool"),
        ({"image": "python:3.13-slim"}, "no pool"),
        ({"instance_type": "basic-2"}, "no pool"),
    ):
        cold = await create(api, id, **more)
        assert (cold["start"], cold["pool_id"]) == ("cold", None) and why in cold["start_reason"], cold
    assert api.db.quota()["instances_reserved"] == quota["instances_reserved"] + 4
    elsewhere = await create(api, await workspace(api, "far", "two"))
    assert (elsewhere["start"], elsewhere["pool_id"]) == ("cold", made["id"])
    # One that does not run, as far as one knows, is nobody's; nor is one of a pool that is being deleted.
    for column, value in (("drift", '\'{"kind": "stopped"}\''), ("status", "'error'")):
        before = "NULL" if column == "drift" else "'running'"
        api.db.rows(f"UPDATE instances SET {column} = {value} WHERE warm")
        assert (await create(api, id))["start"] == "cold"
        api.db.rows(f"UPDATE instances SET {column} = {before} WHERE warm")

    warm = await create(api, id, name="quick", env={"A": "b"}, ttl_seconds=600, idle_stop_seconds=300)
    assert (warm["start"], warm["start_reason"], warm["pool_id"]) == ("warm", None, made["id"])
    assert (warm["env"], warm["idle_stop_seconds"]) == ({"A": "b"}, 300) and warm["expires_at"]
    sandbox = api.db.one("SELECT * FROM instances WHERE warm")
    assert (str(sandbox["id"]), str(sandbox["session_id"])) == (warm["instance_id"], warm["id"])
    assert (sandbox["group_id"], sandbox["status"], sandbox["generation"]) == (None, "running", 1)
    runs = api.db.rows("SELECT kind FROM workflows WHERE resource_id IN (%s, %s)", warm["id"], warm["instance_id"])
    assert [run["kind"] for run in runs] == ["InitSession"]
    now = await shown(api, made)
    assert (now["ready"], now["filling"], now["claimed"]) == (0, 1, 1)
    again = await create(api, id)
    assert (again["start"], again["pool_id"]) == ("cold", made["id"]) and "no sandbox ready" in again["start_reason"]
    put(api, warm, "removed", "deleted")
    assert (await shown(api, made))["claimed"] == 0


@pytest.mark.parametrize("rolled_back", [False, True])
async def test_what_is_refused_has_claimed_nothing(api: Api, rolled_back: bool) -> None:
    await pool(api, 1)
    id = await workspace(api)
    if rolled_back:
        await create(api, id, name="a", ports="80")
        assert (await api.http.post(f"/v1/workspaces/{id}/sessions", json={"name": "a"})).status_code == 409
    else:
        await api.http.post(f"/v1/workspaces/{id}/sync")
        assert (await api.http.post(f"/v1/workspaces/{id}/sessions", json={})).status_code == 409
    assert api.db.one("SELECT group_id FROM instances WHERE warm")["group_id"] is not None


async def test_fifty_at_once_in_two_processes_get_fifty_sandboxes(api: Api, temporal_server: TemporalServer) -> None:
    made, id = await pool(api, 50), await workspace(api)
    path = f"/v1/workspaces/{id}/sessions"
    async with second(api, temporal_server) as other:
        asked = [one.post(path, json={}) for _ in range(26) for one in (api.http, other)]
        answers = [answer.json()["data"] for answer in await asyncio.gather(*asked)]
    warm = [one["instance_id"] for one in answers if one["start"] == "warm"]
    cold = [one for one in answers if one["start"] == "cold"]
    assert (len(warm), len(set(warm)), len(cold)) == (50, 50, 2)
    rows = api.db.rows("SELECT id, session_id FROM instances WHERE warm AND group_id IS NULL")
    assert {str(row["id"]): str(row["session_id"]) for row in rows} == {
        one["instance_id"]: one["id"] for one in answers if one["start"] == "warm"
    }
    async with api.as_(api.db.api_key) as fresh:  # those that were used may be closed by now
        assert (await fresh.get(f"/v1/pools/{made['id']}")).json()["data"]["claimed"] == 50


@asynccontextmanager
async def second(api: Api, temporal: TemporalServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another API process on the same database."""
    script = [sys.executable, str(Path(__file__).with_name("second.py"))]
    process = await asyncio.create_subprocess_exec(
        *script, api.db.url("cairn_api"), temporal.address, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        headers = {"X-API-Key": api.db.api_key}
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=60), retries=3)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, transport=transport) as http:
            assert (await http.get("/v1/pools")).status_code == 200
            yield http
    finally:
        process.kill()
        await process.wait()
