"""``/v1/instance-types``: what operators change, and what that does to instances."""

from __future__ import annotations

import asyncio

from tests.api.conftest import BODY, Api

TINY = {"name": "tiny-1", "vcpus": 0.5, "memory_mb": 128, "disk_gb": 4}
PATH = "/v1/instance-types"


async def test_one_is_added_listed_by_size_and_used(api: Api) -> None:
    made = await api.http.post(PATH, json=TINY)
    assert (made.status_code, made.json()["data"]) == (201, TINY)
    assert (await api.http.get(PATH)).json()["data"][0] == TINY
    assert (await api.http.get(f"{PATH}/tiny-1")).json()["data"] == TINY
    again = await api.http.post(PATH, json=TINY)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    instance = (await api.launch(instance_type="tiny-1"))["data"]
    assert (instance["vcpus"], instance["memory_mb"]) == (0.5, 128)


async def test_a_change_is_for_new_launches_only(api: Api) -> None:
    before = (await api.launch("before"))["data"]
    patched = await api.http.patch(f"{PATH}/basic-1", json={"memory_mb": 600})
    assert patched.json()["data"] == {"name": "basic-1", "vcpus": 1, "memory_mb": 600, "disk_gb": 8}
    assert (await api.launch("after"))["data"]["memory_mb"] == 600
    assert (await api.http.get(f"/v1/instances/{before['id']}")).json()["data"]["memory_mb"] == 512


async def test_one_that_is_in_use_stays_and_one_that_was_removed_is_gone_for_launches(api: Api) -> None:
    await api.http.post(PATH, json=TINY)
    instance = (await api.launch(instance_type="tiny-1"))["data"]
    refused = await api.http.delete(f"{PATH}/tiny-1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert (await api.http.get(f"{PATH}/tiny-1")).status_code == 200
    api.put(instance, "deleted")
    assert (await api.http.delete(f"{PATH}/tiny-1")).status_code == 204
    assert (await api.http.get(f"{PATH}/tiny-1")).status_code == 404
    assert (await api.http.delete(f"{PATH}/tiny-1")).status_code == 404
    assert (await api.http.patch(f"{PATH}/tiny-1", json={"vcpus": 1})).status_code == 404
    launch = await api.http.post(
        "/v1/instances", json={"name": "b", "image": "cairn/base:latest", "instance_type": "tiny-1"}
    )
    assert (launch.status_code, launch.json()["error"]["details"]["fields"][0]["field"]) == (422, "instance_type")
    larger = TINY | {"memory_mb": 256}
    assert (await api.http.post(PATH, json=larger)).json()["data"] == larger


async def test_another_projects_instances_count_too_and_only_operators_change_types(api: Api) -> None:
    await api.http.post(PATH, json=TINY)
    theirs = api.as_(api.db.project("other"))
    launched = await theirs.post("/v1/instances", json=BODY | {"instance_type": "tiny-1"})
    assert launched.status_code == 202, launched.text
    assert (await theirs.get(f"{PATH}/tiny-1")).status_code == 200
    for answer in (
        await theirs.post(PATH, json=TINY | {"name": "mine"}),
        await theirs.patch(f"{PATH}/tiny-1", json={"vcpus": 1}),
        await theirs.delete(f"{PATH}/tiny-1"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert (await api.http.delete(f"{PATH}/tiny-1")).status_code == 409


async def test_the_same_key_makes_one_and_ten_at_once_too(api: Api) -> None:
    key = {"Idempotency-Key": "type-1"}
    answers = await asyncio.gather(*(api.http.post(PATH, json=TINY, headers=key) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    other = await api.http.post(PATH, json=TINY | {"vcpus": 2}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")


async def test_sizes_that_make_no_sense_are_named(api: Api) -> None:
    for field, bad in (
        ("vcpus", 0),
        ("vcpus", -1),
        ("memory_mb", 0),
        ("memory_mb", 1.5),
        ("disk_gb", -1),
        ("name", ""),
    ):
        answer = await api.http.post(PATH, json=TINY | {field: bad})
        assert (answer.status_code, answer.json()["error"]["details"]["fields"][0]["field"]) == (422, field)
