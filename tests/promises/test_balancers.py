"""A load balancer on the whole platform: real targets, real requests, and what happens to both."""

from __future__ import annotations

import docker
import httpx
import pytest

from tests.stack import Json, Stack, wait_for
from tests.traffic import Traffic
from worker import engine

pytestmark = pytest.mark.engine
SERVE = "echo {name} > /www/index.html; exec /bin/busybox httpd -f -p 80 -h /www"


def web(stack: Stack, name: str) -> Json:
    found: Json = stack.running(backend="docker", cmd=["/bin/sh", "-c", SERVE.format(name=name)])
    return found


def answers(port: int) -> str | None:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx.HTTPError:
        return None
    return answer.text.strip() if answer.is_success else None


def test_requests_go_on_whatever_becomes_of_targets_and_proxy(stack: Stack) -> None:
    first, second = web(stack, "a"), web(stack, "b")
    body = {"name": "front", "port": 80, "host_port": 0, "drain_seconds": 3}
    front = stack.completed(stack.accept("POST", "/lb", body))
    path = f"/lb/{front['resource_id']}"
    (port,) = (one["host_port"] for one in stack.get(path)["ports"])
    for instance in (first, second):
        stack.completed(stack.accept("POST", f"{path}/targets", {"instance_id": instance["id"], "port": 80}))
    assert {answers(port) for _ in range(4)} == {"a", "b"}
    with Traffic(port, rate=100) as traffic:
        stack.completed(stack.accept("DELETE", f"{path}/targets/{first['id']}"))
        stack.completed(stack.act("stop", first))
        stack.completed(stack.accept("PATCH", path, {"algorithm": "least-conn"}))
    assert traffic.failures == []
    assert traffic.answers["b"] > traffic.answers["a"]
    # A target that stops is none; when it runs again, it is one, whatever its address.
    stack.completed(stack.act("stop", second))
    wait_for("nobody answers", lambda: answers(port) is None, 15)
    stack.completed(stack.act("start", first))
    stack.completed(stack.act("start", second))
    wait_for("it answers again", lambda: answers(port) == "b", 15)
    wait_for("that is told", lambda: stack.get(path)["targets_up"] == 1, 20)
    # The proxy's machine is lost: the platform makes another, and tells it all.
    client = docker.APIClient(engine.SOCKET)
    client.remove_container(stack.get(f"/instances/{stack.get(path)['instance_id']}")["container_id"], force=True)
    client.close()
    wait_for("it answers again", lambda: answers(port) == "b", 60)
    assert stack.get(f"{path}/stats")
    stack.completed(stack.accept("DELETE", path))
    assert stack.get(path)["status"] == "deleted"
