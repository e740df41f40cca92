"""What is due by the clock: ordered when it is, once, and never stuck."""

from __future__ import annotations

import dataclasses
import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.database import transaction
from activities.fleet import Limits
from activities.health import until_healthy
from activities.lifetimes import order_due
from activities.reencryption import SecretRecords
from drivers.machines import Cancelled
from model.base import new_id
from model.errors import InstanceExited, Unhealthy
from model.health import Checked, HealthCheck, Look
from model.instances import MachineSpec, MachineState
from model.keyring import Keyring, new_master_key
from model.workflows import Order
from tests.activities.conftest import CAPACITY, Platform
from tests.vault import sealed_value

LIMITS = Limits(
    reconcile_interval=10, fence_after=30, deadline_launch=60, capacity=CAPACITY, deadline_delete=33, deadline_stop=44
)
SECOND_AGO = "now() - interval '1 second'"


def due(engine: Engine) -> list[Order]:
    with transaction(engine) as session:
        return order_due(session, LIMITS)


def settle(platform: Platform, order: Order, outcome: Any) -> None:
    platform.claim(order)
    platform.settle(order, outcome, None if outcome == "completed" else "engine_refused")


def update(platform: Platform, order: Order, **columns: str) -> None:
    """``columns``: SQL."""
    assignments = ", ".join(f"{name} = {value}" for name, value in columns.items())
    platform.db.rows(f"UPDATE instances SET {assignments} WHERE id = %s", order.resource_id)


def expired(platform: Platform, name: str = "web") -> Order:
    order = platform.running(name)
    update(platform, order, ttl_seconds="60", expires_at=SECOND_AGO)
    return order


# Time to live


def test_only_what_is_over_is_deleted_and_its_event_says_why(platform: Platform, worker_engine: Engine) -> None:
    over, later, never = expired(platform), platform.running("later"), platform.running("never")
    update(platform, later, ttl_seconds="60", expires_at="now() + interval '1 minute'")
    (order,) = due(worker_engine)
    assert (order.kind, order.resource_id, order.deadline_seconds) == ("DeprovisionInstance", over.resource_id, 33)
    assert platform.instance(over)["status"] == "deleting"
    event = platform.db.one("SELECT data FROM events WHERE workflow_id = %s", order.workflow_id)
    assert event["data"]["because"] == "its time to live is over"
    assert platform.workflow(order)["actor"] == "system"
    assert due(worker_engine) == []
    settle(platform, order, "completed")
    assert platform.instance(over)["status"] == "deleted"
    assert due(worker_engine) == []
    assert {platform.instance(one)["status"] for one in (later, never)} == {"running"}


def test_many_looks_at_once_order_one_delete_each(platform: Platform, worker_engine: Engine) -> None:
    over = [expired(platform, f"web-{n}") for n in range(5)]
    with ThreadPoolExecutor(8) as threads:
        found = [order for orders in threads.map(lambda _: due(worker_engine), range(8)) for order in orders]
    assert sorted(order.resource_id for order in found) == sorted(order.resource_id for order in over)


def test_launch_that_has_not_begun_is_called_off(platform: Platform, worker_engine: Engine) -> None:
    launch = platform.launch()
    update(platform, launch, ttl_seconds="1", expires_at=SECOND_AGO)
    (order,) = due(worker_engine)
    assert platform.workflow(launch)["state"] == "cancelled"
    assert platform.events(launch) == ["workflow.cancelled"]
    settle(platform, order, "completed")
    assert platform.instance(launch)["status"] == "deleted"
    assert platform.counted() == (0, 0, 0, 0, 0, 0)


def test_what_is_under_way_is_asked_to_end_and_waited_for(platform: Platform, worker_engine: Engine) -> None:
    launch = platform.launch()
    platform.place(launch)
    update(platform, launch, ttl_seconds="1", expires_at=SECOND_AGO)
    (order,) = due(worker_engine)
    row = platform.workflow(launch)
    assert (row["state"], row["cancel_requested_at"] is not None) == ("running", True)
    platform.settle(launch, "cancelled", "cancelled")
    settle(platform, order, "completed")
    assert platform.instance(launch)["status"] == "deleted"
    assert platform.held() == {"vcpus": 0, "memory_mb": 0, "ports": 0}


def test_delete_that_failed_is_ordered_again_after_a_while(platform: Platform, worker_engine: Engine) -> None:
    over = expired(platform)
    (order,) = due(worker_engine)
    settle(platform, order, "failed")
    assert platform.instance(over)["status"] == "error"
    assert due(worker_engine) == []
    platform.db.rows("UPDATE workflows SET finished_at = finished_at - interval '61 s' WHERE state = 'failed'")
    (again,) = due(worker_engine)
    assert again.workflow_id != order.workflow_id


@pytest.mark.parametrize(("silent", "most"), [(False, 300), (True, 1800)])
def test_delete_that_fails_is_ordered_less_and_less_often(
    platform: Platform, worker_engine: Engine, silent: bool, most: int
) -> None:
    over = platform.running(wanted_host="one")
    update(platform, over, ttl_seconds="60", expires_at=SECOND_AGO)
    platform.db.rows("UPDATE hosts SET last_seen_at = now() + make_interval(days => %s)", -1 if silent else 1)
    for pause in (60, 120, 240, 480, 960, 1920):
        (order,) = due(worker_engine)
        settle(platform, order, "failed")
        for seconds, orders in ((min(pause, most) - 5, False), (min(pause, most) + 1, True)):
            platform.db.rows(
                "UPDATE workflows SET finished_at = now() - make_interval(secs => %s) WHERE id = %s",
                *(seconds, order.workflow_id),
            )
            if not orders:
                assert due(worker_engine) == [], pause


def test_one_that_cannot_be_ordered_keeps_no_other_waiting(platform: Platform, worker_engine: Engine) -> None:
    odd, other = expired(platform, "odd"), expired(platform, "other")
    update(platform, odd, wanted_ports="""'[{"odd": true}]'""")
    (order,) = due(worker_engine)
    assert order.resource_id == other.resource_id
    assert platform.instance(odd)["status"] == "running"
    assert platform.instance(other)["status"] == "deleting"
    assert {platform.workflow(other)["project_id"]} == {platform.db.project_id}


def test_delete_that_a_user_asked_for_is_left_alone(platform: Platform, worker_engine: Engine) -> None:
    over = expired(platform)
    platform.change(over, "DeprovisionInstance")
    assert due(worker_engine) == []


# Health


@pytest.mark.parametrize(
    ("kind", "health"),
    [
        ("RestartInstance", "healthy"),
        ("MoveInstance", "healthy"),
        ("HealInstance", "healthy"),
        ("ResizeInstance", "unhealthy"),
        ("ResumeInstance", None),
    ],
)
def test_only_what_was_started_has_been_seen_to_be_healthy(platform: Platform, kind: str, health: str | None) -> None:
    instance = platform.running()
    update(platform, instance, health_check="""'{"type": "tcp", "port": 80}'""")
    if kind == "ResumeInstance":
        settle(platform, platform.change(instance, "PauseInstance"), "completed")
    update(platform, instance, health="'unhealthy'")
    settle(platform, platform.change(instance, kind), "completed")
    row = platform.instance(instance)
    assert (row["status"], row["health"]) == ("running", health)


# Idle stop


def idle(platform: Platform, name: str = "web") -> Order:
    """One that is due, and whose samples show it."""
    order = platform.running(name, wanted_host="one")
    update(platform, order, idle_stop_seconds="60", active_at="now() - interval '61 s'")
    platform.db.rows("UPDATE hosts SET last_seen_at = now() + interval '1 day'")
    sample(platform, order, 20)
    return order


def sample(platform: Platform, order: Order, seconds_ago: float) -> None:
    platform.db.rows(
        "INSERT INTO samples SELECT project_id, id, 10, now() - make_interval(secs => %s), 0, 0, 1, 0, 0, 0, 0"
        " FROM instances WHERE id = %s",
        *(seconds_ago, order.resource_id),
    )


def test_idle_instance_is_stopped_once(platform: Platform, worker_engine: Engine) -> None:
    instance = idle(platform)
    (order,) = due(worker_engine)
    assert (order.kind, order.resource_id, order.deadline_seconds) == ("StopInstance", instance.resource_id, 44)
    assert platform.instance(instance)["status"] == "stopping"
    assert due(worker_engine) == []
    settle(platform, order, "completed")
    assert platform.instance(instance)["status"] == "stopped"
    assert due(worker_engine) == []


@pytest.mark.parametrize(
    "what",
    [
        "UPDATE instances SET active_at = now() - interval '59 s'",
        "UPDATE instances SET active_at = NULL",
        "UPDATE instances SET idle_stop_seconds = NULL",
        "UPDATE instances SET status = 'stopped'",
        "UPDATE hosts SET last_seen_at = now() - interval '20 s'",
        "UPDATE samples SET at = now() - interval '46 s'",
        "UPDATE instances SET idle_stop_seconds = 20, active_at = now() - interval '21 s';"
        " UPDATE samples SET at = now() - interval '22 s'",
        "UPDATE samples SET seconds = 60",
        "DELETE FROM samples",
        "UPDATE instances SET idle_stop_seconds = 10, active_at = now() - interval '11 s';"
        " UPDATE samples SET at = now() - interval '30 s'",
    ],
)
def test_what_is_active_or_not_known_is_not_stopped(platform: Platform, worker_engine: Engine, what: str) -> None:
    idle(platform)
    for statement in what.split(";"):
        platform.db.rows(statement)
    assert due(worker_engine) == []


def test_time_begins_anew_with_a_start_and_with_a_stop_that_failed(platform: Platform, worker_engine: Engine) -> None:
    instance = idle(platform)
    (order,) = due(worker_engine)
    settle(platform, order, "failed")
    row = platform.instance(instance)
    assert row["status"] == "running"
    assert due(worker_engine) == []
    update(platform, instance, active_at="now() - interval '1 day'", status="'stopped'")
    start = platform.change(instance, "StartInstance")
    settle(platform, start, "completed")
    assert platform.instance(instance)["active_at"] > row["active_at"]
    assert due(worker_engine) == []


# Health


CHECK = HealthCheck(type="tcp", port=80, interval_seconds=1)
SPEC = MachineSpec(
    id=new_id(), project_id=new_id(), generation=3, name="web", image="a", vcpus=1, memory_mb=1, health_check=CHECK
)


class Machine:
    """Answers looks from a script; what follows is the last of it."""

    def __init__(self, *failures: str | None) -> None:
        self.failures = list(failures)
        self.looked: list[Checked] = []
        self.ended = False

    def look(self, machine: Checked) -> Look:
        self.looked.append(machine)
        return Look(failure=self.failures.pop(0) if len(self.failures) > 1 else self.failures[0])

    def ready(self, machine: Any, cancelled: Any) -> MachineState:
        if self.ended:
            raise InstanceExited("it ended")
        return MachineState(engine_id="e", private_ip="10.0.0.2")


def wait(machine: Machine, seconds: float = 30, cancelled: bool = False) -> MachineState:
    environment = ActivityEnvironment()
    now, within = environment.info.scheduled_time, dt.timedelta(seconds=seconds)
    environment.info = dataclasses.replace(environment.info, schedule_to_close_timeout=within, started_time=now)
    state = MachineState(engine_id="e", private_ip="10.0.0.1")
    found: MachineState = environment.run(
        lambda: until_healthy(machine, SPEC, CHECK, state, lambda: cancelled)  # type: ignore[arg-type]
    )
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.health.LOOK_SECONDS", 0.05)


def test_start_ends_when_it_is_healthy_at_the_address_that_it_has_by_then() -> None:
    machine = Machine("not yet", "not yet", None)
    assert wait(machine).private_ip == "10.0.0.2"
    assert [looked.generation for looked in machine.looked] == [3, 3, 3]


def test_start_gives_up_before_its_time_is_over_and_says_why() -> None:
    with pytest.raises(Unhealthy, match=r"tcp :80.*it answered 503"):
        wait(Machine("it answered 503"), seconds=3.3)


def test_machine_that_ends_and_start_that_is_cancelled_are_not_waited_for() -> None:
    machine = Machine("no")
    machine.ended = True
    with pytest.raises(InstanceExited):
        wait(machine)
    with pytest.raises(Cancelled):
        wait(Machine("no"), cancelled=True)


def test_script_goes_with_its_instance(platform: Platform, worker_engine: Engine) -> None:
    instance = platform.running()
    update(platform, instance, user_data="'#!secret'", user_data_sha256="'ab'")
    delete = platform.change(instance, "DeprovisionInstance")
    settle(platform, delete, "failed")
    keyring = Keyring(new_master_key("here"))
    ActivityEnvironment().run(SecretRecords(worker_engine, keyring).reencrypt)
    assert platform.instance(instance)["user_data"] is None
    assert sealed_value(platform.db, keyring, instance.resource_id) == "#!secret"
    settle(platform, platform.change(instance, "DeprovisionInstance"), "completed")
    row = platform.instance(instance)
    assert (row["status"], row["user_data"], row["user_data_sha256"]) == ("deleted", None, "ab")
    assert platform.db.rows("SELECT * FROM sealed_values") == platform.db.rows("SELECT * FROM instance_secrets") == []


def test_health_is_good_after_a_start_and_as_it_was_after_one_that_failed(platform: Platform) -> None:
    check = """'{"type": "tcp", "port": 80}'"""
    instance = platform.launch()
    update(platform, instance, health_check=check)
    platform.place(instance)
    platform.settle(instance, "completed")
    assert platform.instance(instance)["health"] == "healthy"
    update(platform, instance, health="'unhealthy'")
    stop = platform.change(instance, "StopInstance")
    settle(platform, stop, "failed")
    assert platform.instance(instance)["health"] == "unhealthy"
