"""Groups: exactly as many members as were asked for, whatever dies and whatever is asked meanwhile."""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.stack import IMAGE, Json, Stack, wait_for

GROUPS = "/autoscaling/groups"
#: The long run has them on the real engine.
MANY = 30 if os.environ.get("CAIRN_CHAOS") == "all" else 6


@contextmanager
def group(stack: Stack, desired: int, backend: str = "simulated", **more: object) -> Iterator[Json]:
    """A group that is there as long as the test; the envelope of its acceptance."""
    body = {"name": f"g-{uuid.uuid4().hex[:8]}", "image": IMAGE, "backend": backend, "ports": "80"}
    body |= {"max_instances": 100, "desired_count": desired} | more
    accepted = stack.accept("POST", GROUPS, body)
    try:
        yield accepted
    finally:
        stack.plant()
        stack.completed(stack.accept("DELETE", path(accepted)), 90)
        assert members(stack, accepted) == []


def path(accepted: Json) -> str:
    return f"{GROUPS}/{accepted['data']['id']}"


def members(stack: Stack, accepted: Json) -> list[Json]:
    return stack.list("/instances", group_id=accepted["data"]["id"])


def scale(stack: Stack, accepted: Json, desired: int) -> Json:
    return stack.accept("PUT", f"{path(accepted)}/scale", {"desired_count": desired})


def is_whole(stack: Stack, accepted: Json, desired: int) -> bool:
    """It has just so many, all of them run, and nothing is done about it any more."""
    found = members(stack, accepted)
    now = stack.get(path(accepted))
    at_rest = now["status"] == "active" and now["ready_count"] == now["current_count"] == desired
    return at_rest and len(found) == desired and all(row["status"] == "running" for row in found)


@pytest.mark.parametrize(("backend", "many"), [("simulated", 30), ("docker", MANY)])
def test_scaled_out_and_in_with_worker_and_agent_killed_three_times(stack: Stack, backend: str, many: int) -> None:
    with group(stack, 0, backend) as accepted:
        stack.completed(accepted)
        for desired in (many, 3):
            scale(stack, accepted, desired)
            for process in ("control_worker", "host_agent", "control_worker"):
                time.sleep(0.7)
                stack.kill(process)
            wait_for(f"there are {desired}", lambda desired=desired: is_whole(stack, accepted, desired), 150)
        hosts = [row["host"] for row in members(stack, accepted)]
        if backend == "simulated":
            assert len(set(hosts)) == 2, "they are spread"


def test_newer_wish_takes_the_place_of_one_under_way_and_a_cancel_leaves_what_is_there(stack: Stack) -> None:
    with group(stack, 0) as accepted:
        stack.completed(accepted)
        stack.simulate(latency_ms=300)
        first = scale(stack, accepted, 40)
        wait_for("some are there", lambda: len(members(stack, accepted)) > 4)
        second = scale(stack, accepted, 5)
        row = stack.ended(first)
        assert (row["state"], row["error"]["code"]) == ("cancelled", "superseded")
        stack.completed(second, 60)
        assert is_whole(stack, accepted, 5)
        third = scale(stack, accepted, 40)
        wait_for("more are there", lambda: len(members(stack, accepted)) > 12)
        assert stack.cancel(third).status_code == httpx.codes.ACCEPTED
        assert stack.ended(third, 15)["state"] == "cancelled"
        desired = stack.get(path(accepted))["desired_count"]
        assert 12 < desired < 40
        wait_for("what was under way is there", lambda: is_whole(stack, accepted, desired), 60)


def test_members_of_another_configuration_replace_those_that_there_are_and_bad_ones_do_not(stack: Stack) -> None:
    # Without a check, a program that ends at once may be seen to run first, on a busy machine.
    check = {"type": "exec", "command": ["true"], "interval_seconds": 1}
    with group(stack, 3, "docker", cmd=["sleep", "1000"], max_surge=1, health_check=check) as accepted:
        stack.completed(accepted)
        before = {row["id"] for row in members(stack, accepted)}
        few = threading.Event()
        least: list[int] = []

        def watch() -> None:
            while not few.wait(0.1):
                least.append(sum(row["status"] == "running" for row in members(stack, accepted)))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            bad = stack.accept("PATCH", path(accepted), {"cmd": ["false"]})
            row = stack.ended(bad, 90)
            assert (row["state"], row["error"]["code"]) == ("failed", "instance_exited")
            assert {one["id"] for one in members(stack, accepted)} == before, "nothing was replaced"
            now = stack.get(path(accepted))
            assert (now["status"], now["revision"], now["cmd"]) == ("active", 1, ["sleep", "1000"])
            stack.completed(stack.accept("PATCH", path(accepted), {"env": {"MODE": "new"}}), 90)
        finally:
            few.set()
            watching.join()
        after = members(stack, accepted)
        assert not {row["id"] for row in after} & before
        assert {row["env"]["MODE"] for row in after} == {"new"}
        assert min(least) >= 3, "never fewer than desired"
        last, rolled_back, *_ = stack.list(f"{path(accepted)}/activities")
        assert (last["state"], last["launched"], last["removed"]) == ("completed", 3, 3)
        assert (rolled_back["state"], rolled_back["rolled_back"]) == ("failed", True)


def test_member_that_dies_or_is_deleted_is_replaced(stack: Stack) -> None:
    with group(stack, 3, "docker") as accepted:
        stack.completed(accepted)
        first, second, third = members(stack, accepted)

        def is_replaced(member: Json) -> bool:
            found = {row["id"] for row in members(stack, accepted)}
            return member["id"] not in found and third["id"] in found and is_whole(stack, accepted, 3)

        (container,) = stack.containers(first["id"])
        container.kill()
        wait_for("another is in its place", lambda: is_replaced(first), 60)
        (why, *_) = stack.list(f"{path(accepted)}/activities")
        assert f"{first['name']}: its machine is stopped" in why["cause"]
        stack.completed(stack.act("delete", second))
        wait_for("another is in its place", lambda: is_replaced(second), 60)


def test_deployment_is_scaled_by_its_replicas(stack: Stack) -> None:
    body = {"name": "web", "image": IMAGE, "backend": "simulated", "replicas": 2}
    accepted = stack.accept("POST", "/containers/deployments", body)
    at = f"/containers/deployments/{accepted['data']['id']}"
    try:
        assert stack.completed(accepted)["resource_type"] == "deployment"
        stack.completed(stack.accept("PUT", f"{at}/scale", {"replicas": 4}))
        shown = stack.get(at)
        assert (shown["replicas"], shown["ready_replicas"], shown["updated_replicas"]) == (4, 4, 4)
    finally:
        stack.completed(stack.accept("DELETE", at))


@pytest.mark.skipif(os.environ.get("CAIRN_CHAOS") != "all", reason="it takes minutes: make chaos")
def test_busy_group_grows_within_ninety_seconds_and_shrinks_again_and_does_not_swing(stack: Stack) -> None:
    """A real load, on real containers: that of one member, which is told to work and to rest."""
    work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    program = ["sh", "-c", f"while :; do if [ -e /busy ]; then {work}; else sleep 1; fi; done"]
    with group(stack, 1, "docker", cmd=program, max_instances=3, min_instances=1) as accepted:
        stack.completed(accepted)
        stack.accept("POST", f"{path(accepted)}/policies", {"name": "cpu", "metric_type": "cpu", "target_value": 10})
        (first,) = members(stack, accepted)
        tell(stack, first, "touch")
        wait_for("it has grown", lambda: len(members(stack, accepted)) > 1, 90)
        time.sleep(60)  # all of them are measured
        grown = stack.get(path(accepted))["desired_count"]
        (container,) = stack.containers(first["id"])
        assert container.status == "running"
        tell(stack, first, "rm")
        wait_for("it has shrunk", lambda: is_whole(stack, accepted, 1), 300)
        acts = [row for row in stack.list(f"{path(accepted)}/activities") if row["metric"]]
        sizes = [row["desired_after"] for row in reversed(acts)]
        turns = [after for before, after in itertools.pairwise([1, *sizes]) if after < before]
        assert grown > 1
        assert sizes == sorted(sizes[: -len(turns)]) + sorted(turns, reverse=True), "first more, then fewer"


def tell(stack: Stack, member: Json, command: str) -> None:
    """Of whichever is there: the one that was told may have been the one that went."""
    for container in stack.containers(member["id"]):
        container.exec_run([command, "/busy"])
