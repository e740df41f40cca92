"""What happens outside of us: Temporal, PostgreSQL or the engine away; strangers' objects; taken ports."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest
from docker.models.containers import Container
from temporalio.client import Client

from tests import invariants
from tests.stack import IMAGE, Json, Stack, wait_for
from worker import engine

#: A step whose process was killed goes on within this, once the process is back or another has taken it.
TAKEN_UP_SECONDS = 15


def held(stack: Stack, point: str, *, action: str = "pause", seconds: float = 0) -> Json:
    """A launch on the Docker engine that is held at ``point``."""
    before = len(stack.hits(point))
    stack.fault(point, action, seconds=seconds)
    launched = stack.launch(backend="docker")
    stack.wait_for_hit(point, before)
    return launched


def test_temporal_away_requests_are_accepted_as_fast_and_run_when_it_is_back(stack: Stack) -> None:
    launched = []

    def seconds() -> float:
        """The median of some launches."""
        took = []
        for _ in range(5):
            began = time.monotonic()
            launched.append(stack.launch())
            took.append(time.monotonic() - began)
        return statistics.median(took)

    there, away = [], []
    for _ in range(3):  # in turns, as others use this machine too
        there.append(seconds())
        with stack.frozen("temporal"):
            away.append(seconds())
    assert statistics.median(away) < 2 * statistics.median(there) + 0.05, (there, away)
    for one in launched:
        stack.completed(one)


def test_api_killed_right_after_an_answer_loses_nothing(stack: Stack) -> None:
    launched = []
    for _ in range(5):
        launched.append(stack.launch())
        stack.kill("api")
    for one in launched:
        stack.completed(one)


def test_database_away_is_503_with_retry_after_and_the_api_recovers_by_itself(stack: Stack) -> None:
    api = stack.pids()["api"]
    seen = set()
    stack.kill("postgres", wait=False)
    end = time.monotonic() + 20
    while time.monotonic() < end and seen != {200, 503}:
        answer = stack.request("GET", "/instances")
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "unavailable"
            seen.add(503)
        elif seen:
            seen.add(answer.status_code)
        time.sleep(0.02)
    assert seen == {200, 503}
    assert stack.pids()["api"] == api
    stack.running()


@pytest.mark.parametrize(
    ("point", "process"),
    [("instance.place.after_effect", "control_worker"), ("instance.create.after_effect", "host_agent")],
)
def test_step_of_a_killed_process_is_taken_up(stack: Stack, point: str, process: str) -> None:
    launched = held(stack, point)
    stack.kill(process)
    stack.plant()
    stack.completed(launched, TAKEN_UP_SECONDS)
    assert len(stack.containers()) == 1


def test_create_that_lands_after_its_launch_was_given_up_does_not_stay(
    stack: Stack, docker_engine: docker.DockerClient
) -> None:
    """The engine finished, the caller died, and nobody tried again."""
    instance = stack.running(backend="docker")
    labels = stack.containers()[0].labels
    stack.completed(stack.act("delete", instance))
    docker_engine.containers.create(IMAGE, name=f"cairn-instance-{instance['id']}", labels=labels)
    wait_for("the leftover is gone", lambda: not stack.containers(), 15)


def test_foreign_container_under_our_name_survives_and_the_launch_fails_clearly(
    stack: Stack, docker_engine: docker.DockerClient
) -> None:
    launched = held(stack, "instance.create.before")
    foreign: Container = docker_engine.containers.create(IMAGE, name=f"cairn-instance-{launched['data']['id']}")
    try:
        stack.plant()
        row = stack.ended(launched)
        assert (row["state"], row["error"]["code"]) == ("failed", "foreign_object")
        assert stack.instance(launched)["error"]["step"] == "instance.create"
        stack.completed(stack.act("delete", launched))
        foreign.reload()
        assert foreign.status == "created"
    finally:
        foreign.remove(force=True)


def test_automatic_port_that_is_taken_is_replaced_and_a_fixed_one_is_an_error(stack: Stack) -> None:
    taken = stack.running(backend="docker")["ports"][0]["host_port"] + 1
    with socket.create_server(("127.0.0.1", taken)):
        instance = stack.running(backend="docker")
        assert instance["ports"][0]["host_port"] == taken + 1
        assert instance["generation"] == 2
        row = stack.ended(stack.launch(backend="docker", ports=f"{taken}:80"))
        assert (row["state"], row["error"]["code"]) == ("failed", "port_taken")
    assert len(stack.containers()) == 2


def test_run_that_was_terminated_by_hand_is_settled_and_leaves_nothing(stack: Stack) -> None:
    launched = held(stack, "instance.start.after_effect")

    async def terminate() -> None:
        client = await Client.connect(stack.endpoint()["temporal_address"])
        await client.get_workflow_handle(launched["meta"]["workflow_id"]).terminate("by hand")

    asyncio.run(terminate())
    row = stack.ended(launched)
    assert (row["state"], row["error"]["code"]) == ("failed", "run_terminated")
    stack.plant()
    wait_for("nothing is left", lambda: not stack.containers(), 20)


@contextlib.contextmanager
def engine_that_can_go_away(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """A socket in front of the real engine's; while the event is set, every connection is refused or cut."""
    path = str(folder / "e.sock")
    away = threading.Event()
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    server.settimeout(0.2)
    stopped = threading.Event()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while not stopped.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            if away.is_set():
                client.close()
                continue
            target = socket.socket(socket.AF_UNIX)
            target.connect(engine.SOCKET.removeprefix("unix://"))
            for pair in ((client, target), (target, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"unix://{path}", away
    finally:
        stopped.set()
        thread.join()
        server.close()


def test_engine_away_is_retried_visibly_and_ends_with_a_clear_error_at_the_deadline() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ce-"))
    with engine_that_can_go_away(folder) as (url, away):
        stack = Stack(CAIRN_DOCKER_HOST=url, CAIRN_DEADLINE_LAUNCH="12")
        try:
            stack.start().ready()
            stack.running(backend="docker")
            away.set()
            launched = stack.launch(backend="docker")
            wait_for("retries are visible", lambda: _is_retried(stack, launched), 10)
            row = stack.ended(launched, 60)
            assert (row["state"], row["error"]["code"]) == ("failed", "engine_unavailable")
            assert "deadline" in row["error"]["message"]
            assert stack.instance(launched)["status"] == "error"
            away.clear()
            stack.running(backend="docker")
            invariants.settle(stack)
        finally:
            stack.remove()
    shutil.rmtree(folder)


def _is_retried(stack: Stack, launched: Json) -> bool:
    steps = stack.workflow(launched, steps=True)["steps"] or []
    return any(step["attempts"] > 1 and step["error"] for step in steps)


def test_two_installations_on_one_engine_are_strangers(stack: Stack) -> None:
    mine = stack.running(backend="docker")
    other = Stack(simulated_hosts=0)
    try:
        theirs = other.start().ready().running(backend="docker")
        time.sleep(9)  # two inventories of each
        assert [container.labels["io.cairn.id"] for container in stack.containers()] == [mine["id"]]
        assert [container.labels["io.cairn.id"] for container in other.containers()] == [theirs["id"]]
        assert other.request("GET", f"/instances/{mine['id']}").status_code == httpx.codes.NOT_FOUND
    finally:
        other.remove()
    assert [container.labels["io.cairn.id"] for container in stack.containers()] == [mine["id"]]


def test_starting_again_resumes_what_was_in_flight_and_lost_runs_start_anew() -> None:
    stack = Stack(simulated_hosts=0)
    try:
        stack.start().ready()
        launched = held(stack, "instance.create.after_effect")
        stack.stop()
        assert len(stack.containers()) == 1
        stack.plant()
        stack.start().ready()
        stack.completed(launched)

        second = held(stack, "instance.start.before")
        stack.stop()
        for file in stack.data.glob("temporal.sqlite*"):
            file.unlink()
        stack.plant()
        stack.start().ready()
        stack.completed(second, 60)
        invariants.settle(stack)
    finally:
        stack.remove()


def test_events_of_a_launch_arrive_in_order_and_end(stack: Stack) -> None:
    launched = stack.launch()
    stack.completed(launched)
    known = stack.endpoint()
    with httpx.stream(
        "GET",
        f"{known['api_url']}/workflows/{launched['meta']['workflow_id']}/events",
        headers={"X-API-Key": known["api_key"]},
        timeout=10,
    ) as stream:
        types = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert types == ["instance.pending", "instance.provisioning", "instance.running", "workflow.completed", "end"]


def test_agent_that_stalls_while_its_step_is_tried_again_makes_one_container(stack: Stack) -> None:
    launched = held(stack, "instance.create.before", action="delay", seconds=2)
    with stack.frozen("host_agent"):
        time.sleep(8)
    stack.completed(launched)
    assert len(stack.containers()) == 1
