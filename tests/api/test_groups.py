"""Groups and deployments over the API: what is accepted, what it writes, what it refuses."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.group_schemas import Members, MembersPatch
from model.groups import REMEMBERED
from tests.api.conftest import Api
from tests.api.test_balancers import balancer, running, target
from tests.services import Database

GROUPS, DEPLOYMENTS = "/v1/autoscaling/groups", "/v1/containers/deployments"
BODY: dict[str, Any] = {"name": "web", "image": "cairn/base:latest", "ports": "80", "max_instances": 5}


async def make(api: Api, http: httpx.AsyncClient | None = None, **more: Any) -> dict[str, Any]:
    answer = await (http or api.http).post(GROUPS, json=BODY | more)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def at(made: dict[str, Any]) -> str:
    return f"{GROUPS}/{made['data']['id']}"


def settle(db: Database, made: dict[str, Any], outcome: str = "completed") -> None:
    """As its run would end."""
    db.rows("UPDATE scaling_groups SET status = 'active' WHERE id = %s", made["data"]["id"])
    open_ = "resource_id = %s AND state IN ('accepted', 'running')"
    ended = (outcome, made["data"]["id"])
    db.rows(f"UPDATE workflows SET state = %s, finished_at = now() WHERE {open_}", *ended)
    db.rows("UPDATE group_configurations SET rolled_out_at = now() WHERE group_id = %s", made["data"]["id"])


def runs(db: Database, made: dict[str, Any]) -> list[dict[str, Any]]:
    return db.rows("SELECT * FROM workflows WHERE resource_id = %s ORDER BY id", made["data"]["id"])


def test_whatever_members_are_made_from_can_be_changed() -> None:
    fixed = {"backend", "idle_stop_seconds"}
    assert set(MembersPatch.model_fields) == set(Members.model_fields) - fixed


async def test_group_is_accepted_with_its_run_its_configuration_and_its_activity(api: Api) -> None:
    made = await make(api, env={"MODE": "test"}, desired_count=2, min_instances=1, labels={"tier": "web"})
    group = made["data"]
    wanted = {"status": "pending", "desired_count": 2, "min_instances": 1, "max_instances": 5, "current_count": 0}
    wanted |= {"revision": 1, "paused": False, "env": {"MODE": "test"}, "on_host_lost": "replace", "max_surge": "25%"}
    wanted |= {"workflow_id": made["meta"]["workflow_id"], "instance_type": "basic-1", "load_balancer_id": None}
    assert {name: group[name] for name in wanted} == wanted
    (run,) = runs(api.db, made)
    assert (run["kind"], run["resource_type"]) == ("ScaleGroup", "group")
    template = api.db.one("SELECT template FROM group_configurations")["template"]
    assert (template["vcpus"], template["memory_mb"], template["env"]) == (1, 512, {"MODE": "test"})
    shown = await api.http.get(at(made))
    assert shown.json()["data"] == group
    assert shown.headers["etag"] == '"1"'
    (activity,) = (await api.http.get(f"{at(made)}/activities")).json()["data"]
    assert (activity["action"], activity["cause"], activity["desired_after"]) == ("create", "key:admin", 2)
    assert [row["id"] for row in (await api.http.get(GROUPS)).json()["data"]] == [group["id"]]
    assert (await api.http.get(DEPLOYMENTS)).json()["data"] == []
    assert (await api.http.get(f"{DEPLOYMENTS}/{group['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_instances": 0}, "max_instances"),
        ({"max_instances": 2000}, "max_instances"),
        ({"desired_count": 6}, "desired_count"),
        ({"min_instances": 6}, "min_instances"),
        ({"ports": "8080:80"}, "ports"),
        ({"max_instances": 1, "ports": "8080:80", "max_surge": 1}, "max_surge"),
        ({"max_surge": 0, "max_unavailable": "0%"}, "max_surge"),
        ({"max_surge": "101%"}, "max_surge"),
        ({"idle_stop_seconds": 60}, "idle_stop_seconds"),
        ({"name": "w" * 60}, "name"),
        ({"image": "no such/Image"}, "image"),
        ({"instance_type": "none"}, "instance_type"),
        ({"env": {"A": {"secret": "none"}}}, "env"),
        ({"load_balancer_id": "0199b3f0-0000-7000-8000-000000000001"}, "load_balancer_id"),
    ],
)
async def test_what_cannot_be_is_refused_and_writes_nothing(shared_api: Api, body: dict[str, Any], field: str) -> None:
    answer = await shared_api.http.post(GROUPS, json=BODY | body)
    assert answer.status_code == 422, answer.text
    assert field in answer.text
    assert shared_api.db.rows("SELECT 1 FROM scaling_groups") == []
    assert shared_api.db.rows("SELECT 1 FROM group_configurations") == []


async def test_one_member_may_have_a_host_port_of_its_own(api: Api) -> None:
    made = await make(api, max_instances=1, ports="20001:80")
    assert (made["data"]["max_surge"], made["data"]["max_unavailable"]) == (0, 1)


async def test_same_key_is_the_same_group_and_names_are_taken_once(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await api.http.post(GROUPS, json=BODY, headers=headers)
    again = await api.http.post(GROUPS, json=BODY, headers=headers)
    assert again.json()["data"]["id"] == first.json()["data"]["id"]
    body = {"name": "web", "image": "cairn/base:latest"}
    assert (await api.http.post(DEPLOYMENTS, json=body)).json()["error"]["code"] == "name_taken"


async def test_newer_wish_calls_off_the_one_under_way(api: Api) -> None:
    made = await make(api, desired_count=2)
    api.db.rows("UPDATE workflows SET state = 'running', started_at = now()")
    second = await api.http.put(f"{at(made)}/scale", json={"desired_count": 4})
    assert second.status_code == 202, second.text
    assert (second.json()["data"]["desired_count"], second.json()["data"]["status"]) == (4, "scaling")
    third = await api.http.put(f"{at(made)}/scale", json={"desired_count": 1})
    first, called_off, last = runs(api.db, made)
    assert first["cancel_requested_at"] is not None
    assert (called_off["state"], last["id"]) == (
        "cancelled",
        api.db.one("SELECT workflow_id FROM scaling_groups")["workflow_id"],
    )
    assert str(last["id"]) == third.json()["meta"]["workflow_id"]
    states = api.db.rows("SELECT state, error FROM group_activities ORDER BY id")
    assert [row["state"] for row in states] == ["cancelled", "cancelled", "running"]
    assert states[0]["error"]["code"] == "superseded"


async def test_number_that_is_there_or_on_its_way_disturbs_no_run(api: Api) -> None:
    made = await make(api, desired_count=2)

    async def scaled_to(desired: int) -> int:
        return (await api.http.put(f"{at(made)}/scale", json={"desired_count": desired})).status_code

    assert await scaled_to(2) == 200
    assert [run["id"] for run in runs(api.db, made)] == [UUID(made["meta"]["workflow_id"])]
    settle(api.db, made)
    assert await scaled_to(2) == 202, "none is there"
    settle(api.db, made)
    for name in ("a", "b"):
        member = await api.launch(name)
        api.put(member["data"], "running")
    api.db.rows("UPDATE instances SET group_id = %s, group_revision = 1", made["data"]["id"])
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE finished_at IS NULL")
    assert (await scaled_to(2), len(runs(api.db, made))) == (200, 2)
    api.db.rows("UPDATE scaling_groups SET status = 'error', backoff_until = now() + interval '1 min', failures = 3")
    assert await scaled_to(2) == 202, "it is tried at once"
    assert await scaled_to(1) == 202


@pytest.mark.parametrize("desired", [0, 6])
async def test_number_that_is_not_within_its_bounds_is_refused(api: Api, desired: int) -> None:
    made = await make(api, min_instances=1)
    answer = await api.http.put(f"{at(made)}/scale", json={"desired_count": desired})
    assert (answer.status_code, answer.json()["error"]["details"]["fields"][0]["field"]) == (422, "desired_count")


async def test_change_of_what_members_are_made_from_is_another_configuration(api: Api) -> None:
    made = await make(api, env={"A": "1"}, user_data="#!/bin/sh\ntrue\n", health_check={"type": "tcp", "port": 80})
    settle(api.db, made)
    answer = await api.http.patch(at(made), json={"env": {"B": "2"}, "health_check": None})
    assert answer.status_code == 202, answer.text
    group = answer.json()["data"]
    assert (group["status"], group["revision"], group["env"], group["health_check"]) == (
        "updating",
        2,
        {"B": "2"},
        None,
    )
    assert "user_data" not in group
    assert group["user_data_sha256"] == made["data"]["user_data_sha256"] is not None
    assert (await api.http.get(f"{at(made)}/activities")).json()["data"][0]["revision_after"] == 2
    listed = (await api.http.get(f"{at(made)}/configurations")).json()["data"]
    shown = [(row["revision"], row["current"], row["env"], row["rolled_out_at"] is None) for row in listed]
    assert shown == [(2, True, {"B": "2"}, True), (1, False, {"A": "1"}, False)]
    assert not any("user_data" in row for row in listed)
    same = await api.http.patch(at(made), json={"env": {"B": "2"}})
    assert (same.status_code, same.json()["data"]["revision"], same.json()["data"]["version"]) == (
        200,
        2,
        group["version"],
    )
    rollout = await api.http.patch(at(made), json={"max_surge": 2, "max_instances": 7, "name": "shop"})
    data = rollout.json()["data"]
    assert (rollout.status_code, data["max_surge"], data["max_instances"], data["name"]) == (200, 2, 7, "shop")
    bad = await api.http.patch(at(made), json={"max_surge": 0, "max_unavailable": 0})
    assert bad.status_code == 422
    unknown = await api.http.patch(at(made), json={"image": None})
    assert (unknown.status_code, unknown.json()["error"]["details"]["fields"][0]["field"]) == (422, "image")


async def test_roll_back_is_to_the_configuration_that_all_members_had(api: Api) -> None:
    made = await make(api)
    none = await api.http.post(f"{at(made)}/rollback")
    assert none.json()["error"]["code"] == "invalid_state"
    settle(api.db, made)
    await api.http.patch(at(made), json={"env": {"B": "2"}})
    back = await api.http.post(f"{at(made)}/rollback")
    assert (back.status_code, back.json()["data"]["revision"], back.json()["data"]["env"]) == (202, 1, {})
    assert (await api.http.post(f"{at(made)}/rollback", json={"revision": 9})).status_code == 404
    forth = await api.http.post(f"{at(made)}/rollback", json={"revision": 2})
    assert forth.json()["data"]["revision"] == 2


async def test_roll_back_to_what_the_group_could_not_have_by_now_is_refused(api: Api) -> None:
    """For lack of a port for its balancer's requests, and for a host port that only one member could have."""
    front = await balancer(api)
    made = await make(api, ports=[])
    settle(api.db, made)
    behind = await api.http.patch(at(made), json={"ports": "80", "load_balancer_id": front["id"]})
    assert behind.status_code == 202, behind.text
    settle(api.db, made)
    for body in ({}, {"revision": 1}):
        answer = await api.http.post(f"{at(made)}/rollback", json=body)
        assert answer.status_code == 422, answer.text
        assert "ports: a load balancer" in answer.text
    one = await make(api, name="one", max_instances=1, ports="20001:80")
    settle(api.db, one)
    await api.http.patch(at(one), json={"ports": "80", "max_surge": 1})
    settle(api.db, one)
    await api.http.patch(at(one), json={"max_surge": 0, "max_unavailable": 1, "max_instances": 5})
    answer = await api.http.post(f"{at(one)}/rollback", json={"revision": 1})
    assert answer.status_code == 422, answer.text
    assert "at most one member" in answer.text
    assert len(runs(api.db, one)) == 2, "nothing has begun"


async def test_paused_and_resumed(api: Api) -> None:
    made = await make(api)
    settle(api.db, made)
    held = await api.http.post(f"{at(made)}/pause")
    assert (held.status_code, held.json()["data"]["paused"]) == (200, True)
    again = await api.http.post(f"{at(made)}/pause")
    assert again.json()["data"]["version"] == held.json()["data"]["version"]
    on = await api.http.post(f"{at(made)}/resume")
    assert (on.status_code, on.json()["data"]["paused"], on.json()["data"]["status"]) == (202, False, "updating")


async def test_deleted_once_and_readable_for_a_while(api: Api) -> None:
    made = await make(api)
    first = await api.http.delete(at(made))
    again = await api.http.delete(at(made))
    assert (first.status_code, first.json()["data"]["status"]) == (202, "deleting")
    assert again.json()["meta"]["workflow_id"] == first.json()["meta"]["workflow_id"]
    policy = {"name": "queue", "metric_type": "queue_length", "target_value": 10}
    for refused in (
        await api.http.put(f"{at(made)}/scale", json={"desired_count": 1}),
        await api.http.post(f"{at(made)}/policies", json=policy),
        await api.http.post(f"{at(made)}/metrics", json={"metric_type": "queue_length", "value": 1}),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")
    api.db.rows("UPDATE scaling_groups SET status = 'deleted', deleted_at = now()")
    assert (await api.http.get(at(made))).json()["data"]["status"] == "deleted"
    assert (await api.http.delete(at(made))).status_code == 200
    assert (await api.http.get(GROUPS)).json()["data"] == []
    await make(api)  # its name is free


async def test_version_that_is_not_the_one_named_changes_nothing(api: Api) -> None:
    made = await make(api)
    for method, path, body in (
        ("PUT", "/scale", {"desired_count": 1}),
        ("PATCH", "", {"max_surge": 3}),
        ("POST", "/pause", None),
        ("DELETE", "", None),
    ):
        answer = await api.http.request(method, at(made) + path, json=body, headers={"If-Match": '"7"'})
        assert (method, answer.status_code) == (method, 412)


async def test_project_may_have_so_many_groups(api: Api) -> None:
    api.app.state.settings = api.app.state.settings.model_copy(update={"project_groups": 1})
    await make(api)
    refused = await api.http.post(GROUPS, json=BODY | {"name": "two"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert len(api.db.rows("SELECT 1 FROM scaling_groups")) == 1


async def test_secret_and_image_of_a_group_are_in_use(api: Api) -> None:
    assert (await api.http.post("/v1/secrets", json={"name": "token", "value": "x"})).status_code == 201
    image = (await api.http.post("/v1/images", json={"name": "own", "source": {"type": "upload"}})).json()["data"]
    api.db.rows("UPDATE images SET status = 'available', reference = 'own:1', digest = 'sha256:1'")
    made = await make(api, image="own", env={"TOKEN": {"secret": "token", "as": "env"}})
    assert made["data"]["env"]["TOKEN"] == {"secret": "token", "version": None, "as": "env"}
    for path in ("/v1/secrets/token", f"/v1/images/{image['id']}"):
        refused = await api.http.delete(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
        assert "web" in refused.json()["error"]["message"]


async def test_secret_that_a_group_may_go_back_to_is_in_use(api: Api) -> None:
    for name in ("old", "new", "pinned"):
        assert (await api.http.post("/v1/secrets", json={"name": name, "value": "x"})).status_code == 201
    for _ in range(2):
        assert (await api.http.post("/v1/secrets/pinned/versions", json={"value": "y"})).status_code == 201

    async def is_used(path: str) -> bool:
        return (await api.http.delete(f"/v1/secrets/{path}")).json()["error"]["code"] == "in_use"

    made = await make(api, env={"A": {"secret": "old"}, "B": {"secret": "pinned", "version": 1}})
    settle(api.db, made)
    assert (await api.http.patch(at(made), json={"env": {"A": {"secret": "new"}}})).status_code == 202
    assert [await is_used(path) for path in ("old", "new", "pinned/versions/1")] == [True] * 3
    # That of the first goes on being counted, as all members had it last.
    for number in range(REMEMBERED + 1):
        assert (await api.http.patch(at(made), json={"env": {"N": str(number)}})).status_code == 202
    assert [await is_used(path) for path in ("old", "pinned/versions/1")] == [True] * 2
    assert (await api.http.delete("/v1/secrets/new")).status_code == 204
    assert (await api.http.post(f"{at(made)}/rollback", json={"revision": 2})).status_code == 404
    back = await api.http.post(f"{at(made)}/rollback")
    assert back.json()["data"]["env"]["A"]["secret"] == "old"
    # Another has been had by all since.
    forth = await api.http.post(f"{at(made)}/rollback", json={"revision": 2 + REMEMBERED})
    assert forth.status_code == 202
    api.db.rows("UPDATE group_configurations SET rolled_out_at = now() WHERE revision > %s", REMEMBERED)
    for path in ("old", "pinned/versions/1"):
        assert (await api.http.delete(f"/v1/secrets/{path}")).status_code == 204


async def test_who_may_only_scale_changes_nothing_else(api: Api) -> None:
    made = await make(api)
    async with api.as_(api.db.key(api.db.project_id, "op", "operator")) as operator:
        bounds = {"desired_count": 1, "max_instances": 9}
        assert (await operator.put(f"{at(made)}/scale", json=bounds)).status_code == 403
        assert (await operator.put(f"{at(made)}/scale", json={"desired_count": 1})).status_code == 202
        assert (await operator.patch(at(made), json={"env": {"A": "1"}})).status_code == 403
        assert (await operator.delete(at(made))).status_code == 403


@pytest.mark.parametrize("path", [GROUPS, DEPLOYMENTS])
async def test_found_by_a_label_of_their_members(api: Api, path: str) -> None:
    body = {"name": "web", "image": "cairn/base:latest", "labels": {"tier": "web"}}
    answer = await api.http.post(path, json=body | ({"max_instances": 1} if path == GROUPS else {}))
    assert answer.status_code == 202, answer.text
    for label, found in (("tier=web", 1), ("tier=db", 0)):
        assert len((await api.http.get(path, params={"label": label})).json()["data"]) == found


async def test_policies_are_made_listed_told_and_deleted(api: Api) -> None:
    made = await make(api)
    body = {"name": "queue", "metric_type": "queue_length", "target_value": 10, "cooldown_sec": 5}
    answer = await api.http.post(f"{at(made)}/policies", json=body)
    assert answer.status_code == 201, answer.text
    policy = answer.json()["data"]
    assert (policy["target_value"], policy["scale_out_step"], policy["cooldown_sec"]) == (10, None, 5)
    again = await api.http.post(f"{at(made)}/policies", json=body)
    assert again.json()["error"]["code"] == "name_taken"
    for wrong in (
        *({"scale_out_step": 1}, {"target_value": 0}, {"metric_type": "A"}, {"cooldown_sec": -1}),
        *({"target_value": 1e-300}, {"target_value": 9e-7}),
    ):
        assert (await api.http.post(f"{at(made)}/policies", json=body | wrong)).status_code == 422, wrong
    pushed = {"metric_type": "queue_length", "value": 17}
    assert (await api.http.post(f"{at(made)}/metrics", json=pushed)).json()["data"] == {"policies": 1}
    assert (await api.http.post(f"{at(made)}/metrics", json=pushed | {"metric_type": "cpu"})).status_code == 422
    none = await api.http.post(f"{at(made)}/metrics", json=pushed | {"metric_type": "other"})
    assert none.json()["data"] == {"policies": 0}
    (shown,) = (await api.http.get(f"{at(made)}/policies")).json()["data"]
    assert (shown["id"], shown["pushed_value"]) == (policy["id"], 17)
    async with api.as_(api.db.project("stranger")) as stranger:
        assert (await stranger.delete(f"/v1/autoscaling/policies/{policy['id']}")).status_code == 404
    assert (await api.http.delete(f"/v1/autoscaling/policies/{policy['id']}")).status_code == 204
    assert (await api.http.delete(f"/v1/autoscaling/policies/{policy['id']}")).status_code == 404


async def test_policy_on_requests_needs_a_load_balancer_that_counts_them(api: Api) -> None:
    made = await make(api)
    body = {"name": "busy", "metric_type": "requests", "target_value": 10}
    answer = await api.http.post(f"{at(made)}/policies", json=body)
    assert (answer.status_code, answer.json()["error"]["details"]["fields"][0]["field"]) == (422, "metric_type")
    front = await balancer(api)
    assert (await api.http.patch(at(made), json={"load_balancer_id": front["id"]})).status_code == 200
    policy = await api.http.post(f"{at(made)}/policies", json=body)
    assert policy.status_code == 201, policy.text
    without = await api.http.patch(at(made), json={"load_balancer_id": None})
    assert (without.status_code, "busy" in without.json()["error"]["message"]) == (422, True)
    assert (await api.http.delete(f"/v1/autoscaling/policies/{policy.json()['data']['id']}")).status_code == 204
    assert (await api.http.patch(at(made), json={"load_balancer_id": None})).status_code == 200


async def test_run_that_has_not_begun_is_called_off_at_once(api: Api) -> None:
    made = await make(api, desired_count=3)
    answer = await api.http.post(f"/v1/workflows/{made['meta']['workflow_id']}/cancel")
    assert (answer.status_code, answer.json()["data"]["state"]) == (202, "cancelled")
    group = (await api.http.get(at(made))).json()["data"]
    assert (group["status"], group["desired_count"]) == ("active", 0)


async def test_deployment_is_a_group_by_other_names(api: Api) -> None:
    made = await api.http.post(DEPLOYMENTS, json={"name": "shop", "image": "cairn/base:latest", "replicas": 3})
    assert made.status_code == 202, made.text
    data = made.json()["data"]
    assert (data["replicas"], data["ready_replicas"], data["updated_replicas"]) == (3, 0, 0)
    assert "desired_count" not in data
    path = f"{DEPLOYMENTS}/{data['id']}"
    scaled = await api.http.put(f"{path}/scale", json={"replicas": 1})
    assert (scaled.status_code, scaled.json()["data"]["replicas"]) == (202, 1)
    patched = await api.http.patch(path, json={"image": "cairn/base:2", "replicas": 4})
    assert (patched.json()["data"]["revision"], patched.json()["data"]["replicas"]) == (2, 4)
    assert (await api.http.get(f"{GROUPS}/{data['id']}")).status_code == 404
    events = [
        row["type"] for row in api.db.rows("SELECT type FROM events WHERE resource_type = 'deployment' ORDER BY id")
    ]
    assert [name for name in events if name.startswith("deployment")] == [
        *("deployment.pending", "deployment.scaling", "deployment.updating"),
    ]
    assert (await api.http.delete(path)).status_code == 202


async def test_group_names_a_load_balancer_of_its_project_which_stays_for_that(api: Api) -> None:
    front = await balancer(api)
    made = await make(api, load_balancer_id=front["id"])
    assert made["data"]["load_balancer_id"] == front["id"]
    refused = await api.http.delete(f"/v1/lb/{front['id']}")
    assert (refused.status_code, refused.json()["error"]["details"]["groups"]) == (409, ["web"])
    portless = await api.http.post(
        GROUPS, json=BODY | {"name": "b", "ports": "53/udp", "load_balancer_id": front["id"]}
    )
    assert portless.json()["error"]["details"]["fields"][0]["field"] == "ports"
    settle(api.db, made)
    other = await balancer(api, "other")
    changed = await api.http.patch(at(made), json={"load_balancer_id": other["id"]})
    assert (changed.status_code, changed.json()["data"]["load_balancer_id"]) == (200, other["id"])
    assert (await api.http.delete(f"/v1/lb/{front['id']}")).status_code == 202
    none = await api.http.patch(at(made), json={"load_balancer_id": None})
    assert (none.status_code, none.json()["data"]["load_balancer_id"]) == (200, None)
    api.db.rows("UPDATE load_balancers SET status = 'deleted', deleted_at = now()")
    gone = await api.http.patch(at(made), json={"load_balancer_id": other["id"]})
    assert gone.json()["error"]["details"]["fields"][0]["field"] == "load_balancer_id"


@pytest.mark.parametrize("other", [True, False])
async def test_who_takes_a_balancer_off_a_group_needs_its_permission(api: Api, other: bool) -> None:
    front, back = await balancer(api), await balancer(api, "back")
    made = await make(api, load_balancer_id=front["id"])
    settle(api.db, made)
    changed = {"load_balancer_id": back["id"] if other else None}
    key = api.db.key(api.db.project_id, "ed", "developer", scopes=["groups:read", "groups:write", "lb:read"])
    async with api.as_(key) as editor:
        refused = await editor.patch(at(made), json=changed)
        assert (refused.status_code, refused.json()["error"]["details"]["permission"]) == (403, "lb:update")
        assert (await editor.patch(at(made), json={"name": "shop"})).status_code == 200, (
            "the balancer keeps its members"
        )
    assert (await api.http.patch(at(made), json=changed)).status_code == 200


async def test_member_of_a_group_is_taken_out_of_its_balancer_by_the_group_alone(api: Api) -> None:
    front, web = await balancer(api), await running(api)
    await target(api, front, web)
    made = await make(api, name="shop", load_balancer_id=front["id"])
    settle(api.db, made)
    member = "UPDATE instances SET group_id = %s, group_revision = 1 WHERE id = %s"
    api.db.rows(member, made["data"]["id"], web["id"])
    path = f"/v1/lb/{front['id']}/targets/{web['id']}"
    refused = await api.http.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "managed")
    assert refused.json()["error"]["details"]["managed_by"] == {
        **{"type": "group", "id": made["data"]["id"], "name": "shop"},
    }
    assert (await api.http.patch(at(made), json={"load_balancer_id": None})).status_code == 200
    assert (await api.http.delete(path)).status_code == 202, "nobody puts it back"


async def test_script_of_members_is_sealed_once_and_kept_by_changes_that_do_not_name_it(api: Api) -> None:
    script = "#!/bin/sh\necho hidden-word\n"
    key = {"Idempotency-Key": "script-1"}
    body = BODY | {"user_data": script}
    made = (await api.http.post(GROUPS, json=body, headers=key)).json()
    again = (await api.http.post(GROUPS, json=body, headers=key)).json()
    assert made["data"]["id"] == again["data"]["id"]
    shown = made["data"]["user_data_sha256"]
    assert shown == hashlib.sha256(script.encode()).hexdigest()
    settle(api.db, made)
    assert (await api.http.patch(at(made), json={"image": "cairn/base:2"})).status_code == 202
    settle(api.db, made)
    same = await api.http.patch(at(made), json={"user_data": script})
    assert (same.status_code, same.json()["data"]["revision"]) == (200, 2)
    configurations = api.db.rows("SELECT asked, template FROM group_configurations ORDER BY revision")
    (sealed,) = api.db.rows("SELECT id, group_id FROM sealed_values")
    assert [row["template"]["user_data_id"] for row in configurations] == [str(sealed["id"])] * 2
    assert [row["template"]["user_data_sha256"] for row in configurations] == [shown] * 2
    for table in ("group_configurations", "idempotency_keys", "workflows", "events", "audit"):
        assert "hidden-word" not in str(api.db.rows(f"SELECT * FROM {table}")), table
    assert (await api.http.patch(at(made), json={"user_data": script + "true\n"})).status_code == 202
    settle(api.db, made)
    without = await api.http.patch(at(made), json={"user_data": None})
    assert (without.status_code, without.json()["data"]["user_data_sha256"]) == (202, None)
    assert len(api.db.rows("SELECT id FROM sealed_values")) == 2


async def test_secrets_that_members_are_given_are_in_use(api: Api) -> None:
    for name in ("login", "token"):
        await api.http.post("/v1/secrets", json={"name": name, "value": "user:word"})
    made = await make(api, registry_secret="login", env={"TOKEN": {"secret": "token"}})
    assert (made["data"]["registry_secret"], made["data"]["env"]["TOKEN"]["secret"]) == ("login", "token")
    for name in ("login", "token"):
        refused = await api.http.delete(f"/v1/secrets/{name}")
        assert (refused.status_code, refused.json()["error"]["details"]["groups"]) == (409, ["web"])
