"""Load balancers as rows: accepted, changed, refused; their targets; what agents tell of them."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import httpx
import pytest

from model import haproxy
from tests.api.conftest import Api

Json = dict[str, Any]
AGENT = {"Authorization": "Bearer agent-one"}


async def create(api: Api, name: str = "front", **more: Any) -> Json:
    """A load balancer that is accepted; the answer's envelope."""
    answer = await api.http.post("/v1/lb", json={"name": name, "port": 8080, "host_port": 0} | more)
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()
    return found


async def balancer(api: Api, name: str = "front", host: str = "one", **more: Any) -> Json:
    """One that workers have made."""
    made: Json = (await create(api, name, **more))["data"]
    api.db.rows("UPDATE load_balancers SET status = 'active', applied_settings = settings WHERE id = %s", made["id"])
    run(api, made["instance_id"], host)
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_id = %s", made["id"])
    return made


def run(api: Api, instance_id: str, host: str = "one", ip: str = "172.17.0.9") -> None:
    api.db.rows(
        "UPDATE instances SET status = 'running', host_id = %s, generation = 1, private_ip = %s, container_id = 'c-1'"
        " WHERE id = %s",
        *(api.db.hosts[host], ip, instance_id),
    )
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_id = %s", instance_id)


async def target(api: Api, front: Json, instance: Json, **more: Any) -> Json:
    """One that workers have added."""
    body = {"instance_id": instance["id"], "port": 80} | more
    answer = await api.http.post(f"/v1/lb/{front['id']}/targets", json=body)
    assert answer.status_code == 202, answer.text
    finish(api, answer)
    added: Json = answer.json()["data"]
    return added


def finish(api: Api, answer: httpx.Response) -> None:
    """What a run that completes leaves behind."""
    workflow_id = answer.json()["meta"]["workflow_id"]
    api.db.rows("UPDATE lb_targets SET state = 'in', workflow_id = NULL WHERE workflow_id = %s", workflow_id)
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE id = %s", workflow_id)
    api.db.rows("UPDATE load_balancers SET status = 'active' WHERE workflow_id = %s", workflow_id)


async def running(api: Api, name: str = "web", host: str = "one", **more: Any) -> Json:
    instance: Json = (await api.launch(name, **more))["data"]
    run(api, instance["id"], host, "172.17.0.2")
    return instance


async def test_create_writes_balancer_proxy_and_both_runs(api: Api) -> None:
    body = {"health_check": {"type": "http", "path": "/ready"}, "cookie": "SRV", "algorithm": "least-conn"}
    made = (await create(api, **body))["data"]
    assert (made["status"], made["mode"], made["port"], made["algorithm"]) == ("creating", "http", 8080, "least-conn")
    assert (made["health_check"]["path"], made["cookie"], made["drain_seconds"]) == ("/ready", "SRV", 30)
    proxy = api.db.one("SELECT * FROM instances")
    assert str(proxy["id"]) == made["instance_id"]
    assert (proxy["image"], proxy["cmd"]) == ("haproxy:3.0-alpine", haproxy.PROGRAM)
    assert (str(proxy["balancer_id"]), proxy["restart_policy"]) == (made["id"], "always")
    rows = api.db.rows("SELECT kind, parent_id, resource_id, id FROM workflows ORDER BY kind")
    assert [row["kind"] for row in rows] == ["ProvisionInstance", "ProvisionLoadBalancer"]
    assert rows[0]["parent_id"] == rows[1]["id"]
    assert rows[1]["parent_id"] is None
    quota = (await api.http.get(f"/v1/projects/{made['project_id']}/quotas")).json()["data"]
    assert quota["load_balancers"] == {"limit": None, "used": 0, "reserved": 1}
    assert (quota["instances"]["reserved"], quota["vcpus"]["reserved"]) == (1, 1)
    shown = await api.http.get(f"/v1/lb/{made['id']}")
    assert shown.json()["data"] | {"updated_at": 0} == made | {"updated_at": 0}
    assert shown.headers["ETag"] == '"1"'
    assert [one["id"] for one in (await api.http.get("/v1/lb")).json()["data"]] == [made["id"]]
    events = [row["type"] for row in api.db.rows("SELECT type FROM events ORDER BY type")]
    assert events == ["instance.pending", "lb.creating"]


async def test_same_key_at_once_is_one_balancer(api: Api) -> None:
    body, headers = {"name": "front", "port": 8080}, {"Idempotency-Key": "one"}
    answers = await asyncio.gather(*(api.http.post("/v1/lb", json=body, headers=headers) for _ in range(8)))
    assert {answer.json()["data"]["id"] for answer in answers} == {
        str(api.db.one("SELECT id FROM load_balancers")["id"])
    }
    assert len(api.db.rows("SELECT 1 FROM instances")) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"port": 0}, "port"),
        ({"algorithm": "first"}, "algorithm"),
        ({"cookie": "a b"}, "cookie"),
        ({"cookie": "A;B"}, "cookie"),
        ({"mode": "tcp", "cookie": "SRV"}, "body"),
        ({"health_check": {"type": "http", "path": "/a b"}}, "health_check.path"),
        ({"health_check": {"type": "http", "path": "/x\nserver evil 10.0.0.1:80"}}, "health_check.path"),
        ({"health_check": {"type": "tcp", "path": "/"}}, "health_check"),
        ({"health_check": {"interval_seconds": 0}}, "health_check.interval_seconds"),
        ({"vpc_id": "0199b3f0-0000-7000-8000-000000000001"}, "vpc_id"),
        ({"tls": {"secret": "none"}}, "tls"),
        ({"instance_type": "huge"}, "instance_type"),
    ],
)
async def test_what_is_not_understood_is_refused(shared_api: Api, body: Json, field: str) -> None:
    answer = await shared_api.http.post("/v1/lb", json={"name": "front", "port": 8080} | body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["details"]["fields"][0]["field"] == field
    assert not shared_api.db.rows("SELECT 1 FROM load_balancers")


async def test_quota_and_taken_names_and_ports(api: Api) -> None:
    await balancer(api, "front", host_port=8080)
    taken = await api.http.post("/v1/lb", json={"name": "front", "port": 8081})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
    api.db.rows("UPDATE quotas SET load_balancers_limit = 1")
    refused = await api.http.post("/v1/lb", json={"name": "second", "port": 8081})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    # Nothing of what was refused is left.
    assert len(api.db.rows("SELECT 1 FROM instances")) == 1


async def test_proxy_is_not_changed_by_itself(api: Api) -> None:
    front = await balancer(api)
    path = f"/v1/instances/{front['instance_id']}"
    answers = [await api.http.post(f"{path}/{verb}") for verb in ("stop", "restart", "pause")]
    answers.append(await api.http.delete(path))
    answers.append(await api.http.patch(path, json={"name": "mine"}))
    answers.append(await api.http.post(f"{path}/resize", json={"instance_type": "basic-2"}))
    answers.append(await api.http.post(f"{path}/exec", json={"cmd": ["id"]}))
    for answer in answers:
        assert answer.status_code == 409, answer.text
        error = answer.json()["error"]
        assert error["code"] == "managed"
        assert "load balancer front" in error["message"]
        assert error["details"]["managed_by"] == {"type": "load_balancer", "id": front["id"], "name": "front"}
    shown = (await api.http.get(path)).json()["data"]
    assert shown["managed_by"] == {"type": "load_balancer", "id": front["id"]}
    assert shown["status"] == "running"


async def test_changes_are_runs_and_names_are_not(api: Api) -> None:
    front = await balancer(api)
    path = f"/v1/lb/{front['id']}"
    stale = await api.http.patch(path, json={"drain_seconds": 5}, headers={"If-Match": '"9"'})
    assert stale.status_code == 412
    renamed = await api.http.patch(path, json={"name": "door"})
    assert (renamed.status_code, renamed.json()["data"]["name"]) == (200, "door")
    changed = await api.http.patch(path, json={"algorithm": "random", "cookie": "SRV"})
    assert (changed.status_code, changed.json()["data"]["status"]) == (202, "updating")
    # While that runs, the next is accepted: the newest counts.
    again = await api.http.patch(path, json={"cookie": None})
    assert (again.status_code, again.json()["data"]["cookie"]) == (202, None)
    row = api.db.one("SELECT settings, settings_by FROM load_balancers")
    assert (row["settings"]["algorithm"], str(row["settings_by"])) == ("random", again.json()["meta"]["workflow_id"])
    same = await api.http.patch(path, json={"algorithm": "random"})
    assert same.status_code == 200
    assert (await api.http.patch(path, json={"tls": {"secret": "cert"}})).status_code == 422


async def test_delete_calls_off_what_runs(api: Api) -> None:
    front = await balancer(api)
    path = f"/v1/lb/{front['id']}"
    changed = (await api.http.patch(path, json={"algorithm": "random"})).json()["meta"]["workflow_id"]
    gone = await api.http.delete(path)
    assert (gone.status_code, gone.json()["data"]["status"]) == (202, "deleting")
    again = await api.http.delete(path)
    assert again.json()["meta"]["workflow_id"] == gone.json()["meta"]["workflow_id"]
    assert api.db.one("SELECT state FROM workflows WHERE id = %s", changed)["state"] == "cancelled"
    refused = await api.http.patch(path, json={"algorithm": "source"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")


async def test_called_off_before_it_began_nothing_is_held(api: Api) -> None:
    made = await create(api)
    answer = await api.http.post(f"/v1/workflows/{made['meta']['workflow_id']}/cancel")
    assert answer.status_code in (200, 202), answer.text
    assert (await api.http.get(f"/v1/lb/{made['data']['id']}")).json()["data"]["status"] == "error"
    assert {row["state"] for row in api.db.rows("SELECT state FROM workflows")} == {"cancelled"}
    quota = (await api.http.get(f"/v1/projects/{made['data']['project_id']}/quotas")).json()["data"]
    assert (quota["instances"]["reserved"], quota["instances"]["used"]) == (0, 0)


async def test_targets_come_change_and_leave(api: Api) -> None:
    front, web = await balancer(api), await running(api)
    path = f"/v1/lb/{front['id']}/targets"
    added = await api.http.post(path, json={"instance_id": web["id"], "port": 80, "weight": 10})
    assert added.status_code == 202, added.text
    shown = added.json()["data"]
    assert (shown["state"], shown["health"], shown["weight"], shown["name"]) == ("adding", "unknown", 10, "web")
    busy = await api.http.delete(f"{path}/{web['id']}")
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "invalid_state")
    assert busy.json()["error"]["details"]["workflow_id"] == added.json()["meta"]["workflow_id"]
    finish(api, added)
    twice = await api.http.post(path, json={"instance_id": web["id"], "port": 81})
    assert twice.status_code == 409
    heavier = await api.http.patch(f"{path}/{web['id']}", json={"weight": 20})
    assert (heavier.status_code, heavier.json()["data"]["weight"]) == (202, 20)
    assert api.db.one("SELECT prior_weight FROM lb_targets")["prior_weight"] == 10
    finish(api, heavier)
    leaving = await api.http.delete(f"{path}/{web['id']}")
    assert (leaving.status_code, leaving.json()["data"]["state"]) == (202, "draining")
    listed = (await api.http.get(path)).json()["data"]
    assert [(one["instance_id"], one["state"]) for one in listed] == [(web["id"], "draining")]
    assert (await api.http.get(f"/v1/lb/{front['id']}")).json()["data"]["targets"] == 1
    absent = await api.http.delete(f"{path}/{front['id']}")
    assert absent.status_code == 404
    absent = await api.http.delete(f"{path}/{front['instance_id']}")
    assert absent.status_code == 404 and front["instance_id"] not in absent.json()["error"]["message"]


async def test_target_without_a_way_is_refused(api: Api) -> None:
    front = await balancer(api)
    near = await running(api, "near")
    far = await running(api, "far", "two")
    published = await running(api, "published", "two", ports="20500:80")
    path = f"/v1/lb/{front['id']}/targets"
    refused = await api.http.post(path, json={"instance_id": far["id"], "port": 80})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unreachable_target")
    assert "publish" in refused.json()["error"]["message"]
    api.db.rows('UPDATE instances SET network = \'{"mode": "none", "allow": []}\' WHERE name = \'near\'')
    refused = await api.http.post(path, json={"instance_id": near["id"], "port": 80})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unreachable_target")
    api.db.rows("UPDATE instances SET network = DEFAULT WHERE name = 'near'")
    for instance in (near, published):
        assert (await api.http.post(path, json={"instance_id": instance["id"], "port": 80})).status_code == 202
    for stranger in (front["instance_id"], front["id"]):
        answer = await api.http.post(path, json={"instance_id": stranger, "port": 80})
        assert answer.status_code == 422
        assert answer.json()["error"]["details"]["fields"][0]["field"] == "instance_id"


def told(front: Json, web: Json, health: str, at: dt.datetime | None, generation: int = 1) -> Json:
    figures = {"sessions": 2, "requests": 50, "bytes_in": 100, "bytes_out": 200, "errors": 1}
    one = {"instance_id": web["id"], "generation": 1, "health": health, "check": "L4OK", **figures}
    who = {"id": front["instance_id"], "project_id": front["project_id"], "generation": generation}
    return {"at": at.isoformat() if at else None, "balancers": [{**who, **figures, "targets": [one]}]}


async def test_agents_tell_health_and_samples(api: Api) -> None:
    front, web = await balancer(api), await running(api)
    await target(api, front, web)
    now = dt.datetime.now(dt.UTC)

    async def tell(health: str, **more: Any) -> Json:
        body = told(front, web, health, now, **more)
        answer = await api.http.post("/v1/hosts/balancers", json=body, headers=AGENT | {"X-API-Key": ""})
        assert answer.status_code == 200, answer.text
        kept: Json = answer.json()["data"]
        return kept

    assert await tell("up") == {"changed": 1}
    assert await tell("up") == {"changed": 0}
    assert await tell("down", generation=2) == {"changed": 0}, "of another machine"
    assert await tell("down") == {"changed": 1}
    shown = (await api.http.get(f"/v1/lb/{front['id']}/targets")).json()["data"][0]
    assert (shown["health"], shown["check"]) == ("down", "L4OK")
    events = [row["type"] for row in api.db.rows("SELECT type FROM events WHERE type LIKE 'lb.target%%' ORDER BY id")]
    assert events == ["lb.target_up", "lb.target_down"]
    (sample,) = (await api.http.get(f"/v1/lb/{front['id']}/stats")).json()["data"]
    assert (sample["requests"], sample["requests_per_second"], sample["sessions"]) == (50, 5, 2)
    assert sample["targets"][0]["instance_id"] == web["id"]
    # What is too old goes with what comes.
    api.db.rows("UPDATE lb_samples SET at = now() - interval '4 hours'")
    await tell("up")
    assert len(api.db.rows("SELECT 1 FROM lb_samples")) == 1
