"""Many at once: one key, one instance; no port twice; one delete; what is under way is refused or called off."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.stack import IMAGE, Stack, wait_for

ALL = os.environ.get("CAIRN_CHAOS") == "all"


def test_one_key_a_hundred_times_at_once_is_one_instance(stack: Stack) -> None:
    body = {"name": "same", "image": IMAGE, "backend": "docker"}

    def ask(_: int) -> httpx.Response:
        return stack.request("POST", "/instances", json=body, headers={"Idempotency-Key": "the-same-key"})

    with ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(ask, range(100)))
    assert {answer.status_code for answer in answers} == {httpx.codes.ACCEPTED}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    assert len({answer.json()["meta"]["workflow_id"] for answer in answers}) == 1
    stack.completed(answers[0].json())
    assert [row["name"] for row in stack.list("/instances")] == ["same"]
    assert len(stack.containers()) == 1


def test_many_launches_at_once_share_no_port(stack: Stack) -> None:
    many = 200 if ALL else 80
    with ThreadPoolExecutor(50) as threads:
        launched = list(threads.map(lambda n: stack.launch(f"many-{n}"), range(many)))
    for one in launched:
        stack.completed(one, 120)
    rows = stack.list("/instances")
    ports = Counter((row["host"], port["host_port"]) for row in rows for port in row["ports"])
    assert len(rows) == len(ports) == many
    assert set(ports.values()) == {1}
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda row: stack.act("delete", row), rows))
    wait_for("all are gone", lambda: not stack.list("/instances"), 120)


@pytest.mark.parametrize("killed", [(), ("control_worker", "host_agent", "control_worker")], ids=["", "killed"])
def test_two_hundred_launches_at_once_get_fifty_places(stack: Stack, killed: tuple[str, ...]) -> None:
    (project,) = stack.get("/projects")
    path = f"/projects/{project['id']}/quotas"
    stack.request("PATCH", path, json={"instances": {"limit": 50}}).raise_for_status()
    try:

        def launch(number: int) -> httpx.Response:
            body = {"name": f"many-{number}", "image": IMAGE, "backend": "simulated"}
            key = {"Idempotency-Key": f"{len(killed)}-{number}"}
            while True:
                answer = stack.request("POST", "/instances", json=body, headers=key)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer

        with ThreadPoolExecutor(200) as threads:
            launching = [threads.submit(launch, number) for number in range(200)]
            for name in killed:
                stack.kill(name)
            answers = [one.result() for one in launching]
        assert Counter(answer.status_code for answer in answers) == {202: 50, 429: 150}
        refused = {answer.json()["error"]["code"] for answer in answers if answer.status_code != httpx.codes.ACCEPTED}
        assert refused == {"quota_exceeded"}
        quota = stack.get(path)["instances"]
        assert quota["used"] + quota["reserved"] == 50
        # Some still come, some run: all go, and give back what they had.
        for number, row in enumerate(stack.list("/instances")):
            stack.act("delete", row)
            if killed and number == 25:
                stack.kill("control_worker", wait=False)
        wait_for("all are gone", lambda: not stack.list("/instances"), 180)
        nothing = {"used": 0, "reserved": 0}
        for what in ("instances", "vcpus", "memory_mb"):
            wait_for(f"{what} are given back", lambda what=what: stack.get(path)[what].items() >= nothing.items(), 30)
        # By those who had them, and not by the comparison that finds what nobody gave back.
        assert not stack.sql("SELECT data FROM events WHERE type = 'project.quota_corrected'")
    finally:
        stack.request("PATCH", path, json={"instances": {"limit": None}}).raise_for_status()


def test_ten_deletes_at_once_are_one_workflow(stack: Stack) -> None:
    instance = stack.running(backend="docker")
    path = f"/instances/{instance['id']}"
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: stack.request("DELETE", path), range(10)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    accepted = [answer.json() for answer in answers if answer.json()["meta"].get("workflow_id")]
    assert len({envelope["meta"]["workflow_id"] for envelope in accepted}) == 1
    stack.completed(accepted[0])
    assert stack.request("DELETE", path).status_code == httpx.codes.OK
    assert stack.containers() == []


@pytest.mark.parametrize("step", ["instance.place", "image.ensure", "instance.create", "instance.start"])
@pytest.mark.parametrize("point", ["before", "after_effect"])
def test_delete_during_a_launch(stack: Stack, step: str, point: str) -> None:
    at = f"{step}.{point}"
    before = len(stack.hits(at))
    stack.fault(at, "pause")
    launched = stack.launch(backend="docker")
    stack.wait_for_hit(at, before)
    deleting = stack.act("delete", launched)
    assert deleting["data"]["status"] == "deleting"
    stack.completed(deleting)
    assert stack.ended(launched)["state"] == "cancelled"
    assert stack.instance(launched)["status"] == "deleted"
    assert stack.containers() == []


def test_stop_during_a_start_is_refused_and_names_the_workflow(stack: Stack) -> None:
    instance = stack.running(backend="docker")
    stack.completed(stack.act("stop", instance))
    before = len(stack.hits("instance.start.before"))
    stack.fault("instance.start.before", "pause")
    starting = stack.act("start", instance)
    stack.wait_for_hit("instance.start.before", before)
    refused = stack.request("POST", f"/instances/{instance['id']}/stop")
    assert refused.status_code == httpx.codes.CONFLICT
    assert refused.json()["error"]["code"] == "invalid_state"
    assert refused.json()["error"]["details"] == {"state": "starting", "workflow_id": starting["meta"]["workflow_id"]}
    stack.plant()
    stack.completed(starting)


def test_name_is_free_as_soon_as_it_is_deleted(stack: Stack) -> None:
    first = stack.running(name="again")
    stack.completed(stack.act("delete", first))
    second = stack.running(name="again")
    assert second["id"] != first["id"]
    assert stack.instance(first)["status"] == "deleted"
