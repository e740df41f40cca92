"""Promise 4, and many at once: one key, one instance; no port twice; one delete."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.installation import Installation, until


def test_one_key_a_hundred_times_at_once_is_one_instance(cairn: Installation) -> None:
    with ThreadPoolExecutor(100) as threads:
        found = list(threads.map(lambda _: cairn.launch(name="same", key="the-same-key"), range(100)))
    assert len({row["id"] for row in found}) == 1
    assert len({row["workflow_id"] for row in found}) == 1
    cairn.ended(found[0]["workflow_id"])
    assert [row["name"] for row in cairn.all("/instances")] == ["same"]


def test_two_hundred_launches_at_once_share_no_port(cairn: Installation) -> None:
    with ThreadPoolExecutor(50) as threads:
        launched = list(threads.map(lambda n: cairn.launch(name=f"many-{n}"), range(200)))
    for instance in launched:
        assert cairn.ended(instance["workflow_id"], 120)["state"] == "completed"
    ports = Counter(port["host_port"] for row in cairn.all("/instances") for port in row["ports"])
    assert len(ports) == 200
    assert set(ports.values()) == {1}
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda row: cairn.act(row, "delete"), launched))
    cairn.converged(120)


def test_ten_deletes_at_once_are_one_workflow(cairn: Installation) -> None:
    instance = cairn.running("docker")
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: cairn.call("DELETE", f"/instances/{instance['id']}"), range(10)))
    workflows = {answer.json()["meta"].get("workflow_id") for answer in answers} - {None}
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len(workflows) == 1
    cairn.ended(workflows.pop())
    assert cairn.call("DELETE", f"/instances/{instance['id']}").status_code == 200
    assert cairn.containers() == []


@pytest.mark.parametrize("step", ["instance.place", "image.ensure", "instance.create", "instance.start"])
@pytest.mark.parametrize("point", ["before", "after_effect"])
def test_delete_during_a_launch(cairn: Installation, step: str, point: str) -> None:
    before = cairn.hits(f"{step}.{point}")
    cairn.fault(f"{step}.{point}", "pause")
    instance = cairn.launch("docker")
    cairn.held(f"{step}.{point}", beyond=before)
    deleting = cairn.act(instance, "delete")
    assert deleting["status"] == "deleting"
    assert cairn.ended(deleting["workflow_id"])["state"] == "completed"
    assert cairn.ended(instance["workflow_id"])["state"] == "cancelled"
    assert cairn.instance(instance)["status"] == "deleted"
    cairn.converged()


def test_stop_during_a_start_is_refused_and_names_the_workflow(cairn: Installation) -> None:
    instance = cairn.running("docker")
    cairn.ended(cairn.act(instance, "stop")["workflow_id"])
    before = cairn.hits("instance.start.before")
    cairn.fault("instance.start.before", "pause")
    starting = cairn.act(instance, "start")
    cairn.held("instance.start.before", beyond=before)
    answer = cairn.call("POST", f"/instances/{instance['id']}/stop")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "invalid_state"
    assert answer.json()["error"]["details"] == {"state": "starting", "workflow_id": starting["workflow_id"]}
    cairn.clear()
    assert cairn.ended(starting["workflow_id"])["state"] == "completed"


def test_a_name_is_free_as_soon_as_it_is_deleted(cairn: Installation) -> None:
    first = cairn.running(name="again")
    cairn.ended(cairn.act(first, "delete")["workflow_id"])
    second = cairn.running(name="again", key="another")
    assert second["id"] != first["id"]
    until(lambda: cairn.instance(first)["status"] == "deleted", 5)
