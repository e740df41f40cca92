"""Which machines are leftovers."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.fleet import Limits
from activities.hosts import HostRecords, Inventory
from model.base import new_id
from model.instances import OwnedMachine
from tests.activities.conftest import CAPACITY, Platform

LIMITS = Limits(reconcile_interval=10, fence_after=30, deadline_launch=60, capacity=CAPACITY)


def machine(id: UUID, generation: int = 1) -> OwnedMachine:
    return OwnedMachine(engine_id=f"e-{id}-{generation}", id=id, generation=generation, running=True)


def reconcile(engine: Engine, machines: list[OwnedMachine], host: str = "one") -> list[OwnedMachine]:
    found: list[OwnedMachine] = ActivityEnvironment().run(
        HostRecords(engine, LIMITS).reconcile, Inventory(host=host, machines=machines)
    )
    return found


def test_what_the_database_names_stays(platform: Platform, worker_engine: Engine) -> None:
    orders = [platform.running(f"web-{n}", wanted_host="one") for n in range(3)]
    assert reconcile(worker_engine, [machine(order.resource_id) for order in orders]) == []


def test_other_generation_host_or_end_is_a_leftover(platform: Platform, worker_engine: Engine) -> None:
    kept = platform.running("kept", wanted_host="one")
    elsewhere = platform.running("elsewhere", wanted_host="two")
    failed = platform.launch("failed", wanted_host="one")
    platform.place(failed)
    platform.settle(failed, "failed", "x")
    again = platform.launch("again", ports=[{"host_port": None, "container_port": 1, "protocol": "tcp"}])
    platform.place(again)
    platform.place(again, avoid=[20000])
    leftovers = [machine(elsewhere.resource_id), machine(failed.resource_id), machine(again.resource_id)]
    assert reconcile(worker_engine, [machine(kept.resource_id), *leftovers]) == leftovers


def test_machine_of_a_launch_under_way_stays(platform: Platform, worker_engine: Engine) -> None:
    order = platform.launch(wanted_host="one")
    platform.place(order)
    assert reconcile(worker_engine, [machine(order.resource_id)]) == []


def test_few_unknown_are_leftovers_many_are_left_alone(platform: Platform, worker_engine: Engine) -> None:
    """Many machines that no row knows: rather an older database than as many leftovers."""
    unknown = [machine(new_id()) for _ in range(6)]
    assert reconcile(worker_engine, unknown[:5]) == unknown[:5]
    assert reconcile(worker_engine, unknown) == []
    stale = platform.running("stale", wanted_host="two")
    assert reconcile(worker_engine, [*unknown, machine(stale.resource_id)]) == [machine(stale.resource_id)]


def test_a_tenth_may_be_unknown(platform: Platform, worker_engine: Engine) -> None:
    known = [machine(platform.running(f"w-{n}", wanted_host="one", memory_mb=1).resource_id) for n in range(54)]
    unknown = [machine(new_id()) for _ in range(7)]
    assert len(reconcile(worker_engine, [*known, *unknown[:6]])) == 6
    assert reconcile(worker_engine, [*known, *unknown]) == []
