"""Restart, pause, resume, resize, patch: the contract of changes to an instance that there is."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from model.instances import Status
from tests.api.conftest import Api

VERBS = {
    "restart": ({"running"}, "restarting"),
    "pause": ({"running"}, "pausing"),
    "resume": ({"paused"}, "resuming"),
    "stop": ({"running", "paused"}, "stopping"),
    "resize": ({"running", "stopped", "paused"}, "resizing"),
}
BODIES = {"resize": {"instance_type": "standard-1"}}


async def placed(api: Api, name: str = "web", status: str = "running", **more: Any) -> dict[str, Any]:
    """An instance on host ``one``, counted as workers would have."""
    instance: dict[str, Any] = (await api.launch(name, **more))["data"]
    api.put(instance, status)
    api.db.rows("UPDATE instances SET host_id = %s WHERE id = %s", api.db.hosts["one"], instance["id"])
    api.db.rows(
        "UPDATE hosts SET allocated_vcpus = allocated_vcpus + %s, allocated_memory_mb = allocated_memory_mb + %s"
        " WHERE name = 'one'",
        *(instance["vcpus"], instance["memory_mb"]),
    )
    api.db.rows(
        "UPDATE quotas SET instances_used = instances_used + 1, instances_reserved = instances_reserved - 1,"
        " vcpus_used = vcpus_used + %s, vcpus_reserved = vcpus_reserved - %s,"
        " memory_mb_used = memory_mb_used + %s, memory_mb_reserved = memory_mb_reserved - %s",
        *(instance["vcpus"], instance["vcpus"], instance["memory_mb"], instance["memory_mb"]),
    )
    return instance


async def act(api: Api, instance: dict[str, Any], verb: str, **more: Any) -> httpx.Response:
    return await api.http.post(f"/v1/instances/{instance['id']}/{verb}", json=BODIES.get(verb), **more)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("verb", VERBS)
async def test_verb_is_accepted_where_it_is_allowed_and_refused_elsewhere(api: Api, verb: str) -> None:
    allowed, during = VERBS[verb]
    for status in Status:
        instance = (await api.launch(status))["data"]
        api.put(instance, status)
        before = api.db.counts()
        answer = await act(api, instance, verb)
        if status in allowed:
            assert answer.status_code == 202, answer.text
            assert answer.json()["data"]["status"] == during
            assert answer.headers["location"] == f"/v1/workflows/{answer.json()['meta']['workflow_id']}"
            row = api.db.one("SELECT * FROM workflows WHERE id = %s", UUID(answer.json()["meta"]["workflow_id"]))
            assert (row["kind"], row["prior_status"]) == (f"{verb.capitalize()}Instance", status)
        else:
            assert refusal(answer) == (409, "invalid_state"), status
            assert answer.json()["error"]["details"]["state"] == status
            assert api.db.counts() == before


@pytest.mark.parametrize("verb", VERBS)
async def test_verb_with_a_key_happens_once_and_honours_if_match(api: Api, verb: str) -> None:
    instance = await placed(api, status=next(iter(VERBS[verb][0])))
    stale = await act(api, instance, verb, headers={"If-Match": '"99"'})
    assert refusal(stale) == (412, "precondition_failed")
    answers = await asyncio.gather(*(act(api, instance, verb, headers={"Idempotency-Key": "k"}) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["meta"]["workflow_id"] for answer in answers}) == 1
    assert api.db.quota()["vcpus_reserved"] == (1 if verb == "resize" else 0)


async def test_resize_holds_the_growth_in_the_quota(api: Api) -> None:
    instance = await placed(api)
    answer = await act(api, instance, "resize")
    assert answer.status_code == 202, answer.text
    data = answer.json()["data"]
    assert (data["status"], data["instance_type"], data["vcpus"]) == ("resizing", "basic-1", 1), "not yet"
    quota = api.db.quota()
    assert (quota["vcpus_used"], quota["vcpus_reserved"]) == (1, 1)
    assert (quota["memory_mb_used"], quota["memory_mb_reserved"]) == (512, 1536)
    assert (quota["instances_used"], quota["instances_reserved"]) == (1, 0)
    row = api.db.one("SELECT next_type, next_vcpus, next_memory_mb, next_held FROM instances")
    assert tuple(row.values()) == ("standard-1", 2, 2048, False)
    order = api.db.one("SELECT \"order\" FROM workflows WHERE kind = 'ResizeInstance'")["order"]
    assert order["instance_type"] == "standard-1"
    assert "recreate" not in order, "what is as always is not written: the release before may not know of it"


async def test_resize_that_is_called_off_before_it_began_gives_the_quota_back(api: Api) -> None:
    instance = await placed(api)
    accepted = await act(api, instance, "resize")
    cancelled = await api.http.post(f"/v1/workflows/{accepted.json()['meta']['workflow_id']}/cancel")
    assert cancelled.status_code == 202, cancelled.text
    quota = api.db.quota()
    assert (quota["vcpus_reserved"], quota["memory_mb_reserved"], quota["vcpus_used"]) == (0, 0, 1)
    now = (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]
    assert (now["status"], now["instance_type"]) == ("running", "basic-1")
    assert api.db.one("SELECT next_type FROM instances")["next_type"] is None


async def test_resize_beyond_the_quota_is_429_and_writes_nothing(api: Api) -> None:
    instance = await placed(api)
    api.db.rows("UPDATE quotas SET memory_mb_limit = 2047")
    before = api.db.counts()
    answer = await act(api, instance, "resize")
    assert refusal(answer) == (429, "quota_exceeded")
    assert int(answer.headers["retry-after"]) > 0
    assert api.db.counts() == before
    assert (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]["status"] == "running"
    api.db.rows("UPDATE quotas SET memory_mb_limit = 2048, instances_limit = 0")  # it is no further instance
    assert (await act(api, instance, "resize")).status_code == 202


async def test_quota_lets_exactly_as_many_grow(api: Api) -> None:
    instances = [await placed(api, f"web-{n}") for n in range(8)]
    api.db.rows("UPDATE quotas SET vcpus_limit = 11")
    answers = await asyncio.gather(*(act(api, instance, "resize") for instance in instances))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 5
    assert api.db.quota()["vcpus_reserved"] == 3


async def test_smaller_asks_for_nothing_also_beyond_the_limit(api: Api) -> None:
    instance = await placed(api, instance_type="standard-2")
    api.db.rows("UPDATE quotas SET vcpus_limit = 0, memory_mb_limit = 0, instances_limit = 0")
    api.db.rows("UPDATE hosts SET memory_mb = 1, cpus = 0.1")
    path = f"/v1/instances/{instance['id']}/resize"
    assert (await api.http.post(path, json={"instance_type": "basic-1"})).status_code == 202
    assert api.db.quota()["vcpus_reserved"] == 0


async def test_resize_without_room_on_its_host_is_409(api: Api) -> None:
    instance = await placed(api)
    api.db.rows("UPDATE hosts SET memory_mb = 2047 WHERE name = 'one'")
    answer = await act(api, instance, "resize")
    assert refusal(answer) == (409, "no_capacity")
    assert answer.json()["error"]["details"]["host"] == "one"
    api.db.rows("UPDATE hosts SET memory_mb = 2048 WHERE name = 'one'")
    assert (await act(api, instance, "resize")).status_code == 202


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "instance_type"),
        ({"instance_type": "huge"}, "instance_type"),
        ({"instance_type": 3}, "instance_type"),
        ({"instance_type": "a\x00"}, "instance_type"),
        ({"instance_type": "basic-2", "recreate": "yes"}, "recreate"),
        ({"instance_type": "basic-2", "disk": 3}, "disk"),
    ],
)
async def test_resize_to_what_there_is_not(api: Api, body: dict[str, Any], field: str) -> None:
    instance = await placed(api)
    answer = await api.http.post(f"/v1/instances/{instance['id']}/resize", json=body)
    assert refusal(answer) == (422, "validation_failed")
    assert answer.json()["error"]["details"]["fields"][0]["field"] == field
    assert api.db.counts()["workflows"] == 1


async def patched(api: Api, instance: dict[str, Any], body: Any, **headers: str) -> httpx.Response:
    return await api.http.patch(f"/v1/instances/{instance['id']}", json=body, headers=headers)


async def test_patch_merges_labels_and_metadata_and_replaces_tags(api: Api) -> None:
    instance = (await api.launch(labels={"a": "1", "b": "2"}, metadata={"note": "x"}, tags=["blue", "old", "blue"]))[
        "data"
    ]
    assert instance["tags"] == ["blue", "old"]
    body = {"labels": {"a": None, "c": "3", "never": None}, "metadata": {"more": "y"}, "tags": ["green"]}
    answer = await patched(api, instance, body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert (data["labels"], data["tags"]) == ({"b": "2", "c": "3"}, ["green"])
    assert data["metadata"] == {"note": "x", "more": "y"}
    assert (data["name"], data["version"], answer.headers["etag"]) == ("web", 2, '"2"')
    assert "workflow_id" not in answer.json()["meta"]
    event = api.db.one("SELECT * FROM events WHERE type = 'instance.updated'")
    assert (str(event["resource_id"]), event["workflow_id"]) == (instance["id"], None)
    assert event["data"] == {"name": "web", "changed": ["labels", "metadata", "tags"]}
    emptied = (await patched(api, instance, {"labels": None, "metadata": None, "tags": None})).json()["data"]
    assert (emptied["labels"], emptied["metadata"], emptied["tags"]) == ({}, {}, [])


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"name": "web"}, {"labels": {}}, {"labels": {"a": "1", "x": None}}),
        {"ttl_seconds": None, "idle_stop_seconds": None},
    ],
)
async def test_patch_that_changes_nothing_is_no_new_version_and_no_event(api: Api, body: Any) -> None:
    instance = (await api.launch(labels={"a": "1"}))["data"]
    answer = await patched(api, instance, body)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
    assert api.db.counts()["events"] == 1


async def test_patch_of_how_long_it_lives(api: Api) -> None:
    instance = (await api.launch())["data"]
    data = (await patched(api, instance, {"ttl_seconds": 600, "idle_stop_seconds": 60})).json()["data"]
    assert (data["ttl_seconds"], data["idle_stop_seconds"]) == (600, 60)
    assert data["expires_at"] is not None and data["active_at"] is not None
    event = api.db.one("SELECT data FROM events WHERE type = 'instance.updated'")["data"]
    assert event["changed"] == ["idle_stop_seconds", "ttl_seconds"]
    data = (await patched(api, instance, {"ttl_seconds": None, "idle_stop_seconds": None})).json()["data"]
    shown = [data[name] for name in ("ttl_seconds", "expires_at", "idle_stop_seconds", "active_at")]
    assert shown == [None] * 4


async def test_what_is_being_deleted_gets_no_longer_to_live(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    delete = (await api.http.delete(f"/v1/instances/{instance['id']}")).json()["meta"]["workflow_id"]
    for body in ({"ttl_seconds": 600}, {"ttl_seconds": None}, {"idle_stop_seconds": 60, "tags": ["x"]}):
        answer = await patched(api, instance, body)
        assert refusal(answer) == (409, "invalid_state")
        assert answer.json()["error"]["details"] == {"state": "deleting", "workflow_id": delete}
    assert (await patched(api, instance, {"tags": ["x"]})).status_code == 200


async def test_patch_of_the_name(api: Api) -> None:
    one, two = [(await api.launch(name))["data"] for name in ("one", "two")]
    assert refusal(await patched(api, two, {"name": "one", "tags": ["x"]})) == (409, "name_taken")
    assert (await api.http.get(f"/v1/instances/{two['id']}")).json()["data"]["tags"] == []
    assert (await patched(api, two, {"name": "three"})).json()["data"]["name"] == "three"
    told = api.db.one("SELECT data FROM events WHERE type = 'instance.updated'")["data"]
    assert told == {"name": "three", "from": "two", "changed": ["name"]}
    api.put(one, "deleted")
    assert (await patched(api, two, {"name": "one"})).status_code == 200, "names of deleted ones are free"
    others = [(await api.launch(f"n-{n}"))["data"] for n in range(8)]
    answers = await asyncio.gather(*(patched(api, other, {"name": "wanted"}) for other in others))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


async def test_patch_honours_if_match_also_of_two_at_once(api: Api) -> None:
    instance = (await api.launch())["data"]
    assert refusal(await patched(api, instance, {"tags": ["x"]}, **{"If-Match": '"2"'})) == (412, "precondition_failed")
    answers = await asyncio.gather(
        *(patched(api, instance, {"labels": {"n": str(n)}}, **{"If-Match": '"1"'}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


async def test_patches_of_different_labels_at_once_lose_none(api: Api) -> None:
    instance = (await api.launch())["data"]
    answers = await asyncio.gather(*(patched(api, instance, {"labels": {f"n{n}": "x"}}) for n in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    now = (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"]
    assert (len(now["labels"]), now["version"]) == (20, 21)


async def test_patch_in_any_state_but_deleted(api: Api) -> None:
    for status in Status:
        instance = (await api.launch(status))["data"]
        api.put(instance, status)
        answer = await patched(api, instance, {"tags": ["x"]})
        assert answer.status_code == (409 if status == "deleted" else 200), status


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"image": "x"}, "image"),
        ({"status": "running"}, "status"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": []}, "labels"),
        ({"labels": {f"k{n}": "v" for n in range(65)}}, "labels"),
        ({"labels": {"a": "\x00"}}, "labels.a"),
        ({"metadata": {"a": "x" * 4097}}, "metadata.a"),
        ({"tags": "x"}, "tags"),
        ({"tags": ["a b"]}, "tags.0"),
        ({"tags": [None]}, "tags.0"),
        ({"tags": [f"t{n}" for n in range(65)]}, "tags"),
    ],
)
async def test_bad_patch_names_the_field_and_writes_nothing(api: Api, body: Any, field: str) -> None:
    instance = (await api.launch())["data"]
    answer = await patched(api, instance, body)
    assert refusal(answer) == (422, "validation_failed")
    assert answer.json()["error"]["details"]["fields"][0]["field"].startswith(field)
    assert (await api.http.get(f"/v1/instances/{instance['id']}")).json()["data"] == instance


async def test_labels_are_at_most_64_together_with_those_that_are_there(api: Api) -> None:
    instance = (await api.launch(labels={f"k{n}": "v" for n in range(64)}))["data"]
    assert refusal(await patched(api, instance, {"labels": {"more": "x"}})) == (422, "validation_failed")
    assert (await patched(api, instance, {"labels": {"more": "x", "k0": None}})).status_code == 200


async def test_list_by_tag(api: Api) -> None:
    await api.launch("a", tags=["blue", "eu"])
    await api.launch("b", tags=["blue"])
    await api.launch("c")

    async def found(query: str) -> list[str]:
        answer = await api.http.get(f"/v1/instances?{query}")
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["data"]]

    assert await found("tag=blue") == ["b", "a"]
    assert await found("tag=blue&tag=eu") == ["a"]
    assert await found("tag=green") == []
    assert refusal(await api.http.get("/v1/instances?tag=a%20b")) == (422, "validation_failed")


async def test_foreign_and_absent_are_404(api: Api) -> None:
    mine = await placed(api)
    async with api.as_(api.db.project("stranger")) as stranger:
        for instance in (mine["id"], str(uuid4())):
            for verb in VERBS:
                answer = await stranger.post(f"/v1/instances/{instance}/{verb}", json=BODIES.get(verb))
                assert refusal(answer) == (404, "not_found")
            assert refusal(await stranger.patch(f"/v1/instances/{instance}", json={})) == (404, "not_found")
