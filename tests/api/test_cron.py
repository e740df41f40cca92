"""Cron jobs as rows: made, changed, paused, removed; their runs, asked for and looked at; and what they may do."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import psycopg
import pytest

from api.cron_acts import Acting, Refused
from model.base import new_id
from model.cron import MOST_JOBS, CronCall, TargetKind
from model.errors import CairnError
from tests.api.conftest import Api, no_temporal, served
from tests.services import Database
from tests.vault import sealed_value

# An address of the world: judged without being asked for, and called by nobody here.
HTTP = {"http": {"url": "https://1.1.1.1/nightly"}}
JO = {"email": "jo@example.org", "password": "a long enough password of jo", "name": "Jo"}
Json = dict[str, Any]


async def make(api: Api, name: str = "nightly", http: httpx.AsyncClient | None = None, **more: Any) -> Json:
    body = {"name": name, "schedule": "30 2 * * *", "target": HTTP} | more
    answer = await (http or api.http).post("/v1/cron/jobs", json=body)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()["data"]
    return made


def running(api: Api, job: Json, **more: Any) -> str:
    """What begins a run."""
    id = new_id()
    values = {"id": id, "project_id": job["project_id"], "job_id": job["id"], "state": "running", "manual": True} | more
    names, places = ", ".join(values), ", ".join("%s" for _ in values)
    at = "" if "scheduled_at" in values else ", scheduled_at"
    now = "" if "scheduled_at" in values else ", now()"
    api.db.rows(f"INSERT INTO cron_runs ({names}{at}) VALUES ({places}{now})", *values.values())
    return str(id)


def call(job: Json, run: str, kind: TargetKind = "workflow") -> CronCall:
    return CronCall(project_id=UUID(job["project_id"]), job_id=UUID(job["id"]), run_id=UUID(run), kind=kind, seconds=10)


async def test_a_job_shows_when_it_runs_and_its_secret_once(api: Api) -> None:
    made = await make(api, time_zone="Europe/Berlin", labels={"team": "a"})
    assert made["secret"].startswith("cairn_hook_")
    assert (made["version"], made["applied"], made["overlap"], made["catchup_window_seconds"]) == (1, False, "skip", 60)
    assert made["owner"].startswith("key:")
    times = [dt.datetime.fromisoformat(one) for one in made["next_runs"]]
    assert len(times) == 10 and times == sorted(times) and times[0] > dt.datetime.now(dt.UTC)
    path = f"/v1/cron/jobs/{made['id']}"
    shown = [await api.http.get(path), await api.http.get("/v1/cron/jobs")]
    assert all(one.status_code == 200 and made["secret"] not in one.text for one in shown)
    assert shown[0].headers["ETag"] == '"1"'
    with api.db.connect("cairn_api") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT ciphertext FROM sealed_values")
    assert sealed_value(api.db, api.keyring, made["id"]) == made["secret"]
    for query, found in (("label=team=a", 1), ("label=team=b", 0), ("name=nightly", 1), ("paused=true", 0)):
        assert len((await api.http.get(f"/v1/cron/jobs?{query}")).json()["data"]) == found
    events = api.db.rows("SELECT type FROM events WHERE resource_type = 'cron_job'")
    assert [row["type"] for row in events] == ["cron_job.created"]
    (audited,) = api.db.rows("SELECT after FROM audit WHERE resource_type = 'cron_job'")
    assert audited["after"]["name"] == "nightly"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"schedule": "61 * * * *"}, "schedule"),
        ({"schedule": "0 0 30 2 *"}, "schedule"),
        ({"schedule": "* * * *"}, "schedule"),
        ({"schedule": "@every 0s"}, "schedule"),
        ({"schedule": "@every 500ms"}, "schedule"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"overlap": "perhaps"}, "overlap"),
        ({"catchup_window_seconds": 1}, "catchup_window_seconds"),
        ({"target": {}}, "target"),
        ({"target": HTTP | {"exec": {"name": "web", "cmd": "true"}}}, "target"),
        ({"target": {"exec": {"cmd": "true"}}}, "target.exec"),
        ({"target": {"http": {"url": "https://jo:pw@1.1.1.1/"}}}, "target.http.url"),
        ({"target": {"http": {"url": "https://1.1.1.1/", "headers": {"Host": "a"}}}}, "target.http.headers"),
        ({"target": {"http": {"url": "https://1.1.1.1/", "headers": {"a": "b\r\nc: d"}}}}, "target.http.headers"),
        ({"target": {"http": {"url": "https://1.1.1.1/", "secret": {"secret": "none"}}}}, "target.http.secret"),
        ({"target": {"workflow": {"kind": "StopInstance"}}}, "target.workflow"),
        (
            {"target": {"workflow": {"kind": "StopInstance", "resource_id": str(uuid4())}}},
            "target.workflow.resource_id",
        ),
        ({"target": {"workflow": {"kind": "DrainHost", "resource_id": str(uuid4())}}}, "target.workflow.kind"),
        ({"target": {"workflow": {"kind": "ProvisionInstance", "parameters": {"name": "a"}}}}, "parameters.image"),
    ],
)
async def test_what_is_no_job_is_refused(shared_api: Api, wrong: Json, field: str) -> None:
    body = {"name": "wrong", "schedule": "@hourly", "target": HTTP} | wrong
    answer = await shared_api.http.post("/v1/cron/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
    assert any(field in one["field"] for one in answer.json()["error"]["details"]["fields"]), answer.text


async def test_a_body_that_is_not_json_is_refused(shared_api: Api) -> None:
    for body in (
        '{"a": "\\u0000"}',
        '["\\ud800"]',
        '{"n": 99999999999999999999}',
        "[NaN]",
        "[1e999]",
        "[" * 300 + "]" * 300,
    ):
        content = '{"name": "odd", "schedule": "@hourly", "target": {"http": {"url": "https://1.1.1.1/", "body": %s}}}'
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
        answer = await shared_api.http.post("/v1/cron/jobs", content=content % body, headers=headers)
        assert answer.status_code in (400, 422), (body, answer.text)


async def test_a_url_that_leads_inside_is_refused(shared_api: Api) -> None:
    for url in ("http://127.0.0.1/", "http://169.254.169.254/latest", "http://[::1]/"):
        body = {"name": "in", "schedule": "@hourly", "target": {"http": {"url": url}}}
        answer = await shared_api.http.post("/v1/cron/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "url_refused")


async def test_same_key_makes_one(api: Api) -> None:
    body = {"name": "nightly", "schedule": "@daily", "target": HTTP}
    answers = await asyncio.gather(
        *(api.http.post("/v1/cron/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    taken = await api.http.post("/v1/cron/jobs", json=body)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")


async def test_what_is_remembered_of_a_key_says_nothing_of_what_signs(api: Api) -> None:
    secret, headers = "a-secret-of-sixteen-and-more", {"Idempotency-Key": "k"}

    def body(secret: str) -> Json:
        return {"name": "nightly", "schedule": "@daily", "target": {"http": HTTP["http"] | {"secret": secret}}}

    first, again, other = [
        await api.http.post("/v1/cron/jobs", json=body(one), headers=headers) for one in (secret, secret, secret * 2)
    ]
    assert first.json()["data"]["id"] == again.json()["data"]["id"]
    assert other.json()["error"]["code"] == "idempotency_mismatch"
    kept = bytes(api.db.one("SELECT fingerprint FROM idempotency_keys")["fingerprint"])
    # Whoever reads the row and tries a guess would do this.
    guess = orjson.dumps(["POST", "/v1/cron/jobs", body(secret)], option=orjson.OPT_SORT_KEYS)
    assert hashlib.sha256(guess).digest() != kept
    # That this would be found: it is what is remembered where nothing signs.
    plain = {"name": "other", "schedule": "@daily", "target": {"exec": {"name": "web", "cmd": ["true"]}}}
    assert (await api.http.post("/v1/cron/jobs", json=plain, headers={"Idempotency-Key": "p"})).status_code == 201
    kept = bytes(api.db.one("SELECT fingerprint FROM idempotency_keys WHERE key = 'p'")["fingerprint"])
    guess = orjson.dumps(["POST", "/v1/cron/jobs", plain], option=orjson.OPT_SORT_KEYS)
    assert hashlib.sha256(guess).digest() == kept


async def test_a_project_has_so_many(api: Api) -> None:
    made = await make(api)
    api.db.rows(
        "INSERT INTO cron_jobs (id, project_id, name, schedule, time_zone, target, overlap, catchup_seconds, owner)"
        " SELECT gen_random_uuid(), project_id, 'n' || n, schedule, time_zone, target, overlap, 60, owner"
        " FROM cron_jobs, generate_series(2, %s) n",
        MOST_JOBS,
    )
    body = {"name": "more", "schedule": "@daily", "target": HTTP}
    answer = await api.http.post("/v1/cron/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    assert (await api.http.delete(f"/v1/cron/jobs/{made['id']}")).status_code == 204
    assert (await api.http.post("/v1/cron/jobs", json=body)).status_code == 201


async def test_a_change_is_of_the_version_that_was_seen_and_keeps_the_secret(api: Api) -> None:
    made = await make(api)
    path = f"/v1/cron/jobs/{made['id']}"
    body = {"name": "nightly", "schedule": "@every 10s", "target": {"http": {"url": "https://1.1.1.1/other"}}}
    late = await api.http.put(path, json=body, headers={"If-Match": '"9"'})
    assert late.status_code == 412
    changed = await api.http.put(path, json=body, headers={"If-Match": '"1"'})
    assert changed.status_code == 200 and "secret" not in changed.json()["data"], changed.text
    assert changed.json()["data"]["version"] == 2
    assert sealed_value(api.db, api.keyring, made["id"]) == made["secret"]
    body["target"] = {"exec": {"name": "web", "cmd": "true"}}
    assert (await api.http.put(path, json=body)).status_code == 200
    assert api.db.rows("SELECT id FROM sealed_values") == []
    again = (await api.http.put(path, json=body | {"target": HTTP})).json()["data"]
    assert again["secret"] and again["secret"] != made["secret"]


async def test_pause_and_resume_say_so_once(api: Api) -> None:
    made = await make(api)
    path = f"/v1/cron/jobs/{made['id']}"
    for _ in range(2):
        paused = (await api.http.post(f"{path}/pause")).json()["data"]
        assert (paused["paused"], paused["version"], paused["next_runs"]) == (True, 2, [])
    resumed = (await api.http.post(f"{path}/resume")).json()["data"]
    assert (resumed["paused"], resumed["version"], len(resumed["next_runs"])) == (False, 3, 10)
    types = [row["type"] for row in api.db.rows("SELECT type FROM events ORDER BY id")]
    assert types == ["cron_job.created", "cron_job.paused", "cron_job.resumed"]


async def test_a_deleted_job_is_gone_at_once_and_its_name_is_free(api: Api) -> None:
    made = await make(api)
    path = f"/v1/cron/jobs/{made['id']}"
    assert (await api.http.delete(path)).status_code == 204
    for answer in (
        await api.http.get(path),
        await api.http.delete(path),
        await api.http.get(f"{path}/runs"),
        await api.http.post(f"{path}/trigger"),
    ):
        assert answer.status_code == 404
    row = api.db.one("SELECT applied_version, version FROM cron_jobs")
    assert row["applied_version"] != row["version"], "a worker is to take Temporal's schedule away"
    await make(api)


async def test_a_trigger_is_one_run_under_one_key_and_not_without_bound(api: Api) -> None:
    made = await make(api)
    path = f"/v1/cron/jobs/{made['id']}"
    answers = [await api.http.post(f"{path}/trigger", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    first, again = (answer.json()["data"] for answer in answers)
    assert first["id"] == again["id"] and (first["manual"], first["state"]) == (True, "pending")
    assert first["idempotency_key"] == f"cron-{made['id']}-manual-{first['id']}"
    statuses = [(await api.http.post(f"{path}/trigger")).status_code for _ in range(10)]
    assert statuses == [202] * 9 + [429]
    shown = (await api.http.get(f"{path}/runs?limit=3")).json()
    assert len(shown["data"]) == 3 and shown["meta"]["next_cursor"] and "output" not in shown["data"][0]
    one = (await api.http.get(f"{path}/runs/{first['id']}")).json()["data"]
    assert one["output"] is None
    assert (await api.http.get(f"{path}/runs/{uuid4()}")).status_code == 404


async def test_a_back_fill_takes_times_that_had_no_run(api: Api) -> None:
    made = await make(api, schedule="0 * * * *", time_zone="Europe/Berlin")
    path = f"/v1/cron/jobs/{made['id']}"
    running(api, made, manual=False, scheduled_at=dt.datetime(2026, 3, 29, 2, tzinfo=dt.UTC))
    asked = {"start": "2026-03-29T00:00:00Z", "end": "2026-03-29T04:00:00Z"}
    key = {"Idempotency-Key": uuid4().hex}
    assert (await api.http.post(f"{path}/backfill", json=asked, headers=key)).json()["data"] == {"runs": 4}
    assert (await api.http.post(f"{path}/backfill", json=asked)).json()["data"] == {"runs": 0}
    other = await api.http.post(f"{path}/backfill", json=asked | {"end": "2026-03-29T03:00:00Z"}, headers=key)
    assert other.json()["error"]["code"] == "idempotency_mismatch"
    # Of its times all have a run, that which there was before too.
    assert (await api.http.post(f"{path}/backfill", json=asked, headers=key)).json()["data"] == {"runs": 5}
    rows = api.db.rows("SELECT scheduled_at, state FROM cron_runs ORDER BY scheduled_at")
    assert [row["scheduled_at"].hour for row in rows] == [0, 1, 2, 3, 4]
    for wrong in (
        {"start": "2020-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
        {"start": "2026-01-01T00:00:00Z", "end": "2025-01-01T00:00:00Z"},
        {"start": "2026-01-01T00:00:00Z", "end": "2126-01-01T00:00:00Z"},
        {"start": "2026-01-01T00:00:00", "end": "2026-01-01T01:00:00"},
        {"start": "0001-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
        {"start": "0001-01-01T00:00:00+14:00", "end": "0001-01-02T00:00:00-14:00"},
    ):
        assert (await api.http.post(f"{path}/backfill", json=wrong)).status_code == 422


async def test_who_may_not_do_it_may_not_have_it_done(api: Api) -> None:
    launched = (await api.launch())["data"]
    key = api.db.key(api.db.project_id, "ops", "developer", scopes=["cron:*"])
    async with api.as_(key) as http:
        for target in (
            {"exec": {"instance_id": launched["id"], "cmd": "true"}},
            {"workflow": {"kind": "StopInstance", "resource_id": launched["id"]}},
            {"workflow": {"kind": "ProvisionInstance", "parameters": {"name": "a", "image": "cairn/base:latest"}}},
            {"http": HTTP["http"] | {"headers": {"Authorization": {"secret": "token"}}}},
        ):
            body = {"name": "sly", "schedule": "@hourly", "target": target}
            answer = await http.post("/v1/cron/jobs", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), answer.text
        assert (await http.post("/v1/cron/jobs", json=body | {"target": HTTP})).status_code == 201


async def test_a_run_starts_one_workflow_in_the_name_of_who_made_the_job(api: Api) -> None:
    launched = (await api.launch())["data"]
    api.put(launched, "running")
    target = {"workflow": {"kind": "StopInstance", "resource_id": launched["id"]}}
    key = api.db.key(api.db.project_id, "dev", "developer")
    async with api.as_(key) as http:
        job = await make(api, "stopper", http, target=target)
    run = running(api, job)
    acting = Acting(api.app)
    assert await acting.act(call(job, run))
    assert await acting.act(call(job, run)), "a step that is repeated finds what it started"
    (started,) = api.db.rows("SELECT id, actor FROM workflows WHERE kind = 'StopInstance'")
    assert started["actor"] == "cron:stopper"
    path = f"/v1/cron/jobs/{job['id']}/runs/{run}"
    assert (await api.http.get(path)).json()["data"]["workflow_id"] == str(started["id"])
    (audited,) = api.db.rows("SELECT actor, user_id FROM audit WHERE workflow_id = %s", started["id"])
    assert audited["actor"] == "cron:stopper" and audited["user_id"] is not None
    other = running(api, job)
    with pytest.raises(Refused) as refused:
        await acting.act(call(job, other))
    assert refused.value.code == "invalid_state"


async def test_a_launch_is_called_as_the_job_says_and_its_time(api: Api) -> None:
    parameters = {"name": "worker", "image": "cairn/base:latest"}
    job = await make(api, target={"workflow": {"kind": "ProvisionInstance", "parameters": parameters}})
    at = dt.datetime(2026, 3, 29, 1, 30, tzinfo=dt.UTC)
    run = running(api, job, manual=False, scheduled_at=at)
    assert await Acting(api.app).act(call(job, run))
    assert api.db.one("SELECT name FROM instances")["name"] == "worker-20260329013000"


@pytest.mark.parametrize(
    "lost",
    [
        "UPDATE users SET deactivated_at = now() WHERE name = 'dev'",
        "DELETE FROM bindings WHERE user_id = (SELECT id FROM users WHERE name = 'dev')",
        "UPDATE bindings SET role_name = 'viewer' WHERE user_id = (SELECT id FROM users WHERE name = 'dev')",
        "UPDATE cron_jobs SET scopes = '{cron:write}'",
    ],
)
async def test_a_run_may_only_what_its_owner_may_now(api: Api, lost: str) -> None:
    launched = (await api.launch())["data"]
    api.put(launched, "running")
    target = {"workflow": {"kind": "StopInstance", "resource_id": launched["id"]}}
    async with api.as_(api.db.key(api.db.project_id, "dev", "developer")) as http:
        job = await make(api, "stopper", http, target=target)
    run = running(api, job)
    api.db.rows(lost)
    with pytest.raises(Refused) as refused:
        await Acting(api.app).act(call(job, run))
    assert refused.value.code == "forbidden", refused.value
    assert api.db.rows("SELECT id FROM workflows WHERE kind = 'StopInstance'") == []
    # Who changes it takes it over.
    body = {"name": "stopper", "schedule": "@hourly", "target": target}
    assert (await api.http.put(f"/v1/cron/jobs/{job['id']}", json=body)).status_code == 200
    assert await Acting(api.app).act(call(job, run))


async def test_nobody_from_outside_is_a_cron_job(api: Api) -> None:
    made = await make(api)
    async with httpx.AsyncClient(base_url=api.url) as http:
        for headers in ({"cairn.job": made["id"]}, {"X-Cairn-Job": made["id"]}, {"cairn-job": made["id"]}):
            assert (await http.get("/v1/instances", headers=headers)).status_code == 401


async def test_named_secrets_are_shown_by_their_names(api: Api) -> None:
    assert (await api.http.post("/v1/secrets", json={"name": "token", "value": "s3cr3t-value"})).status_code == 201
    target = {"http": HTTP["http"] | {"headers": {"Authorization": {"secret": "token"}}, "secret": {"secret": "token"}}}
    made = await make(api, target=target)
    assert "secret" not in made or made["secret"] is None
    shown = made["target"]["http"]
    assert (shown["headers"], shown["secret"]) == ({"Authorization": {"secret": "token"}}, {"secret": "token"})
    body = {"name": "nightly", "schedule": "@daily", "target": made["target"]}
    again = await api.http.put(f"/v1/cron/jobs/{made['id']}", json=body)
    assert again.status_code == 200, again.text
    refused = await api.http.delete("/v1/secrets/token")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert refused.json()["error"]["details"] == {"cron_jobs": [made["name"]]}
    assert (await api.http.delete(f"/v1/cron/jobs/{made['id']}")).status_code == 204
    assert (await api.http.delete("/v1/secrets/token")).status_code == 204


async def test_service_accounts_have_each_its_own_limit_for_what_their_jobs_ask(database: Database) -> None:
    async with served(database, await no_temporal(), rate_limit_read="2/minute") as api:
        target = {"exec": {"name": "none", "cmd": "true"}}
        jobs = [await make(api, name, target=target) for name in ("one", "other")]
        for job in jobs:
            account = new_id()
            api.db.rows(
                "INSERT INTO service_accounts (id, project_id, name) VALUES (%s, %s, %s)",
                *(account, job["project_id"], job["name"]),
            )
            api.db.rows(
                "INSERT INTO bindings (id, project_id, service_account_id, role_name) VALUES (%s, %s, %s, 'developer')",
                *(new_id(), job["project_id"], account),
            )
            api.db.rows(
                "UPDATE cron_jobs SET user_id = NULL, service_account_id = %s WHERE id = %s", account, job["id"]
            )

        async def asked(job: Json) -> str:
            with pytest.raises(CairnError) as error:
                await Acting(api.app).act(call(job, running(api, job), "exec"))
            return error.value.code

        one, other = jobs
        assert [await asked(one) for _ in range(3)] == ["not_found", "not_found", "unavailable"]
        assert await asked(other) == "not_found"


async def test_jobs_of_a_personal_project_end_with_its_user(api: Api) -> None:
    user = (await api.http.post("/v1/users", json=JO)).json()["data"]
    made = await make(api)
    api.db.rows("DELETE FROM sealed_values WHERE cron_job_id = %s", made["id"])
    api.db.rows("UPDATE cron_jobs SET project_id = %s", user["default_project_id"])
    assert (await api.http.delete(f"/v1/users/{user['id']}")).status_code == 204
    row = api.db.one("SELECT deleted_at, version, applied_version FROM cron_jobs WHERE id = %s", made["id"])
    assert row["deleted_at"] is not None and row["version"] > row["applied_version"], "Temporal's schedule is removed"
