"""What happens outside of us: Temporal, PostgreSQL or the engine away; strangers' objects; taken ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from tests.installation import Installation, until

DOCKER = "/var/run/docker.sock"


def test_temporal_away_requests_are_accepted_as_fast_and_run_when_it_is_back(cairn: Installation) -> None:
    pid = cairn.endpoint["pids"]["temporal"]
    os.kill(pid, signal.SIGSTOP)
    try:
        times = []
        launched = []
        for _ in range(20):
            began = time.monotonic()
            launched.append(cairn.launch())
            times.append(time.monotonic() - began)
        assert sorted(times)[10] < 0.1, times
    finally:
        os.kill(pid, signal.SIGCONT)
    for instance in launched:
        assert cairn.ended(instance["workflow_id"], 60)["state"] == "completed"
    cairn.converged()


def test_api_killed_right_after_an_answer_loses_nothing(cairn: Installation) -> None:
    launched = []
    for _ in range(5):
        launched.append(cairn.launch())
        os.kill(cairn.endpoint["pids"]["api"], signal.SIGKILL)
    for instance in launched:
        assert cairn.ended(instance["workflow_id"], 60)["state"] == "completed"
    cairn.converged()


def test_database_away_is_503_with_retry_after_and_the_api_recovers_by_itself(cairn: Installation) -> None:
    pid = cairn.endpoint["pids"]["api"]
    seen = set()
    os.kill(cairn.endpoint["pids"]["postgres"], signal.SIGKILL)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        answer = cairn.http.get("/instances")
        seen.add(answer.status_code)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "unavailable"
        elif 503 in seen:
            break
        time.sleep(0.05)
    assert seen == {200, 503}
    assert cairn.endpoint["pids"]["api"] == pid
    cairn.running()


def test_control_worker_killed_in_a_step_another_goes_on_within_fifteen_seconds(cairn: Installation) -> None:
    killed_in_a_step(cairn, "instance.place.after_effect", "control_worker")


def test_host_agent_killed_in_a_step_it_goes_on_within_fifteen_seconds(cairn: Installation) -> None:
    killed_in_a_step(cairn, "instance.create.after_effect", "host_agent")


def killed_in_a_step(cairn: Installation, point: str, process: str) -> None:
    before = cairn.hits(point)
    cairn.fault(point, "pause")
    instance = cairn.launch("docker")
    cairn.held(point, beyond=before)
    cairn.kill(process)
    cairn.clear()
    back = time.monotonic()
    assert cairn.ended(instance["workflow_id"], 30)["state"] == "completed"
    assert time.monotonic() - back < 15
    assert len(cairn.containers()) == 1


def test_create_that_lands_after_its_launch_was_given_up_does_not_stay(cairn: Installation) -> None:
    """The engine finished, the caller died, and nobody tried again."""
    instance = cairn.running("docker")
    container = cairn.containers()[0]
    labels = dict(container.labels)
    cairn.ended(cairn.act(instance, "delete")["workflow_id"])
    cairn.engine.containers.create("cairn/base:latest", name=f"cairn-instance-{instance['id']}", labels=labels)
    until(lambda: not cairn.containers(), 15, "the leftover is gone")


def test_foreign_container_under_our_name_survives_and_the_launch_fails_clearly(cairn: Installation) -> None:
    before = cairn.hits("instance.create.before")
    cairn.fault("instance.create.before", "pause")
    instance = cairn.launch("docker")
    cairn.held("instance.create.before", beyond=before)
    foreign = cairn.engine.containers.create("cairn/base:latest", name=f"cairn-instance-{instance['id']}")
    try:
        cairn.clear()
        row = cairn.ended(instance["workflow_id"])
        assert row["state"] == "failed"
        assert row["error"]["code"] == "foreign_object"
        assert cairn.instance(instance)["error"]["step"] == "instance.create"
        cairn.ended(cairn.act(instance, "delete")["workflow_id"])
        foreign.reload()
        assert foreign.status == "created"
    finally:
        foreign.remove(force=True)


def test_automatic_port_that_is_taken_is_replaced_and_a_fixed_one_is_an_error(cairn: Installation) -> None:
    taken = cairn.running("docker")["ports"][0]["host_port"] + 1
    with socket.create_server(("127.0.0.1", taken)):
        instance = cairn.running("docker")
        assert instance["ports"][0]["host_port"] == taken + 1
        assert instance["generation"] == 2
        fixed = cairn.launch("docker", ports=f"{taken}:80")
        row = cairn.ended(fixed["workflow_id"])
        assert (row["state"], row["error"]["code"]) == ("failed", "port_taken")
    assert len(cairn.containers()) == 2


def test_run_that_was_terminated_by_hand_is_settled_and_leaves_nothing(cairn: Installation) -> None:
    before = cairn.hits("instance.start.after_effect")
    cairn.fault("instance.start.after_effect", "pause")
    instance = cairn.launch("docker")
    cairn.held("instance.start.after_effect", beyond=before)

    async def terminate() -> None:
        client = await Client.connect(cairn.endpoint["temporal_address"])
        await client.get_workflow_handle(instance["workflow_id"]).terminate("by hand")

    asyncio.run(terminate())
    row = cairn.ended(instance["workflow_id"], 40)
    assert (row["state"], row["error"]["code"]) == ("failed", "run_terminated")
    cairn.clear()
    until(lambda: not cairn.containers(), 20, "nothing is left")
    cairn.converged()


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
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(DOCKER)
            for pair in ((client, engine), (engine, client)):
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
    folder = Path(tempfile.mkdtemp(prefix="e", dir="/tmp"))

    with engine_that_can_go_away(folder) as (url, away):
        cairn = Installation(CAIRN_DOCKER_HOST=url, CAIRN_DEADLINE_LAUNCH="12")
        try:
            cairn.start()
            cairn.running("docker")
            away.set()
            instance = cairn.launch("docker")
            until(lambda: _retried(cairn, instance["workflow_id"]), 10, "retries are visible")
            row = cairn.ended(instance["workflow_id"], 60)
            assert (row["state"], row["error"]["code"]) == ("failed", "engine_unavailable")
            assert "deadline" in row["error"]["message"]
            assert cairn.instance(instance)["status"] == "error"
            away.clear()
            again = cairn.launch("docker")
            assert cairn.ended(again["workflow_id"])["state"] == "completed"
            cairn.converged()
        finally:
            cairn.end()
    shutil.rmtree(folder)


def _retried(cairn: Installation, workflow: str) -> bool:
    steps = cairn.workflow(workflow, steps=True)["steps"] or []
    return any(step["attempts"] > 1 and step["error"] for step in steps)


def test_two_installations_on_one_engine_are_strangers(cairn: Installation) -> None:
    mine = cairn.running("docker")
    other = Installation()
    try:
        other.start()
        theirs = other.running("docker")
        time.sleep(8)  # two inventories of each
        assert [c.labels["io.cairn.id"] for c in cairn.containers()] == [mine["id"]]
        assert [c.labels["io.cairn.id"] for c in other.containers()] == [theirs["id"]]
        assert other.call("GET", f"/instances/{mine['id']}").status_code == 404
    finally:
        other.end()
    assert [c.labels["io.cairn.id"] for c in cairn.containers()] == [mine["id"]]


def test_starting_again_resumes_what_was_in_flight_and_lost_runs_start_anew() -> None:
    cairn = Installation()
    try:
        cairn.start()
        cairn.fault("instance.create.after_effect", "pause")
        instance = cairn.launch("docker")
        cairn.held("instance.create.after_effect")
        cairn.stop()
        assert len(cairn.containers()) == 1
        cairn.clear()
        cairn.start()
        assert cairn.ended(instance["workflow_id"])["state"] == "completed"

        cairn.fault("instance.start.before", "pause")
        second = cairn.launch("docker")
        cairn.held("instance.start.before")
        cairn.stop()
        for file in cairn.data.glob("temporal.sqlite*"):
            file.unlink()
        cairn.clear()
        cairn.start()
        assert cairn.ended(second["workflow_id"], 60)["state"] == "completed"
        cairn.converged()
    finally:
        cairn.end()


def test_events_of_a_launch_arrive_in_order_and_resume(cairn: Installation) -> None:
    instance = cairn.running()
    with httpx.stream(
        "GET",
        f"{cairn.endpoint['api_url']}/workflows/{instance['workflow_id']}/events",
        headers={"X-API-Key": cairn.endpoint["api_key"]},
        timeout=10,
    ) as stream:
        types = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert types == ["instance.pending", "instance.provisioning", "instance.running", "workflow.completed", "end"]


@pytest.mark.parametrize("signal_number", [signal.SIGSTOP])
def test_agent_that_stalls_while_its_step_is_tried_again_makes_one_container(
    cairn: Installation, signal_number: signal.Signals
) -> None:
    before = cairn.hits("instance.create.before")
    cairn.fault("instance.create.before", "delay", seconds=2)
    instance = cairn.launch("docker")
    cairn.held("instance.create.before", beyond=before)
    pid = cairn.endpoint["pids"]["host_agent"]
    os.kill(pid, signal_number)
    time.sleep(8)
    os.kill(pid, signal.SIGCONT)
    assert cairn.ended(instance["workflow_id"])["state"] == "completed"
    assert len(cairn.containers()) == 1
