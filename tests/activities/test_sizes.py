"""The size that an instance is to get: what is held for it, and that it is given back once, however the run ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event
from temporalio.testing import ActivityEnvironment

from activities.fleet import Limits
from activities.hosts import HostRecords, Inventory
from activities.instances import Placement, PlaceRequest
from model.errors import NoCapacity, Superseded
from model.instances import OwnedMachine
from model.workflows import Order
from tests.activities.conftest import CAPACITY, Platform

AUTO = {"host_port": None, "container_port": 80, "protocol": "tcp"}
LIMITS = Limits(reconcile_interval=10, fence_after=60, deadline_launch=60, capacity=CAPACITY)
SMALL, LARGE = {"vcpus": 1, "memory_mb": 512}, {"vcpus": 2, "memory_mb": 4096}
#: The quota: what is used, and what is reserved.
IS_SMALL, IS_LARGE = (1, 1, 512, 0, 0, 0), (1, 2, 4096, 0, 0, 0)


def resize(platform: Platform, launch: Order, to: str = "standard-2", **more: Any) -> Order:
    """What accepting it writes."""
    order = platform.change(launch, "ResizeInstance", instance_type=to, **more)
    platform.db.rows(
        "UPDATE instances SET next_type = t.name, next_vcpus = t.vcpus, next_memory_mb = t.memory_mb"
        " FROM instance_types t WHERE instances.id = %s AND t.name = %s",
        *(order.resource_id, to),
    )
    platform.db.rows(
        "UPDATE quotas SET vcpus_reserved = vcpus_reserved + greatest(next_vcpus - vcpus, 0),"
        " memory_mb_reserved = memory_mb_reserved + greatest(next_memory_mb - memory_mb, 0)"
        " FROM instances WHERE instances.id = %s",
        order.resource_id,
    )
    return order


def hold(platform: Platform, order: Order) -> Placement:
    placement: Placement = platform.run(platform.records.hold_size, order)
    return placement


def held(platform: Platform) -> dict[str, float]:
    return {what: platform.held()[what] for what in ("vcpus", "memory_mb")}


def size(platform: Platform, order: Order) -> tuple[str, float, int]:
    row = platform.instance(order)
    assert (row["next_type"], row["next_vcpus"], row["next_memory_mb"], row["next_held"]) == (None, None, None, False)
    return row["instance_type"], row["vcpus"], row["memory_mb"]


def test_growth_is_held_beside_the_size_until_it_is_taken(platform: Platform) -> None:
    launch = platform.running(ports=[AUTO])
    order = resize(platform, launch)
    assert platform.counted() == (1, 1, 512, 0, 1, 3584)
    for _ in range(3):  # repeated: once
        placement = hold(platform, order)
        assert (placement.spec.vcpus, placement.spec.memory_mb, placement.spec.generation) == (2, 4096, 1)
        assert placement.old_spec is not None
        assert (placement.old_spec.vcpus, placement.old_spec.memory_mb) == (1, 512)
        assert placement.spec.ports == placement.old_spec.ports
        assert (placement.was_running, placement.was_paused) == (True, False)
    assert held(platform) == LARGE
    for _ in range(2):
        platform.settle(order, "completed")
    assert size(platform, launch) == ("standard-2", 2, 4096)
    assert (held(platform), platform.counted(), platform.held()["ports"]) == (LARGE, IS_LARGE, 1)
    assert platform.instance(launch)["status"] == "running"
    assert platform.events(order) == ["instance.resized", "instance.running", "workflow.completed"]


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(("outcome", "undone"), [("failed", True), ("failed", False), ("cancelled", True)])
def test_resize_that_is_given_up_gives_back_what_it_held(
    platform: Platform, begun: bool, outcome: Any, undone: bool
) -> None:
    launch = platform.running()
    order = resize(platform, launch)
    if begun:
        hold(platform, order)
    for _ in range(2):
        platform.settle(order, outcome, "engine_refused", undone=undone)
    assert size(platform, launch) == ("basic-1", 1, 512)
    assert (held(platform), platform.counted()) == (SMALL, IS_SMALL)
    # Also where it could not be taken back: the machine lives, and drift shows how it differs.
    assert platform.instance(launch)["status"] == "running"


def test_less_is_given_back_only_when_it_is_less(platform: Platform) -> None:
    launch = platform.running(instance_type="standard-2", vcpus=2, memory_mb=4096)
    order = resize(platform, launch, "basic-1")
    assert platform.counted() == IS_LARGE
    hold(platform, order)
    assert held(platform) == LARGE
    platform.settle(order, "completed")
    assert (size(platform, launch), held(platform), platform.counted()) == (("basic-1", 1, 512), SMALL, IS_SMALL)


def test_more_of_one_and_less_of_the_other(platform: Platform) -> None:
    platform.db.rows("INSERT INTO instance_types (name, vcpus, memory_mb, disk_gb) VALUES ('wide', 4, 128, 8)")
    launch = platform.running()
    order = resize(platform, launch, "wide")
    hold(platform, order)
    assert held(platform) == {"vcpus": 4, "memory_mb": 512}
    assert platform.counted() == (1, 1, 512, 0, 3, 0)
    platform.settle(order, "completed")
    assert held(platform) == {"vcpus": 4, "memory_mb": 128}
    assert platform.counted() == (1, 4, 128, 0, 0, 0)


def test_no_room_on_its_host_is_an_error_though_another_has_some(platform: Platform) -> None:
    launch = platform.running(wanted_host="one")
    platform.db.rows("UPDATE hosts SET memory_mb = 4095 WHERE name = 'one'")
    order = resize(platform, launch)
    with pytest.raises(NoCapacity):
        hold(platform, order)
    assert held(platform) == SMALL
    platform.settle(order, "failed", "no_capacity")
    assert platform.counted() == IS_SMALL
    platform.db.rows("UPDATE hosts SET memory_mb = 4096 WHERE name = 'one'")
    assert hold(platform, resize(platform, launch)).spec.memory_mb == 4096


def test_what_does_not_grow_needs_no_room(platform: Platform) -> None:
    launch = platform.running(wanted_host="one")
    platform.db.rows("UPDATE hosts SET memory_mb = 100, cpus = 0.1 WHERE name = 'one'")
    platform.db.rows("INSERT INTO instance_types (name, vcpus, memory_mb, disk_gb) VALUES ('tiny', 0.5, 64, 8)")
    order = resize(platform, launch, "tiny")
    hold(platform, order)
    platform.settle(order, "completed")
    assert held(platform) == {"vcpus": 0.5, "memory_mb": 64}


def test_many_grow_at_once_and_the_host_is_never_overfull(platform: Platform) -> None:
    launches = [platform.running(f"web-{n}", wanted_host="one") for n in range(6)]
    platform.db.rows("UPDATE hosts SET memory_mb = 6 * 512 + 2 * 3584 WHERE name = 'one'")
    orders = [resize(platform, launch) for launch in launches]

    def attempt(order: Order) -> str:
        try:
            hold(platform, order)
        except NoCapacity:
            platform.settle(order, "failed", "no_capacity")
            return "full"
        platform.settle(order, "completed")
        return "grown"

    with ThreadPoolExecutor(6) as threads:
        ends = list(threads.map(attempt, orders))
    assert sorted(ends) == ["full"] * 4 + ["grown"] * 2
    assert held(platform)["memory_mb"] == 6 * 512 + 2 * 3584
    assert platform.counted() == (6, 8, 6 * 512 + 2 * 3584, 0, 0, 0)


def test_resize_that_was_called_off_before_it_began_is_given_up_by_the_delete(platform: Platform) -> None:
    """Accepting the delete ends the row alone."""
    launch = platform.running()
    order = resize(platform, launch)
    platform.db.rows("UPDATE workflows SET state = 'cancelled', finished_at = now() WHERE id = %s", order.workflow_id)
    delete = platform.change(launch, "DeprovisionInstance")
    platform.claim(delete)
    platform.settle(delete, "completed")
    assert platform.instance(launch)["status"] == "deleted"
    assert (held(platform), platform.counted()) == ({"vcpus": 0, "memory_mb": 0}, (0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("outcome", ["completed", "cancelled"])
@pytest.mark.parametrize("first", ["resize", "delete"])
def test_delete_beside_a_resize_leaves_nothing_held(platform: Platform, outcome: Any, first: str) -> None:
    launch = platform.running(ports=[AUTO])
    order = resize(platform, launch)
    hold(platform, order)
    delete = platform.change(launch, "DeprovisionInstance", force=True)
    with pytest.raises(Superseded):
        hold(platform, order)
    code = None if outcome == "completed" else "cancelled"
    if first == "resize":
        platform.settle(order, outcome, code)
        assert platform.instance(launch)["status"] == "deleting"
        assert platform.counted() == (IS_LARGE if outcome == "completed" else IS_SMALL)
        platform.settle(delete, "completed")
    else:  # forced: it did not wait
        platform.settle(delete, "completed")
        platform.settle(order, outcome, code)
    assert platform.instance(launch)["status"] == "deleted"
    assert platform.held() == {"vcpus": 0, "memory_mb": 0, "ports": 0}
    assert platform.counted() == (0, 0, 0, 0, 0, 0)


def found(launch: Order, generation: int) -> OwnedMachine:
    return OwnedMachine(engine_id=f"e-{generation}", id=launch.resource_id, generation=generation, running=True)


def test_machine_that_is_made_anew_has_a_generation_of_its_own_until_the_switch(
    platform: Platform, worker_engine: Engine
) -> None:
    launch = platform.running(ports=[AUTO], wanted_host="one")
    ports = platform.instance(launch)["ports"]
    order = resize(platform, launch, recreate=True)
    for _ in range(2):
        placement = hold(platform, order)
        assert (placement.spec.generation, placement.host, placement.leaves) == (2, "one", "one")
        assert [port.model_dump() for port in placement.spec.ports] == ports
    machines = [found(launch, 1), found(launch, 2)]
    reconcile = HostRecords(worker_engine, LIMITS).reconcile
    look = Inventory(host="one", machines=machines)
    assert ActivityEnvironment().run(reconcile, look) == [], "neither is a leftover"
    assert platform.held() == LARGE | {"ports": 1}
    for _ in range(2):
        platform.run(platform.records.switch, order)
    # From here on it has the new size, whoever ends the run.
    platform.settle(order, "failed", "run_terminated")
    assert size(platform, launch) == ("standard-2", 2, 4096)
    row = platform.instance(launch)
    assert (row["generation"], row["ports"], row["next_host_id"]) == (2, ports, None)
    assert platform.held() == LARGE | {"ports": 1}
    assert platform.counted() == IS_LARGE
    assert platform.events(order)[:2] == ["instance.recreated", "instance.resized"]
    assert ActivityEnvironment().run(reconcile, look) == [found(launch, 1)]


def test_machine_that_was_not_made_anew_keeps_its_place(platform: Platform) -> None:
    launch = platform.running(ports=[AUTO], wanted_host="one")
    order = resize(platform, launch, recreate=True)
    hold(platform, order)
    platform.settle(order, "failed", "engine_refused")
    row = platform.instance(launch)
    assert (row["generation"], row["next_host_id"], row["last_generation"]) == (1, None, 2)
    assert platform.held() == SMALL | {"ports": 1}
    assert size(platform, launch) == ("basic-1", 1, 512)


@pytest.mark.parametrize(
    ("kind", "outcome", "undone", "status"),
    [
        ("RestartInstance", "completed", True, "running"),
        ("RestartInstance", "failed", True, "running"),
        ("RestartInstance", "failed", False, "stopped"),
        ("PauseInstance", "completed", True, "paused"),
        ("PauseInstance", "cancelled", True, "running"),
        ("PauseInstance", "failed", False, "running"),
    ],
)
def test_where_each_verb_leads(platform: Platform, kind: str, outcome: Any, undone: bool, status: str) -> None:
    launch = platform.running()
    order = platform.change(launch, kind)
    platform.claim(order)
    platform.settle(order, outcome, None if outcome == "completed" else "engine_refused", undone=undone)
    row = platform.instance(launch)
    assert row["status"] == status
    assert (row["private_ip"] is None) == (status == "stopped")
    assert (platform.counted(), held(platform)) == (IS_SMALL, SMALL)


def paused(platform: Platform, **columns: Any) -> Order:
    launch = platform.running(**columns)
    order = platform.change(launch, "PauseInstance")
    platform.claim(order)
    platform.settle(order, "completed")
    return launch


@pytest.mark.parametrize(
    ("kind", "outcome", "status"),
    [
        ("ResumeInstance", "completed", "running"),
        ("ResumeInstance", "failed", "paused"),
        ("StopInstance", "completed", "stopped"),
        ("StopInstance", "cancelled", "paused"),
        ("ResizeInstance", "completed", "paused"),
        ("HealInstance", "completed", "paused"),
        ("DeprovisionInstance", "cancelled", "paused"),
        ("DeprovisionInstance", "completed", "deleted"),
    ],
)
def test_where_what_is_paused_goes(platform: Platform, kind: str, outcome: Any, status: str) -> None:
    launch = paused(platform)
    order = platform.change(launch, kind)
    placement = platform.claim(order)
    assert (placement.was_running, placement.was_paused) == (False, True)
    platform.settle(order, outcome, None if outcome == "completed" else "engine_refused")
    assert platform.instance(launch)["status"] == status


def test_what_is_paused_is_stopped_where_it_moved_to(platform: Platform) -> None:
    launch = paused(platform, wanted_host="one")
    order = platform.change(launch, "MoveInstance")
    placement = platform.run(platform.records.place_beside, PlaceRequest(order=order))
    assert (placement.host, placement.was_running) == ("two", False)
    platform.run(platform.records.switch, order)
    platform.settle(order, "completed")
    assert platform.instance(launch)["status"] == "stopped"


def test_what_is_paused_and_does_not_move_stays_paused(platform: Platform) -> None:
    launch = paused(platform, wanted_host="one")
    order = platform.change(launch, "MoveInstance")
    platform.run(platform.records.place_beside, PlaceRequest(order=order))
    platform.settle(order, "failed", "engine_refused")
    assert platform.instance(launch)["status"] == "paused"
    assert held(platform) == SMALL


def test_quota_is_written_last_so_that_no_two_transactions_wait_for_each_other(
    platform: Platform, worker_engine: Engine
) -> None:
    transactions: list[list[str]] = [[]]

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("UPDATE", "INSERT", "DELETE")):
            transactions[-1].append(" ".join(statement.split()[:2]))

    event.listen(worker_engine, "before_cursor_execute", note)
    event.listen(worker_engine, "commit", lambda _: transactions.append([]))
    launch = platform.running(ports=[AUTO])
    order = resize(platform, launch)
    hold(platform, order)
    platform.settle(order, "completed")
    order = resize(platform, launch, "basic-1")
    platform.settle(order, "failed", "timeout")
    platform.settle(platform.change(launch, "DeprovisionInstance"), "completed")
    platform.settle(platform.launch("other"), "failed", "timeout")
    wrote = [statements for statements in transactions if "UPDATE quotas" in statements]
    assert len(wrote) >= 4
    for statements in wrote:
        assert set(statements[statements.index("UPDATE quotas") :]) == {"UPDATE quotas"}, statements
    assert platform.counted() == (0,) * 6
