"""Agents tell what their instances use, and nobody else's; users read it."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import uuid4

import httpx
import pytest

from model.base import new_id
from tests.api.conftest import Api

UTC = dt.UTC
FIGURES = {
    "cpu_percent": 12.5,
    "memory_bytes": 1 << 40,
    "pids": 3,
    "rx_bytes": 10,
    "tx_bytes": 2**63 - 1,
    "read_bytes": 0,
    "written_bytes": 7,
}


def agent(api: Api, host: str = "one") -> httpx.AsyncClient:
    """The agent of a host."""
    return httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer agent-{host}"}, timeout=30)


async def placed(api: Api, name: str, host: str = "one", key: str | None = None) -> dict[str, Any]:
    """An instance that runs, generation 1, on a host."""
    if key is None:
        instance: dict[str, Any] = (await api.launch(name))["data"]
    else:
        async with api.as_(key) as http:
            body = {"name": name, "image": "cairn/base:latest"}
            instance = (await http.post("/v1/instances", json=body)).json()["data"]
    api.put(instance, "running")
    api.db.rows(
        "UPDATE instances SET generation = 1, last_generation = 1, host_id = (SELECT id FROM hosts WHERE name = %s)"
        " WHERE id = %s",
        *(host, instance["id"]),
    )
    return instance


def bucket(seconds_ago: float = 20) -> dt.datetime:
    now = dt.datetime.now(UTC).timestamp() - seconds_ago
    return dt.datetime.fromtimestamp(now // 10 * 10, UTC)


def usage(instance: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": instance["id"], "project_id": instance["project_id"], "generation": 1} | FIGURES | more


async def told(http: httpx.AsyncClient, *machines: dict[str, Any], at: dt.datetime | None = None) -> int:
    answer = await http.post("/v1/hosts/samples", json={"at": (at or bucket()).isoformat(), "machines": list(machines)})
    assert answer.status_code == 200, answer.text
    written: int = answer.json()["data"]["written"]
    return written


async def read(api: Api, instance: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    answer = await api.http.get(f"/v1/instances/{instance['id']}/stats", params=params)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_what_is_told_can_be_read_and_the_first_counts(api: Api) -> None:
    instance, at = await placed(api, "web"), bucket()
    async with agent(api) as http:
        assert await told(http, usage(instance), usage(instance, pids=9), at=at) == 1
        again = at + dt.timedelta(seconds=9.9)
        assert await told(http, usage(instance, cpu_percent=99), at=again) == 0, "the same ten seconds"
        assert await told(http, usage(instance), at=at - dt.timedelta(seconds=10)) == 1
    rows = await read(api, instance)
    assert [dt.datetime.fromisoformat(row["at"]) for row in rows] == [at - dt.timedelta(seconds=10), at]
    assert rows[1] | {"at": ""} == FIGURES | {"at": "", "seconds": 10}


async def test_agent_writes_for_what_is_placed_on_its_own_hosts_alone(api: Api) -> None:
    other = api.db.project("other")
    mine, elsewhere = await placed(api, "mine"), await placed(api, "elsewhere", "two")
    foreign, foreign_elsewhere = await placed(api, "a", key=other), await placed(api, "b", "two", key=other)
    deleted = await placed(api, "gone")
    api.db.rows("UPDATE instances SET host_id = NULL WHERE id = %s", deleted["id"])
    async with agent(api) as http:
        assert await told(http, usage(elsewhere), usage(foreign_elsewhere), usage(deleted)) == 0
        assert await told(http, usage(mine, generation=2)) == 0, "another generation"
        assert await told(http, usage(mine, id=str(uuid4()))) == 0
        for wrong in (foreign["project_id"], str(uuid4())):
            assert await told(http, usage(mine, project_id=wrong)) == 0
        assert await told(http, usage(foreign, project_id=mine["project_id"])) == 0
        assert api.db.rows("SELECT * FROM samples") == []
        assert await told(http, usage(foreign), usage(elsewhere), usage(mine)) == 2
    rows = api.db.rows("SELECT project_id::text, instance_id::text FROM samples")
    assert {tuple(row.values()) for row in rows} == {(i["project_id"], i["id"]) for i in (mine, foreign)}


async def test_samples_are_for_agents_and_do_not_wait_for_a_step(api: Api) -> None:
    instance = await placed(api, "web")
    body = {"at": bucket().isoformat(), "machines": [usage(instance)]}
    assert (await api.http.post("/v1/hosts/samples", json=body)).status_code == 401
    async with agent(api) as http:
        assert (await http.get(f"/v1/instances/{instance['id']}/stats")).status_code == 401
        with api.db.connect() as step, step.transaction():
            step.execute("SELECT * FROM instances WHERE id = %s FOR UPDATE", (instance["id"],))
            assert await told(http, usage(instance)) == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("at", ["", "x", None, 1, "2026-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"]),
        ("machines", [[], None, {}, [1], [{}]]),
    ],
)
async def test_bad_fields_are_named(shared_api: Api, field: str, values: list[Any]) -> None:
    good = {"at": bucket().isoformat(), "machines": [usage({"id": str(new_id()), "project_id": str(new_id())})]}
    async with agent(shared_api) as http:
        for value in values:
            answer = await http.post("/v1/hosts/samples", json=good | {field: value})
            assert answer.status_code == 422, (value, answer.text)
            assert answer.json()["error"]["details"]["fields"][0]["field"].startswith(field)


async def test_bad_figures_are_refused(shared_api: Api) -> None:
    machine = usage({"id": str(new_id()), "project_id": str(new_id())})
    bad = [(name, value) for name in FIGURES for value in (-1, None, "many", 2**63, 10**400)]
    bad += [("generation", -1), ("id", "x"), ("project_id", None), ("host", "one"), ("cpu_percent", 1e300)]
    async with agent(shared_api) as http:
        for name, value in bad:
            answer = await http.post(
                "/v1/hosts/samples", json={"at": bucket().isoformat(), "machines": [machine | {name: value}]}
            )
            assert answer.status_code in (400, 422), (name, value, answer.text)
        many = {"at": bucket().isoformat(), "machines": [machine] * 201}
        assert (await http.post("/v1/hosts/samples", json=many)).status_code == 422


async def test_what_is_too_old_or_of_the_future_is_refused_with_a_word_about_clocks(api: Api) -> None:
    instance = await placed(api, "web")
    async with agent(api) as http:
        for ago in (200, -60):
            body = {"at": bucket(ago).isoformat(), "machines": [usage(instance)]}
            answer = await http.post("/v1/hosts/samples", json=body)
            assert answer.status_code == 422
            assert "clock" in answer.json()["error"]["message"]
        assert await told(http, usage(instance), at=bucket(140)) == 1


def insert(api: Api, instance: dict[str, Any], seconds: int, *ats: dt.datetime) -> None:
    for at in ats:
        api.db.rows(
            "INSERT INTO samples VALUES (%s, %s, %s, %s, 1, 2, 3, 4, 5, 6, 7)",
            *(instance["project_id"], instance["id"], seconds, at),
        )


async def test_resolution_is_the_finest_that_is_kept(api: Api) -> None:
    instance, now = await placed(api, "web"), dt.datetime.now(UTC)
    for seconds in (10, 60, 3600):
        insert(api, instance, seconds, now - dt.timedelta(minutes=30))
    hours = {1: 10, 23: 60, 25: 3600, 24 * 40: 3600}
    for ago, expected in hours.items():
        since = (now - dt.timedelta(hours=ago)).isoformat()
        assert [row["seconds"] for row in await read(api, instance, since=since)] == [expected], ago
        assert [row["seconds"] for row in await read(api, instance, since=since, seconds=60)] == [60]
    assert [row["seconds"] for row in await read(api, instance)] == [10]


async def test_pages_and_bounds(api: Api) -> None:
    instance, now = await placed(api, "web"), bucket()
    ats = [now - dt.timedelta(seconds=10 * n) for n in range(7, 0, -1)]
    insert(api, instance, 10, *ats)
    path, seen, params = f"/v1/instances/{instance['id']}/stats", [], {"limit": 3}
    while True:
        body = (await api.http.get(path, params=params)).json()
        seen.append([dt.datetime.fromisoformat(row["at"]) for row in body["data"]])
        if "next_cursor" not in body["meta"]:
            break
        params["cursor"] = body["meta"]["next_cursor"]
    assert seen == [ats[:3], ats[3:6], ats[6:]]
    some = await read(api, instance, since=ats[2].isoformat(), until=ats[4].isoformat())
    assert [row["at"] for row in some] == [ats[2].isoformat(), ats[3].isoformat()]
    bad = [{"since": "yesterday"}, {"until": "0001-01-01T00:00:00+14:00"}, {"seconds": 11}, {"limit": 501}]
    bad += [{"since": now.isoformat(), "until": ats[0].isoformat()}, {"cursor": "x"}, {"since": "2026-01-01T00:00:00"}]
    for wrong in bad:
        answer = await api.http.get(path, params=wrong)  # type: ignore[arg-type]
        assert answer.status_code == 422, (wrong, answer.text)
        assert answer.json()["error"]["details"]["fields"][0]["field"] in wrong


async def test_absent_and_foreign_instances_are_404(api: Api) -> None:
    instance, other = await placed(api, "web"), api.db.project("other")
    insert(api, instance, 10, bucket())
    assert (await api.http.get(f"/v1/instances/{uuid4()}/stats")).status_code == 404
    async with api.as_(other) as http:
        assert (await http.get(f"/v1/instances/{instance['id']}/stats")).status_code == 404
    assert (await api.http.get("/v1/instances/x/stats")).status_code == 422
    api.put(instance, "deleted")
    assert len(await read(api, instance)) == 1, "a deleted one stays readable for a day"
