"""Times to live, idle stops, health, user data: on the whole platform, while parts of it die."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator

import pytest

from tests import invariants
from tests.stack import Json, Stack, wait_for

pytestmark = pytest.mark.engine
#: Within which what is due happens, whatever died meanwhile.
WITHIN = 15
PROCESSES = ("api", "control_worker", "host_agent", "temporal", "postgres")
#: Some ten percent of a CPU.
BUSY = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.3; done"
LAUNCH_SECONDS = 40


@pytest.fixture(scope="module")
def platform() -> Iterator[Stack]:
    """Its own: launches give up early here."""
    made = Stack(simulated_hosts=2, CAIRN_DEADLINE_LAUNCH=str(LAUNCH_SECONDS), CAIRN_TICK_SECONDS="10")
    try:
        yield made.start().ready()
    finally:
        made.remove()


@pytest.fixture
def stack(platform: Stack) -> Iterator[Stack]:
    yield platform
    platform.plant()
    platform.simulate(unhealthy=0)
    invariants.settle(platform)
    platform.delete_all()
    invariants.settle(platform)


def moved(stack: Stack, instance: Json, status: str) -> dt.datetime:
    """When the instance was moved there, by its event."""
    asked = "SELECT created_at FROM events WHERE resource_id = %s AND type = %s ORDER BY id DESC LIMIT 1"
    found = stack.sql(asked, instance["id"], f"instance.{status}")
    moment: dt.datetime = found[0][0]
    return moment


def runs(stack: Stack, instance: Json, kind: str) -> int:
    (row,) = stack.sql(
        "SELECT count(*) FROM workflows WHERE resource_id = %s AND kind = %s AND actor = 'system'", instance["id"], kind
    )
    count: int = row[0]
    return count


def time_of(instance: Json, field: str) -> dt.datetime:
    return dt.datetime.fromisoformat(instance[field])


def late(stack: Stack, instance: Json, status: str, due: dt.datetime) -> float:
    """How many seconds after it was due."""
    return (moved(stack, instance, status) - due).total_seconds()


# Time to live


@pytest.mark.parametrize("victim", PROCESSES)
def test_time_to_live_ends_once_and_in_time_though_a_process_dies_just_then(stack: Stack, victim: str) -> None:
    instance = stack.running(ttl_seconds=6)
    due = time_of(instance, "expires_at")
    time.sleep(max((due - dt.datetime.now(dt.UTC)).total_seconds() - 0.3, 0))
    stack.kill(victim)
    wait_for("it is deleted", lambda: stack.instance(instance)["status"] == "deleted", 60)
    assert 0 <= late(stack, instance, "deleting", due) < WITHIN
    assert runs(stack, instance, "DeprovisionInstance") == 1


def test_time_to_live_ends_a_launch_that_is_under_way(stack: Stack) -> None:
    before = len(stack.hits("instance.start.before"))
    stack.fault("instance.start.before", "pause")
    launched = stack.launch(backend="docker", ttl_seconds=4)
    stack.wait_for_hit("instance.start.before", before)
    wait_for("it is deleted", lambda: stack.instance(launched)["status"] == "deleted", 40)
    assert late(stack, launched["data"], "deleting", time_of(launched["data"], "expires_at")) < WITHIN
    assert stack.ended(launched)["state"] == "cancelled"
    assert stack.containers(launched["data"]["id"]) == []


# Idle stop


def test_idle_instance_is_stopped_once_and_in_time_though_everything_dies_meanwhile(stack: Stack) -> None:
    idle = stack.running(backend="docker", idle_stop_seconds=45)
    busy = stack.running(backend="docker", idle_stop_seconds=20, cmd=["/bin/sh", "-c", BUSY])
    stack.completed(stack.act("stop", busy))
    stack.completed(stack.act("start", busy))
    began = time_of(stack.instance(idle), "active_at")
    for victim in PROCESSES:
        time.sleep(4)
        stack.kill(victim)
    wait_for("it is stopped", lambda: stack.instance(idle)["status"] == "stopped", 90)
    due = time_of(stack.instance(idle), "active_at") + dt.timedelta(seconds=45)
    assert (due - began).total_seconds() == pytest.approx(45, abs=WITHIN), "nothing of this was activity"
    assert 0 <= late(stack, idle, "stopping", due) < WITHIN
    assert runs(stack, idle, "StopInstance") == 1
    assert stack.instance(busy)["status"] == "running"
    stack.completed(stack.act("start", idle))
    assert time_of(stack.instance(idle), "active_at") > moved(stack, idle, "stopped"), "its time begins anew"
    time.sleep(5)
    assert stack.instance(idle)["status"] == "running"


def test_open_stream_keeps_an_instance_running_though_it_does_nothing(stack: Stack) -> None:
    instance = stack.running(backend="docker", idle_stop_seconds=15)
    body = {"cmd": ["sleep", "40"], "timeout": 60}
    answers = []

    def run() -> None:
        answers.append(stack.request("POST", f"/instances/{instance['id']}/exec", json=body, timeout=70))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    ended = dt.datetime.now(dt.UTC)
    assert answers[0].status_code == 200, answers[0].text
    wait_for("it is stopped", lambda: stack.instance(instance)["status"] == "stopped", 60)
    assert 13 < (moved(stack, instance, "stopping") - ended).total_seconds() < 15 + WITHIN
    assert runs(stack, instance, "StopInstance") == 1


# Health


def check(**more: object) -> Json:
    return {"type": "http", "port": 80, "interval_seconds": 1, "retries": 2} | more


def test_launch_whose_check_never_passes_fails_clean(stack: Stack) -> None:
    launched = stack.launch(backend="docker", health_check=check(path="/missing"))
    row = stack.ended(launched, LAUNCH_SECONDS + 20)
    assert (row["state"], row["error"]["code"], row["error"]["step"]) == ("failed", "unhealthy", "instance.start")
    assert "it answered 404" in row["error"]["message"]
    assert stack.instance(launched)["status"] == "error"
    assert stack.containers(launched["data"]["id"]) == []


def health(stack: Stack, instance: Json) -> str | None:
    found: str | None = stack.instance(instance)["health"]
    return found


@pytest.mark.parametrize("backend", ["docker", "simulated"])
def test_health_follows_the_machine_also_where_the_agent_was_killed(stack: Stack, backend: str) -> None:
    instance = stack.running(backend=backend, health_check=check())
    assert health(stack, instance) == "healthy", "a launch waits for it"
    stack.kill("host_agent")
    for well, expected in ((False, "unhealthy"), (True, "healthy")):
        if backend == "docker":
            (container,) = stack.containers(instance["id"])
            word = "cp /tmp/page" if well else "mv"
            there = "/www/index.html" if well else "/www/index.html /tmp/page"
            assert container.exec_run(f"{word} {there}").exit_code == 0
        else:
            stack.simulate(unhealthy=0 if well else 1)
        wait_for(f"it is {expected}", lambda expected=expected: health(stack, instance) == expected, 40)
    types = [row[0] for row in stack.sql("SELECT type FROM events WHERE resource_id = %s ORDER BY id", instance["id"])]
    assert [kind for kind in types if kind.endswith("healthy")] == ["instance.unhealthy", "instance.healthy"]


def test_unhealthy_instance_is_not_lost_by_what_is_done_to_it(stack: Stack) -> None:
    """What was not well before is started again all the same, and its state says so."""
    instance = stack.running(backend="simulated", health_check=check())
    stack.simulate(unhealthy=1)
    wait_for("it is unhealthy", lambda: health(stack, instance) == "unhealthy", 40)
    resized = stack.act("resize", instance, body={"instance_type": "standard-1"})
    stack.completed(resized)
    assert health(stack, instance) == "unhealthy"
    (host,) = [host for host in stack.list("/hosts") if host["name"] == instance["host"]]
    row = stack.ended(stack.accept("POST", f"/hosts/{host['id']}/drain"), 120)
    stack.request("POST", f"/hosts/{host['id']}/uncordon").raise_for_status()
    assert (row["state"], row["error"]["code"]) == ("failed", "not_drained")
    after = stack.instance(instance)
    assert (after["status"], after["host"], after["error"]["code"]) == ("running", instance["host"], "unhealthy")
    held = "instance.stop.after_effect"
    before = len(stack.hits(held))
    stack.fault(held, "pause")
    stopping = stack.act("stop", instance)
    stack.wait_for_hit(held, before)
    assert stack.cancelled(stopping, 60)["state"] == "cancelled"
    assert stack.instance(instance)["status"] == "running"
    stack.completed(stack.act("stop", instance))


# User data


@pytest.mark.parametrize("point", ["instance.create.after_effect", "instance.start.after_effect"])
def test_user_data_runs_once_though_the_agent_dies(stack: Stack, point: str) -> None:
    before = len(stack.hits(point))
    stack.fault(point, "kill")
    script = "#!/bin/sh\necho ran >> /www/runs\nsleep 2\n"
    launched = stack.launch(backend="docker", user_data=script)
    stack.wait_for_hit(point, before)
    stack.completed(launched)
    (container,) = stack.containers(launched["data"]["id"])
    assert container.exec_run("cat /www/runs").output == b"ran\n"
    stack.completed(stack.act("stop", launched))
    stack.completed(stack.act("start", launched))
    assert container.exec_run("cat /www/runs").output == b"ran\n"


def test_user_data_that_fails_is_the_launchs_error_with_what_it_said(stack: Stack) -> None:
    launched = stack.launch(backend="docker", user_data="#!/bin/sh\necho no such disk >&2\nexit 3\n")
    error = stack.ended(launched)["error"]
    assert error["code"] == "instance_exited"
    assert "exit code 3" in error["message"]
    assert "no such disk" in error["message"]
    assert stack.containers(launched["data"]["id"]) == []


def test_script_is_in_no_history(stack: Stack) -> None:
    """Nor in what the platform logs."""
    secret = "hunter2-in-user-data"
    instance = stack.running(backend="docker", user_data=f"#!/bin/sh\n# {secret}\n")
    row = stack.get("/workflows", resource_id=instance["id"])[0]
    assert row["state"] == "completed"
    assert stack.sql('SELECT 1 FROM workflows WHERE "order"::text LIKE %s', f"%{secret}%") == []
    kept = b"".join(file.read_bytes() for file in stack.data.glob("temporal.sqlite*"))
    assert instance["id"].encode() in kept, "this is where histories are"
    assert secret.encode() not in kept
    logs = b"".join(file.read_bytes() for file in (stack.data / "logs").glob("*.log"))
    assert instance["id"].encode() in logs
    assert secret.encode() not in logs
