"""How long instances live and run, how they start, whether they are well: what is asked for, told and shown."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from typing import Any

import httpx
import pytest

from api import activity, streams
from api.caller import Caller, Credential, Who
from model.base import new_id
from model.lifetimes import IDLE_BYTES
from model.sealing import new_private_key, public_key, seal, unseal
from tests.api.conftest import Api
from tests.api.test_samples import agent, bucket, placed, told, usage
from tests.services import eventually
from tests.vault import sealed_value

CHECK = {"type": "http", "port": 80}
SCRIPT = "#!/bin/sh\necho grüezi\n"


async def test_what_is_asked_for_is_shown(api: Api) -> None:
    before = dt.datetime.now(dt.UTC)
    asked = {
        "ttl_seconds": 90,
        "idle_stop_seconds": 600,
        "restart_policy": "on-failure:3",
        "health_check": CHECK | {"path": "/ready", "interval_seconds": 2.5},
        "user_data": SCRIPT,
    }
    envelope = await api.launch(**asked)
    shown = (await api.http.get(f"/v1/instances/{envelope['data']['id']}")).json()["data"]
    assert shown == envelope["data"]
    expires = dt.datetime.fromisoformat(shown["expires_at"])
    assert dt.timedelta(0) <= expires - before - dt.timedelta(seconds=90) < dt.timedelta(seconds=60)
    assert (shown["ttl_seconds"], shown["idle_stop_seconds"], shown["restart_policy"]) == (90, 600, "on-failure:3")
    assert shown["health_check"] == asked["health_check"] | {
        "command": None,
        "timeout_seconds": 5,
        "retries": 3,
        "start_period_seconds": 0,
    }
    assert (shown["health"], shown["active_at"]) == ("starting", None)
    assert shown["user_data_sha256"] == hashlib.sha256(SCRIPT.encode()).hexdigest()
    listed = (await api.http.get("/v1/instances")).text
    assert "grüezi" not in listed
    assert '"user_data"' not in listed


async def test_what_is_not_asked_for_is_not_there(api: Api) -> None:
    shown = (await api.launch())["data"]
    names = ("ttl_seconds", "expires_at", "idle_stop_seconds", "active_at", "health_check", "health", "ssh_key_id")
    assert [shown[name] for name in (*names, "user_data_sha256")] == [None] * 8
    assert shown["restart_policy"] == "no"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("ttl_seconds", value) for value in (0, -1, "60", 1.5, 2**40, True)),
        *(("idle_stop_seconds", value) for value in (0, 9, "60", 2**40)),
        *(("restart_policy", value) for value in ("", "never", "on-failure:", "on-failure:0", "always:3", 1)),
        *(("user_data", value) for value in ("", "echo", "#!/bin/sh\r\necho", "#!/" + "é" * 8192, "#!/\x00", 1)),
        *(("health_check", value) for value in ({}, {"type": "http"}, "http", [], CHECK | {"x": 1})),
        *(("ssh_key_id", value) for value in ("laptop", "0199b3f0-0000-7000-8000-000000000001")),
    ],
)
async def test_bad_fields_are_named(shared_api: Api, field: str, value: Any) -> None:
    answer = await shared_api.http.post("/v1/instances", json={"name": "web", "image": "a", field: value})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["details"]["fields"][0]["field"].startswith(field)


async def test_engine_must_not_start_again_what_is_fenced(shared_api: Api) -> None:
    body = {"name": "db", "image": "a", "on_host_lost": "fence", "restart_policy": "always"}
    answer = await shared_api.http.post("/v1/instances", json=body)
    assert answer.status_code == 422
    assert "restart_policy" in answer.json()["error"]["message"]


# User data


async def test_user_data_is_for_agents_of_its_hosts_alone(api: Api) -> None:
    instance = (await api.launch(user_data=SCRIPT))["data"]
    assert sealed_value(api.db, api.keyring, instance["id"]) == SCRIPT
    assert api.db.one("SELECT user_data FROM instances")["user_data"] is None
    # As a release before this left it: in clear.
    api.db.rows("UPDATE instances SET user_data = %s", SCRIPT)
    path, params = f"/v1/hosts/user-data/{instance['id']}", {"project_id": instance["project_id"]}
    async with agent(api) as one, agent(api, "two") as two:
        assert (await one.get(path, params=params)).status_code == 404, "it is on no host yet"
        api.db.rows("UPDATE instances SET host_id = %s WHERE id = %s", api.db.hosts["one"], instance["id"])
        assert (await one.get(path, params=params)).status_code == 422, "its host has no key"
        key = new_private_key()
        api.db.rows("UPDATE hosts SET public_key = %s", public_key(key))

        async def script(of: httpx.AsyncClient) -> str:
            answer = await of.get(path, params=params)
            assert SCRIPT not in answer.text
            sealed = answer.json()["data"]["sealed"]
            return unseal(sealed, purpose=f"user_data:{instance['id']}", private_key=key).decode()

        assert await script(one) == SCRIPT
        assert (await two.get(path, params=params)).status_code == 404
        api.db.rows(
            "UPDATE instances SET next_host_id = %s, next_generation = 2 WHERE id = %s",
            *(api.db.hosts["two"], instance["id"]),
        )
        assert await script(two) == SCRIPT, "it is moving there"
        # And as workers seal it, for the placement that it has on each host.
        api.db.rows("UPDATE instances SET user_data = NULL, generation = 1")
        for number in (1, 2):
            sealed = seal(f"sealed {number}".encode(), purpose=f"user_data:{instance['id']}", key=public_key(key))
            api.db.rows(
                "INSERT INTO instance_secrets (instance_id, generation, project_id, sealed, user_data)"
                " VALUES (%s, %s, %s, '', %s)",
                *(instance["id"], number, instance["project_id"], sealed),
            )
        assert (await script(one), await script(two)) == ("sealed 1", "sealed 2")
        assert (await one.get(path, params={"project_id": str(new_id())})).status_code == 404
        assert (await one.get(path)).status_code == 422
    assert (await api.http.get(path, params=params)).status_code == 401


# Health


async def checked(api: Api, name: str = "web", host: str = "one") -> dict[str, Any]:
    instance = await placed(api, name, host)
    api.db.rows("""UPDATE instances SET health_check = '{"type": "tcp", "port": 80}' WHERE id = %s""", instance["id"])
    return instance


async def tell(api: Api, instance: dict[str, Any], health: str, host: str = "one", **more: Any) -> int:
    machine = {"id": instance["id"], "project_id": instance["project_id"], "generation": 1, "health": health} | more
    async with agent(api, host) as http:
        answer = await http.post("/v1/hosts/health", json={"machines": [machine]})
    assert answer.status_code == 200, answer.text
    changed: int = answer.json()["data"]["changed"]
    return changed


def events(api: Api, instance: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = api.db.rows("SELECT type, data FROM events WHERE resource_id = %s ORDER BY id", instance["id"])
    return [(row["type"], row["data"]) for row in rows if row["type"] != "instance.pending"]


async def health(api: Api, instance: dict[str, Any]) -> Any:
    return (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]["health"]


async def test_health_is_shown_and_each_change_of_it_is_one_event(api: Api) -> None:
    instance = await checked(api)
    assert await health(api, instance) is None
    assert await tell(api, instance, "healthy") == 1
    assert await tell(api, instance, "healthy") == 0
    assert await tell(api, instance, "unhealthy", failure="it answered 500") == 1
    assert await tell(api, instance, "starting") == 1
    assert await health(api, instance) == "starting"
    kinds = [(kind, data["from"], data["failure"]) for kind, data in events(api, instance)]
    expected = [("instance.healthy", None, None), ("instance.unhealthy", "healthy", "it answered 500")]
    assert kinds == expected, "to be starting again is none"
    api.db.rows("""UPDATE instances SET private_ip = '172.17.0.9', drift = '{"kind": "stopped"}'""")
    shown = (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]
    assert (shown["health"], shown["private_ip"]) == (None, None), "what has ended has neither"
    api.db.rows("UPDATE instances SET drift = NULL")
    assert await health(api, instance) == "starting"
    api.db.rows("UPDATE instances SET status = 'stopped' WHERE id = %s", instance["id"])
    assert await health(api, instance) is None


async def test_agents_tell_of_what_runs_on_their_own_hosts(api: Api) -> None:
    instance, elsewhere = await checked(api), await checked(api, "b", "two")
    unchecked = await placed(api, "c")
    assert await tell(api, elsewhere, "healthy") == 0
    assert await tell(api, instance, "healthy", generation=2) == 0
    assert await tell(api, instance, "healthy", project_id=str(new_id())) == 0
    assert await tell(api, unchecked, "healthy") == 0
    api.db.rows("UPDATE instances SET status = 'starting' WHERE id = %s", instance["id"])
    assert await tell(api, instance, "unhealthy") == 0, "a start under way decides for itself"
    assert events(api, instance) == []


async def test_nobody_waits_for_a_step_that_holds_the_row(api: Api) -> None:
    instance = await checked(api)
    api.db.rows("UPDATE instances SET idle_stop_seconds = 60 WHERE id = %s", instance["id"])
    with api.db.connect() as step, step.transaction():
        step.execute("SELECT * FROM instances WHERE id = %s FOR UPDATE", (instance["id"],))
        assert await tell(api, instance, "healthy") == 0
        async with agent(api) as http:
            assert await told(http, usage(instance)) == 1
    assert await tell(api, instance, "healthy") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"health": "well"}, {"health": None}, {"failure": "a\x00"}, {"failure": "x" * 1001}, {"generation": -1}, {"x": 1}],
    ids=str,
)
async def test_bad_reports_are_refused(shared_api: Api, wrong: dict[str, Any]) -> None:
    machine = {"id": str(new_id()), "project_id": str(new_id()), "generation": 1, "health": "healthy"} | wrong
    async with agent(shared_api) as http:
        answer = await http.post("/v1/hosts/health", json={"machines": [machine]})
        assert answer.status_code == 422, answer.text
        assert (await http.post("/v1/hosts/health", json={"machines": []})).status_code == 422
    assert (await shared_api.http.post("/v1/hosts/health", json={"machines": [machine]})).status_code == 401


# Activity

IDLE = {"cpu_percent": 0.4, "rx_bytes": 0, "tx_bytes": 0}


async def idle(api: Api, name: str = "web") -> dict[str, Any]:
    """One that has been active until ``since``, half a minute ago, and of which there is a sample from then."""
    instance, since = await placed(api, name), bucket(30)
    statement = "UPDATE instances SET idle_stop_seconds = 600, active_at = %s WHERE id = %s"
    api.db.rows(statement, since, instance["id"])
    async with agent(api) as http:
        await told(http, usage(instance, **IDLE), at=since - dt.timedelta(seconds=10))
    assert active(api, instance) == since
    return instance | {"since": since}


def active(api: Api, instance: dict[str, Any]) -> dt.datetime | None:
    found: dt.datetime | None = api.db.one("SELECT active_at FROM instances WHERE id = %s", instance["id"])["active_at"]
    return found


@pytest.mark.parametrize(
    ("figures", "is_active"),
    [
        ({}, False),
        ({"cpu_percent": 1.0}, True),
        ({"rx_bytes": IDLE_BYTES // 2, "tx_bytes": IDLE_BYTES // 2 - 1}, False),
        ({"rx_bytes": IDLE_BYTES // 2, "tx_bytes": IDLE_BYTES // 2}, True),
    ],
    ids=str,
)
async def test_cpu_and_traffic_are_activity_until_the_end_of_their_sample(
    api: Api, figures: dict[str, Any], is_active: bool
) -> None:
    instance = await idle(api)
    at = instance["since"]
    async with agent(api) as http:
        for _ in range(2):
            await told(http, usage(instance, **IDLE | figures), at=at)
            assert active(api, instance) == (at + dt.timedelta(seconds=10) if is_active else at)


async def test_time_of_which_nothing_is_known_is_not_idle(api: Api) -> None:
    instance = await idle(api)
    api.db.rows("UPDATE samples SET at = at - interval '50 s'")
    api.db.rows("UPDATE instances SET active_at = active_at - interval '10 minutes'")
    at = instance["since"] + dt.timedelta(seconds=10)
    async with agent(api) as http:
        await told(http, usage(instance, **IDLE), at=at)
    assert active(api, instance) == at + dt.timedelta(seconds=10)


async def test_activity_is_kept_for_what_is_stopped_when_idle_and_a_late_sample_takes_nothing_back(api: Api) -> None:
    instance, other = await idle(api), await placed(api, "other")
    async with agent(api) as http:
        at = instance["since"] + dt.timedelta(seconds=10)
        await told(http, usage(instance, cpu_percent=50), usage(other, cpu_percent=50), at=at)
        await told(http, usage(instance, cpu_percent=50), at=at - dt.timedelta(seconds=40))
    assert active(api, instance) == at + dt.timedelta(seconds=10)
    assert active(api, other) is None


async def test_open_stream_marks_activity_at_both_ends_and_between(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, other = await idle(api), await placed(api, "other")
    monkeypatch.setattr(activity, "MARK_SECONDS", 0.2)
    who = Who(Credential(None, None, None), api.db.project_id, frozenset(), "test", None, None, None)
    caller = Caller(api.app.state.engine, None, who, None)  # type: ignore[arg-type]
    seen = [active(api, instance)]
    async with activity.going_on(caller, instance["id"]), activity.going_on(caller, other["id"]):
        seen.append(active(api, instance))
        assert await eventually(lambda: active(api, instance) != seen[-1])
        seen.append(active(api, instance))
    assert await eventually(lambda: active(api, instance) != seen[-1])
    assert seen == sorted(set(seen)), "each later than the one before"  # type: ignore[type-var]

    async def stays() -> bool:
        last = active(api, instance)
        await asyncio.sleep(0.5)
        return active(api, instance) == last

    assert await eventually(stays), "and no more once it is closed"
    assert active(api, other) is None


async def test_exec_is_a_stream(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = await idle(api)
    before = active(api, instance)
    api.db.rows("UPDATE hosts SET agent_url = 'https://127.0.0.1:1', fingerprint = %s", bytes(32))
    answer = await api.http.post(f"/v1/instances/{instance['id']}/exec", json={"cmd": ["true"]})
    assert answer.status_code == 503, "its agent is away"
    assert streams.activity is activity
    assert await eventually(lambda: active(api, instance) != before)
