"""Accepting: idempotency, waiting, and what happens while Temporal or the database is away."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.api.conftest import BODY, Api, no_temporal, served
from tests.services import Database, TemporalServer, eventually

KEY = {"Idempotency-Key": "k-1"}


async def test_same_key_same_answer(api: Api) -> None:
    first = await api.http.post("/v1/instances", json=BODY, headers=KEY)
    # Written otherwise, the same body.
    again = await api.http.post(
        "/v1/instances",
        content=b'{ "image": "cairn\\/base:latest",\n "name": "web" }',
        headers=KEY | {"content-type": "application/json; charset=utf-8"},
    )
    assert first.status_code == again.status_code == 202
    assert first.json()["data"] == again.json()["data"]
    assert first.json()["meta"]["workflow_id"] == again.json()["meta"]["workflow_id"]
    assert first.headers["location"] == again.headers["location"]
    assert api.db.counts()["instances"] == api.db.counts()["workflows"] == 1


async def test_same_key_answers_with_what_it_became(api: Api) -> None:
    first = (await api.http.post("/v1/instances", json=BODY, headers=KEY)).json()
    api.put(first["data"], "running")
    again = (await api.http.post("/v1/instances", json=BODY, headers=KEY)).json()
    assert again["data"]["id"] == first["data"]["id"]
    assert again["data"]["status"] == "running"


async def test_same_key_for_another_request_is_refused(api: Api) -> None:
    first = (await api.http.post("/v1/instances", json=BODY, headers=KEY)).json()
    other = await api.http.post("/v1/instances", json=BODY | {"image": "cairn/other"}, headers=KEY)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")
    api.put(first["data"], "running")
    verb = await api.http.post(f"/v1/instances/{first['data']['id']}/stop", headers=KEY)
    assert (verb.status_code, verb.json()["error"]["code"]) == (409, "idempotency_mismatch")
    assert api.db.counts()["workflows"] == 1


async def test_key_works_for_verbs_too(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    path = f"/v1/instances/{instance['id']}/stop"
    answers = await asyncio.gather(*(api.http.post(path, headers=KEY) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["meta"]["workflow_id"] for answer in answers}) == 1
    api.put(instance, "stopped")
    late = await api.http.post(path, headers=KEY)
    assert (late.status_code, late.json()["data"]["status"]) == (202, "stopped")


async def test_refused_request_does_not_use_up_its_key(api: Api) -> None:
    other = (await api.launch())["data"]
    assert (await api.http.post("/v1/instances", json=BODY, headers=KEY)).status_code == 409
    assert api.db.counts()["idempotency_keys"] == 0
    api.put(other, "deleted")
    assert (await api.http.post("/v1/instances", json=BODY, headers=KEY)).status_code == 202


async def test_key_lives_for_a_day(api: Api) -> None:
    first = (await api.http.post("/v1/instances", json=BODY, headers=KEY)).json()
    api.put(first["data"], "deleted")
    api.db.rows("UPDATE idempotency_keys SET created_at = now() - interval '23 hours 59 minutes'")
    same = (await api.http.post("/v1/instances", json=BODY, headers=KEY)).json()
    assert same["data"]["id"] == first["data"]["id"]
    api.db.rows("UPDATE idempotency_keys SET created_at = now() - interval '24 hours 1 second'")
    fresh = await api.http.post("/v1/instances", json=BODY | {"image": "cairn/other"}, headers=KEY)
    assert fresh.status_code == 202
    assert fresh.json()["data"]["id"] != first["data"]["id"]
    again = await api.http.post("/v1/instances", json=BODY | {"image": "cairn/other"}, headers=KEY)
    assert again.json()["data"]["id"] == fresh.json()["data"]["id"]


async def test_hundred_at_once_with_one_key_are_one_instance(api: Api) -> None:
    answers = await asyncio.gather(*(api.http.post("/v1/instances", json=BODY, headers=KEY) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    assert len({answer.json()["meta"]["workflow_id"] for answer in answers}) == 1
    counts = api.db.counts()
    assert (counts["instances"], counts["workflows"], counts["events"], counts["idempotency_keys"]) == (1, 1, 1, 1)
    assert api.db.quota()["instances_reserved"] == 1


def settle(db: Database, workflow_id: str, state: str, status: str, notify: bool = True) -> None:
    """What a worker does at the end, in one transaction."""
    error = '{"code": "image_not_found", "message": "no such image", "step": "image.ensure", "attempt": 1}'
    with psycopg.connect(db.url("cairn_root")) as connection:
        connection.execute(
            "UPDATE workflows SET state = %s, finished_at = now(), error = %s::jsonb WHERE id = %s",
            (state, None if state == "completed" else error, workflow_id),
        )
        deleted_at = "now()" if status == "deleted" else "NULL"
        connection.execute(
            f"UPDATE instances SET status = %s, deleted_at = {deleted_at} WHERE workflow_id = %s", (status, workflow_id)
        )
        if notify:
            connection.execute("SELECT pg_notify('cairn', %s)", (workflow_id,))


async def test_wait_that_is_over_answers_202(api: Api) -> None:
    began = time.monotonic()
    answer = await api.http.post("/v1/instances", json=BODY, headers={"Prefer": "wait=1"})
    assert 0.95 < time.monotonic() - began < 3
    assert (answer.status_code, answer.json()["data"]["status"]) == (202, "pending")
    assert answer.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize("notify", [True, False])
async def test_wait_ends_with_the_workflow(api: Api, notify: bool) -> None:
    waiting = asyncio.create_task(
        api.http.post("/v1/instances", json=BODY, headers={"Prefer": "respond-async, wait=20"})
    )
    row = await eventually(lambda: api.db.rows("SELECT id::text FROM workflows"))
    assert await eventually(lambda: api.app.state.bells._waiting.get(row[0]["id"]))
    await asyncio.sleep(0.2)  # for its connection that listens
    began = time.monotonic()
    await asyncio.to_thread(settle, api.db, row[0]["id"], "completed", "running", notify)
    answer = await waiting
    assert time.monotonic() - began < (0.9 if notify else 2.5)
    assert (answer.status_code, answer.json()["data"]["status"]) == (201, "running")
    assert answer.json()["meta"]["workflow_id"] == row[0]["id"]


async def test_wait_for_a_verb_is_200(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    waiting = asyncio.create_task(api.http.delete(f"/v1/instances/{instance['id']}", headers={"Prefer": "wait=20"}))
    row = await eventually(lambda: api.db.rows("SELECT id::text FROM workflows WHERE state = 'accepted'"))
    await asyncio.to_thread(settle, api.db, row[0]["id"], "completed", "deleted")
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_wait_for_what_fails_is_502_with_the_cause(api: Api, state: str) -> None:
    waiting = asyncio.create_task(api.http.post("/v1/instances", json=BODY, headers=KEY | {"Prefer": "wait=20"}))
    row = await eventually(lambda: api.db.rows("SELECT id::text FROM workflows"))
    await asyncio.to_thread(settle, api.db, row[0]["id"], state, "error")
    answer = await waiting
    assert answer.status_code == 502
    body = answer.json()
    assert body["data"] is None
    assert body["error"]["code"] == "workflow_failed"
    assert body["error"]["details"]["workflow_id"] == body["meta"]["workflow_id"] == row[0]["id"]
    assert body["error"]["details"]["error"]["code"] == "image_not_found"
    # Repeated, the same answer, and nothing new.
    again = await api.http.post("/v1/instances", json=BODY, headers=KEY | {"Prefer": "wait=20"})
    assert again.status_code == 502
    assert api.db.counts()["instances"] == 1


@pytest.mark.parametrize("prefer", ["wait=0", "wait=-5", "wait=", "wait", "waiting=5", "handling=lenient", "wait=x"])
async def test_preference_that_is_none_is_ignored(api: Api, prefer: str) -> None:
    began = time.monotonic()
    answer = await api.http.post("/v1/instances", json=BODY, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert time.monotonic() - began < 2
    assert "preference-applied" not in answer.headers


async def test_waiting_holds_no_connection(api: Api) -> None:
    waiting = [
        asyncio.create_task(
            api.http.post("/v1/instances", json=BODY | {"name": f"w-{n}"}, headers={"Prefer": "wait=3"})
        )
        for n in range(60)
    ]
    assert await eventually(lambda: api.db.counts()["instances"] == 60)
    began = time.monotonic()
    assert (await api.http.get("/v1/instances?limit=1")).status_code == 200
    assert time.monotonic() - began < 2.5
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {202}


async def test_without_temporal_launches_are_accepted_as_ever_and_can_be_called_off(database: Database) -> None:
    async with served(database, await no_temporal()) as api:
        began = time.monotonic()
        first, second = (await api.launch("first")), (await api.launch("second"))
        assert time.monotonic() - began < 3
        assert database.rows("SELECT state FROM workflows") == [{"state": "accepted"}] * 2
        # Its steps are unknown to nobody: there are none.
        shown = await api.http.get(f"/v1/workflows/{first['meta']['workflow_id']}", params={"steps": "true"})
        assert shown.json()["data"]["steps"] == []
        began = time.monotonic()
        cancelled = await api.http.post(f"/v1/workflows/{first['meta']['workflow_id']}/cancel")
        assert time.monotonic() - began < 3
        assert (cancelled.status_code, cancelled.json()["data"]["state"]) == (202, "cancelled")
        instance = (await api.http.get(f"/v1/instances/{first['data']['id']}")).json()["data"]
        assert (instance["status"], instance["error"]["code"]) == ("error", "cancelled")
        assert database.quota()["instances_reserved"] == 1
        assert {row["type"] for row in database.rows("SELECT type FROM events")} == {
            "instance.pending",
            "instance.error",
            "workflow.cancelled",
        }
        again = await api.http.post(f"/v1/workflows/{first['meta']['workflow_id']}/cancel")
        assert (again.status_code, again.json()["data"]["state"]) == (202, "cancelled"), "its answer may have been lost"
        ready = await api.http.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["data"]["status"] == "degraded"
        assert (await api.http.delete(f"/v1/instances/{second['data']['id']}")).status_code == 202


async def test_calling_off_an_accepted_stop_restores_the_state(database: Database) -> None:
    async with served(database, await no_temporal()) as api:
        instance = (await api.launch())["data"]
        api.put(instance, "running")
        stopping = (await api.http.post(f"/v1/instances/{instance['id']}/stop")).json()
        assert (await api.http.post(f"/v1/workflows/{stopping['meta']['workflow_id']}/cancel")).status_code == 202
        shown = (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]
        assert shown["status"] == "running"
        deleting = (await api.http.delete(f"/v1/instances/{instance['id']}")).json()
        assert (await api.http.post(f"/v1/workflows/{deleting['meta']['workflow_id']}/cancel")).status_code == 202
        shown = (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]
        assert shown["status"] == "running"


async def test_a_schema_that_is_older_or_missing_is_named_and_nothing_is_accepted(database: Database) -> None:
    async with served(database, await no_temporal()) as api:
        await lacks_its_schema(api)


async def lacks_its_schema(api: Api) -> None:
    api.db.rows("UPDATE alembic_version SET version_num = '9999'")
    assert (await api.http.get("/health/ready")).json()["data"]["checks"]["database"] == "ok", "newer is well"
    api.db.rows("UPDATE alembic_version SET version_num = '0001'")
    older = await api.http.get("/health/ready")
    assert (older.status_code, older.json()["error"]["details"]["checks"]["database"]) == (503, "schema_older")
    assert "cairn setup" in older.json()["error"]["message"]
    api.db.rows("ALTER TABLE instances RENAME COLUMN labels TO not_yet")
    lacking = await api.http.get("/v1/instances")
    assert (lacking.status_code, lacking.json()["error"]["code"]) == (503, "unavailable")
    api.db.rows("UPDATE alembic_version SET version_num = '9999'")
    assert (await api.http.get("/v1/instances")).status_code == 500, "then it is a bug, and not called otherwise"
    api.db.rows("DROP TABLE alembic_version")
    missing = await api.http.get("/health/ready")
    assert (missing.status_code, missing.json()["error"]["details"]["checks"]["database"]) == (503, "schema_missing")


async def test_database_stopped_is_503_and_recovers_by_itself(
    own_database: Database, temporal_server: TemporalServer
) -> None:
    async with served(own_database, await temporal_server.client()) as api:
        await api.launch("before")
        await asyncio.to_thread(own_database.server.stop)
        for method, path in (("GET", "/v1/instances"), ("POST", "/v1/instances"), ("GET", "/v1/nowhere")):
            began = time.monotonic()
            answer = await api.http.request(method, path, json=BODY if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), (method, path)
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() - began < 5
        assert (await api.http.get("/health/ready")).status_code == 503
        assert (await api.http.get("/health/live")).status_code == 200
        await asyncio.to_thread(own_database.server.start)
        answers = await asyncio.gather(
            *(api.http.post("/v1/instances", json=BODY | {"name": f"after-{n}"}) for n in range(30))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert (await api.http.get("/health/ready")).status_code == 200


async def test_database_lost_while_waiting_stays_accepted(
    own_database: Database, temporal_server: TemporalServer
) -> None:
    async with served(own_database, await temporal_server.client()) as api:
        waiting = asyncio.create_task(api.http.post("/v1/instances", json=BODY, headers={"Prefer": "wait=30"}))
        assert await eventually(lambda: own_database.counts()["instances"])
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_database.server.stop)
        answer = await waiting
        assert answer.status_code == 202
        assert UUID(answer.json()["meta"]["workflow_id"])
        await asyncio.to_thread(own_database.server.start)


async def test_row_level_security_shows_the_chosen_project_only(api: Api) -> None:
    await api.launch()
    key = api.db.project("other")
    async with api.as_(key) as other:
        assert (await other.post("/v1/instances", json=BODY)).status_code == 202
    projects = {row["name"]: row["id"] for row in api.db.rows("SELECT id, name FROM projects")}
    with api.db.connect("cairn_api") as connection:
        for table in ("instances", "workflows", "events", "quotas"):
            count = f"SELECT count(*) AS n, min(project_id::text) AS project FROM {table}"
            assert connection.execute(count).fetchone() == {"n": 0, "project": None}, "no project chosen"
            for project in projects.values():
                connection.execute("SELECT set_config('cairn.project', %s, false)", (str(project),))
                assert connection.execute(count).fetchone() == {"n": 1, "project": str(project)}
                moved = (
                    connection.execute(f"UPDATE {table} SET project_id = project_id WHERE project_id <> %s", (project,))
                    if table in ("instances", "workflows", "quotas")
                    else None
                )
                assert moved is None or moved.rowcount == 0
            connection.execute("SELECT set_config('cairn.project', '', false)")
        connection.execute("SELECT set_config('cairn.project', %s, false)", (str(projects["other"]),))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO events (project_id, type, resource_type, resource_id) VALUES (%s, 'x', 'x', %s)",
                (projects["default"], projects["default"]),
            )


async def test_key_opens_its_own_project_only(api: Api) -> None:
    mine = (await api.launch())["data"]
    async with api.as_(api.db.project("other")) as stranger:
        for project in ({}, {"X-Project-ID": mine["project_id"]}):
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/stop")):
                answer = await stranger.request(method, f"/v1/instances/{mine['id']}{path}", headers=project)
                assert answer.status_code == 404, (method, path, project)
        listed = await stranger.get("/v1/instances", headers={"X-Project-ID": mine["project_id"]})
        assert (listed.status_code, listed.json()["error"]["code"]) == (404, "not_found")
        absent = await stranger.get("/v1/instances", headers={"X-Project-ID": str(uuid4())})
        assert absent.json()["error"]["message"] == listed.json()["error"]["message"]
    assert (await api.http.get("/v1/instances", headers={"X-Project-ID": mine["project_id"]})).status_code == 200


async def test_run_that_temporal_lost_is_not_called_off_as_if_it_had_never_begun(api: Api) -> None:
    launched = await api.launch()
    workflow_id = launched["meta"]["workflow_id"]
    api.db.rows("UPDATE workflows SET started_at = now() WHERE id = %s", UUID(workflow_id))
    answer = await api.http.post(f"/v1/workflows/{workflow_id}/cancel")
    assert (answer.status_code, answer.json()["data"]["state"]) == (202, "accepted")
    assert answer.json()["data"]["cancel_requested_at"] is not None


async def test_stop_of_the_api_answers_those_who_wait(database: Database, temporal_server: TemporalServer) -> None:
    async with served(database, await temporal_server.client()) as api:
        waiting = asyncio.create_task(
            api.http.post("/v1/instances", json=BODY, headers={"Prefer": "wait=30"}),
        )
        assert await eventually(lambda: api.db.counts()["instances"] == 1)
        began = time.monotonic()
        api.app.state.stopping.set()
        answer = await waiting
        assert (answer.status_code, answer.json()["data"]["status"]) == (202, "pending")
        assert time.monotonic() - began < 5


async def test_errors_of_ours_keep_the_envelope_and_no_secrets(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.db.rows("ALTER TABLE instances ADD CONSTRAINT no_web CHECK (name <> 'broken')")
    answer = await api.http.post("/v1/instances", json=BODY | {"name": "broken", "env": {"PASSWORD": "hunter2"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.headers["x-request-id"] == answer.json()["meta"]["request_id"]
    logged = capsys.readouterr()
    assert "no_web" in logged.out + logged.err
    assert "hunter2" not in logged.out + logged.err


async def test_request_that_a_deadlock_ended_is_503_and_accepted_when_it_is_repeated(api: Api) -> None:
    with api.db.connect() as other:
        other.execute("BEGIN")
        other.execute("SET deadlock_timeout = '1min'")  # not the one that PostgreSQL ends
        other.execute("UPDATE quotas SET vcpus_used = vcpus_used")
        asked = asyncio.create_task(api.http.post("/v1/instances", json=BODY, headers=KEY))
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        assert await eventually(lambda: api.db.rows(waits))
        held = "INSERT INTO idempotency_keys SELECT id, 'k-1', '', id, id FROM projects"
        await asyncio.to_thread(other.execute, held)
        answer = await asked
        other.execute("ROLLBACK")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert (await api.http.post("/v1/instances", json=BODY, headers=KEY)).status_code == 202
