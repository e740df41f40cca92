"""A group behind a load balancer: whatever is done to its members, no request fails."""

from __future__ import annotations

import os

import pytest

from tests.promises.test_balancers import SERVE, answers
from tests.promises.test_groups import group, path, scale
from tests.stack import Stack, wait_for
from tests.traffic import Traffic

pytestmark = pytest.mark.engine
#: Requests each second.
RATE = 250 if os.environ.get("CAIRN_CHAOS") == "all" else 100


def serving(word: str) -> list[str]:
    return ["/bin/sh", "-c", SERVE.format(name=word)]


def test_members_are_replaced_added_and_removed_without_a_failed_request(stack: Stack) -> None:
    front = stack.completed(
        stack.accept("POST", "/lb", {"name": "shop", "port": 80, "host_port": 0, "drain_seconds": 3})
    )
    at = f"/lb/{front['resource_id']}"
    (port,) = (one["host_port"] for one in stack.get(at)["ports"])
    check = {"type": "http", "port": 80, "path": "/", "interval_seconds": 1}
    more = {"cmd": serving("old"), "health_check": check, "load_balancer_id": front["resource_id"]}
    try:
        with group(stack, 2, "docker", **more) as accepted:
            stack.completed(accepted, 90)
            assert stack.get(at)["targets_up"] == 2
            with Traffic(port, rate=RATE) as traffic:
                stack.completed(stack.accept("PATCH", path(accepted), {"cmd": serving("new")}), 120)
                assert {answers(port) for _ in range(4)} == {"new"}
                stack.completed(scale(stack, accepted, 1), 60)
                wait_for("one is left", lambda: stack.get(at)["targets"] == 1, 20)
                # One that does not start is gone back from, and has had no request.
                bad = stack.ended(stack.accept("PATCH", path(accepted), {"cmd": ["/bin/false"]}), 120)
            assert (bad["state"], stack.get(path(accepted))["cmd"]) == ("failed", serving("new"))
            assert traffic.failures == []
            assert traffic.answers["old"] and traffic.answers["new"]
    finally:
        stack.completed(stack.accept("DELETE", at))
