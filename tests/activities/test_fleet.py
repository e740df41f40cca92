"""Many hosts: drift, moves, lost hosts, drains, as the database sees them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine, text
from sqlalchemy.event import listens_for
from temporalio.testing import ActivityEnvironment

from activities.database import transaction
from activities.drains import AT_ONCE, DrainEnd, HostDrains
from activities.fleet import API, BEAT, TICK, Limits, beat, replace_lost, to_reconcile
from activities.hosts import HostRecords, Inventory
from activities.instances import PlaceRequest, Settlement
from activities.runs import RunEnded
from model.base import new_id
from model.errors import HostIsBack, NoCapacity, NotReady
from model.instances import OwnedMachine, digest_of
from model.workflows import Failure, Order
from tests.activities.conftest import CAPACITY, NoHistories, Platform

LIMITS = Limits(reconcile_interval=10, fence_after=60, deadline_launch=60, capacity=CAPACITY)
PORT = [{"host_port": None, "container_port": 80, "protocol": "tcp"}]


def machine(order: Order, generation: int = 1, **more: Any) -> OwnedMachine:
    values = {"engine_id": f"e-{order.resource_id}", "id": order.resource_id, "generation": generation, "running": True}
    return OwnedMachine(**(values | more))


def reconcile(engine: Engine, *machines: OwnedMachine, host: str = "one") -> list[OwnedMachine]:
    found: list[OwnedMachine] = ActivityEnvironment().run(
        HostRecords(engine, LIMITS).reconcile, Inventory(host=host, machines=list(machines))
    )
    return found


def settled_a_while_ago(platform: Platform) -> None:
    platform.db.rows("UPDATE instances SET updated_at = now() - interval '1 minute'")


def orders(platform: Platform, kind: str) -> list[dict[str, Any]]:
    return platform.db.rows("SELECT * FROM workflows WHERE kind = %s ORDER BY id", kind)


# Drift


def test_drift_is_recorded_once_and_goes_when_it_is_gone(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(wanted_host="one")
    settled_a_while_ago(platform)
    for _ in range(3):
        assert reconcile(worker_engine) == []
    drift = platform.instance(order)["drift"]
    assert drift["kind"] == "missing"
    told = platform.db.rows("SELECT type FROM events WHERE resource_id = %s ORDER BY id", order.resource_id)
    assert [row["type"] for row in told].count("instance.drifted") == 1
    reconcile(worker_engine, machine(order))
    assert platform.instance(order)["drift"] is None
    assert orders(platform, "HealInstance") == []


def test_what_a_run_works_on_or_changed_after_the_look_began_has_not_drifted(
    platform: Platform, worker_engine: Engine
) -> None:
    order = platform.running(wanted_host="one")
    platform.db.rows("UPDATE hosts SET reconciled_at = now() - interval '1 second'")
    reconcile(worker_engine)
    assert platform.instance(order)["drift"] is None
    assert platform.db.one("SELECT reconciled FROM hosts WHERE name = 'one'")["reconciled"] is None
    settled_a_while_ago(platform)
    platform.change(order, "StopInstance")
    reconcile(worker_engine)
    assert platform.instance(order)["drift"] is None


def test_heal_is_ordered_with_its_back_off(platform: Platform, worker_engine: Engine) -> None:
    platform.db.rows("UPDATE projects SET drift_policy = 'heal'")
    order = platform.running(wanted_host="one")
    for expected in (1, 1, 2):
        settled_a_while_ago(platform)
        reconcile(worker_engine, machine(order, running=False))
        assert len(orders(platform, "HealInstance")) == expected
        last = Order.model_validate(orders(platform, "HealInstance")[-1]["order"])
        if platform.instance(order)["status"] == "starting":
            platform.claim(last)
            platform.settle(last, "failed", "engine_refused")
            assert platform.instance(order)["status"] == "running"
        elif expected == 1:
            platform.db.rows(
                "UPDATE instances SET drift = jsonb_set(drift, '{heal_after}', %s)",
                Jsonb((dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)).isoformat()),
            )
    assert platform.instance(order)["drift"]["heals"] == 2


def test_machine_that_should_not_run_is_stopped(platform: Platform, worker_engine: Engine) -> None:
    platform.db.rows("UPDATE projects SET drift_policy = 'heal'")
    order = platform.running(wanted_host="one")
    stop = platform.change(order, "StopInstance")
    platform.claim(stop)
    platform.settle(stop, "completed")
    settled_a_while_ago(platform)
    reconcile(worker_engine, machine(order))
    healing = Order.model_validate(orders(platform, "HealInstance")[-1]["order"])
    assert platform.instance(order)["drift"]["heals"] == 1
    platform.claim(healing)
    platform.settle(healing, "completed")
    assert platform.instance(order)["status"] == "stopped"


def test_what_the_fence_stopped_is_started_again_and_what_ended_by_itself_is_reported(
    platform: Platform, worker_engine: Engine
) -> None:
    order = platform.running(wanted_host="one", on_host_lost="fence")
    settled_a_while_ago(platform)
    down = Inventory(host="one", machines=[machine(order, running=False)])
    records = HostRecords(worker_engine, LIMITS)
    ActivityEnvironment().run(records.reconcile, down)
    assert platform.instance(order)["drift"]["kind"] == "stopped"
    assert orders(platform, "HealInstance") == []
    stopped = down.model_copy(update={"fence_stopped": [order.resource_id], "fence_closed": True})
    ActivityEnvironment().run(records.reconcile, stopped)
    assert orders(platform, "HealInstance") == [], "not while its lease has lapsed"
    assert platform.db.one("SELECT reconciled FROM hosts WHERE name = 'one'")["reconciled"] is None
    ActivityEnvironment().run(records.reconcile, stopped.model_copy(update={"fence_closed": False}))
    assert len(orders(platform, "HealInstance")) == 1


def test_operator_is_told_of_many_unknown_machines_once(platform: Platform, worker_engine: Engine) -> None:
    unknown = [OwnedMachine(engine_id=str(n), id=new_id(), generation=1, running=True) for n in range(8)]
    for _ in range(2):
        assert reconcile(worker_engine, *unknown) == []
    assert "8 of 8" in platform.db.one("SELECT warning FROM hosts WHERE name = 'one'")["warning"]
    assert len(platform.db.rows("SELECT 1 FROM events WHERE type = 'host.warning'")) == 1
    assert reconcile(worker_engine, *unknown[:2]) == unknown[:2]
    assert platform.db.one("SELECT warning FROM hosts WHERE name = 'one'")["warning"] is None


# Which hosts are looked at


def wanted(engine: Engine) -> list[str]:
    with transaction(engine) as session:
        return to_reconcile(session, LIMITS)


def test_only_hosts_that_changed_are_looked_at(platform: Platform, worker_engine: Engine) -> None:
    assert wanted(worker_engine) == []  # nothing was said yet of what they hold
    order = platform.running(wanted_host="one")
    settled_a_while_ago(platform)
    found = [machine(order)]
    platform.db.rows("UPDATE hosts SET inventory = %s WHERE name = 'one'", digest_of(found))
    assert wanted(worker_engine) == ["one"]
    reconcile(worker_engine, *found)
    platform.db.rows("UPDATE hosts SET reconciled_at = now() - interval '30 seconds'")
    assert wanted(worker_engine) == []
    platform.db.rows("UPDATE hosts SET inventory = 'x' WHERE name = 'one'")
    assert wanted(worker_engine) == ["one"]
    assert wanted(worker_engine) == [], "again only after a while"
    platform.db.rows(
        "UPDATE hosts SET inventory = reconciled, reconciled_at = now() - interval '30 seconds' WHERE name = 'one'"
    )
    assert wanted(worker_engine) == []
    platform.db.rows("UPDATE instances SET updated_at = now() - interval '20 seconds'")
    assert wanted(worker_engine) == ["one"]


def test_silent_host_is_not_looked_at(platform: Platform, worker_engine: Engine) -> None:
    platform.db.rows("UPDATE hosts SET inventory = 'x', last_seen_at = now() - interval '20 seconds'")
    assert wanted(worker_engine) == []


def test_look_at_hosts_reads_what_changed_and_not_all_that_is_there(platform: Platform, worker_engine: Engine) -> None:
    platform.running(wanted_host="one")
    asked: list[tuple[str, Any]] = []
    with transaction(worker_engine) as session:

        @listens_for(session.connection(), "before_cursor_execute")
        def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append((statement, parameters))

        to_reconcile(session, LIMITS)
        statement, parameters = asked[-1]
        session.execute(text("SET LOCAL enable_seqscan = off"))  # as where there are many
        plan = "\n".join(session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
    assert "ix_instances_host" in plan
    assert "updated_at > hosts_1.reconciled_at" in plan.partition("Index Cond")[2].partition("\n")[0]


# Placement


def test_host_without_a_lease_takes_no_placement(platform: Platform) -> None:
    platform.db.rows("UPDATE hosts SET last_seen_at = now() - interval '20 seconds' WHERE name = 'one'")
    assert {platform.place(platform.launch(f"w-{n}")).host for n in range(4)} == {"two"}
    platform.db.rows("UPDATE hosts SET last_seen_at = NULL")
    late = platform.launch("late")
    with pytest.raises(NotReady, match="not been heard of"):
        platform.place(late)
    platform.waited = dt.timedelta(seconds=21)
    with pytest.raises(NotReady):  # nothing says that the platform itself was there all the while
        platform.place(late)
    for seconds in (29, 31):
        beats(platform, seconds)
        with pytest.raises(NotReady if seconds < 30 else NoCapacity):
            platform.place(late)


def test_labels_choose_the_host(platform: Platform) -> None:
    platform.db.rows("UPDATE hosts SET labels = %s WHERE name = 'two'", Jsonb({"disk": "ssd", "zone": "a"}))
    chosen = [platform.launch(f"w-{n}", wanted_labels=Jsonb({"disk": "ssd"})) for n in range(3)]
    assert {platform.place(order).host for order in chosen} == {"two"}
    with pytest.raises(NoCapacity):
        platform.place(platform.launch("none", wanted_labels=Jsonb({"disk": "tape"})))


def test_lost_host_is_left_and_a_busy_one_is_not(platform: Platform) -> None:

    order = platform.launch(ports=PORT)
    first = platform.place(order)
    request = PlaceRequest(order=order, silent_host=first.host)
    assert platform.run(platform.records.place, request) == first
    platform.db.rows("UPDATE hosts SET last_seen_at = now() - interval '20 seconds' WHERE name = %s", first.host)
    second = platform.run(platform.records.place, request)
    assert second.host != first.host
    assert second.spec.generation == 2
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert platform.run(platform.records.place, request) == second


# Moves


def move(platform: Platform, order: Order, **more: Any) -> Order:
    return platform.change(order, "MoveInstance", **more)


def test_move_holds_both_hosts_until_it_is_switched(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(ports=PORT, wanted_host="one")
    moving = move(platform, order)
    for _ in range(2):  # repeated: the same answer
        placement = platform.run(platform.records.place_beside, PlaceRequest(order=moving))
        assert (placement.host, placement.leaves, placement.spec.generation) == ("two", "one", 2)
        assert placement.old_spec is not None
        assert placement.old_spec.generation == 1
    assert platform.held() == {"vcpus": 2, "memory_mb": 1024, "ports": 2}
    assert reconcile(worker_engine, machine(order)) == []
    assert reconcile(worker_engine, machine(order, 2), host="two") == []
    for _ in range(2):
        platform.run(platform.records.switch, moving)
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert reconcile(worker_engine, machine(order)) == [machine(order)]
    platform.settle(moving, "completed")
    row = platform.instance(order)
    assert (row["status"], row["generation"], row["next_host_id"]) == ("running", 2, None)
    assert row["ports"] == [port.model_dump() for port in placement.spec.ports]


@pytest.mark.parametrize("undone", ["stay", "settle"])
def test_move_that_is_given_up_gives_back_what_it_held(platform: Platform, undone: str) -> None:
    order = platform.running(ports=PORT, wanted_host="one")
    before = platform.instance(order)
    moving = move(platform, order)
    platform.run(platform.records.place_beside, PlaceRequest(order=moving))
    if undone == "stay":
        for _ in range(2):
            platform.run(platform.records.stay, moving)
    platform.settle(moving, "failed", "engine_refused")
    after = platform.instance(order)
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert [after[name] for name in ("status", "host_id", "generation", "ports")] == [
        before[name] for name in ("status", "host_id", "generation", "ports")
    ]
    again = move(platform, order)
    assert platform.run(platform.records.place_beside, PlaceRequest(order=again)).spec.generation == 3, (
        "a generation never comes back"
    )


# Lost hosts


def lose(platform: Platform, seconds: int, steady: int = 3600) -> None:
    platform.db.rows("UPDATE hosts SET last_seen_at = now() - make_interval(secs => %s) WHERE name = 'one'", seconds)
    beats(platform, steady)


def beats(platform: Platform, steady: int) -> None:
    """API and tick have worked for so many seconds."""
    platform.db.rows("DELETE FROM pulses")
    for process in (API, TICK):
        platform.db.rows(
            "INSERT INTO pulses (process, seen_at, since) VALUES (%s, now(), now() - make_interval(secs => %s))",
            *(process, steady),
        )


def replaced(engine: Engine) -> int:
    with transaction(engine) as session:
        return replace_lost(session, LIMITS)


def test_what_is_kept_waits_for_its_host(platform: Platform, worker_engine: Engine) -> None:
    platform.running(wanted_host="one")
    lose(platform, 10_000)
    assert replaced(worker_engine) == 0


def test_what_is_replaced_moves_after_lease_and_margin_once(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 25)
    assert replaced(worker_engine) == 0
    lose(platform, 31)
    assert replaced(worker_engine) == 1
    assert replaced(worker_engine) == 0
    (row,) = orders(platform, "MoveInstance")
    moving = Order.model_validate(row["order"])
    assert moving.host_lost
    placement = platform.run(platform.records.place_beside, PlaceRequest(order=moving))
    assert (placement.host, placement.leaves) == ("two", None)
    platform.settle(moving, "failed", "engine_refused")
    assert platform.instance(order)["status"] == "running"
    assert replaced(worker_engine) == 0, "not at once again"
    pass_minutes(platform, 2)
    assert replaced(worker_engine) == 1


def fail_move(platform: Platform, engine: Engine, code: str) -> None:
    assert replaced(engine) == 1
    (*_, row) = orders(platform, "MoveInstance")
    moving = Order.model_validate(row["order"])
    platform.run(platform.records.settle, failing(moving, code))


def pass_minutes(platform: Platform, minutes: float) -> None:
    platform.db.rows(
        "UPDATE workflows SET finished_at = finished_at - make_interval(secs => %s) WHERE kind = 'MoveInstance'",
        minutes * 60,
    )


def test_move_that_fails_is_asked_for_less_and_less_often_until_the_host_was_back(
    platform: Platform, worker_engine: Engine
) -> None:
    platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 100_000)
    for wait in (1, 2, 4, 8, 16, 30, 30):
        fail_move(platform, worker_engine, "engine_refused")
        pass_minutes(platform, wait - 0.1)
        assert replaced(worker_engine) == 0
        pass_minutes(platform, 0.2)
    fail_move(platform, worker_engine, "engine_refused")
    platform.db.rows("UPDATE workflows SET created_at = now() - interval '1 hour' WHERE kind = 'MoveInstance'")
    lose(platform, 60)
    pass_minutes(platform, 1.1)
    fail_move(platform, worker_engine, "engine_refused")
    pass_minutes(platform, 1.1)
    assert replaced(worker_engine) == 1


def test_move_that_found_no_room_is_asked_for_soon_after_there_is_some(
    platform: Platform, worker_engine: Engine
) -> None:
    platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 100_000)
    platform.db.rows("UPDATE hosts SET state = 'cordoned' WHERE name = 'two'")
    for _ in range(5):
        fail_move(platform, worker_engine, "no_capacity")
        pass_minutes(platform, 30.1)
    fail_move(platform, worker_engine, "no_capacity")
    pass_minutes(platform, 5.1)
    assert replaced(worker_engine) == 0
    platform.db.rows("UPDATE hosts SET state = 'ready' WHERE name = 'two'")
    assert replaced(worker_engine) == 1


def test_what_is_fenced_moves_only_when_its_agent_must_have_stopped_it(
    platform: Platform, worker_engine: Engine
) -> None:
    platform.running(wanted_host="one", on_host_lost="fence")
    lose(platform, 74)
    assert replaced(worker_engine) == 0
    lose(platform, 76)
    assert replaced(worker_engine) == 1


def test_a_fence_that_was_granted_longer_is_waited_for(platform: Platform, worker_engine: Engine) -> None:
    """The settings say 60 s by now: the host has heard of something else."""
    order = platform.running(wanted_host="one", on_host_lost="fence")
    platform.db.rows("UPDATE hosts SET fence_after = 200")
    lose(platform, 214)
    assert replaced(worker_engine) == 0
    launched = platform.launch("late", wanted_host="two", on_host_lost="fence")
    placed = platform.place(launched)
    platform.db.rows("UPDATE hosts SET last_seen_at = now() - interval '210 seconds' WHERE name = 'two'")
    silent = PlaceRequest(order=launched, silent_host="two")
    assert platform.run(platform.records.place, silent) == placed
    lose(platform, 216)
    assert replaced(worker_engine) == 1
    platform.db.rows("UPDATE hosts SET last_seen_at = now() WHERE name = 'two'")
    (row,) = orders(platform, "MoveInstance")
    beside = platform.run(platform.records.place_beside, PlaceRequest(order=Order.model_validate(row["order"])))
    assert (beside.host, beside.fence_seconds) == ("two", 215)
    assert order.resource_id == beside.spec.id


def test_a_tick_that_is_rare_is_not_taken_for_one_that_is_away(platform: Platform, worker_engine: Engine) -> None:
    platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 100)
    platform.db.rows("UPDATE pulses SET seen_at = now() - interval '61 seconds' WHERE process = 'tick'")
    assert replaced(worker_engine) == 0
    rare = LIMITS.model_copy(update={"tick_seconds": 60})
    with transaction(worker_engine) as session:
        session.execute(BEAT, beat(TICK, rare.tick_away))
        assert replace_lost(session, rare) == 1


@pytest.mark.parametrize("away", [API, TICK])
def test_silence_says_nothing_after_an_outage_of_our_own(platform: Platform, worker_engine: Engine, away: str) -> None:
    platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 10_000)
    platform.db.rows("UPDATE pulses SET seen_at = now() - interval '1 hour' WHERE process = %s", away)
    assert replaced(worker_engine) == 0
    with transaction(worker_engine) as session:
        session.execute(BEAT, beat(away))
    assert replaced(worker_engine) == 0, "hosts had no time yet to renew"
    platform.db.rows("UPDATE pulses SET since = now() - interval '31 seconds'")
    assert replaced(worker_engine) == 1


# Drains


@pytest.fixture
def drains(worker_engine: Engine) -> HostDrains:
    return HostDrains(worker_engine, NoHistories(), LIMITS)  # type: ignore[arg-type]


def drain(platform: Platform, host: str = "one") -> Order:
    order = Order(
        workflow_id=new_id(),
        project_id=platform.db.project_id,
        kind="DrainHost",
        resource_type="host",
        resource_id=platform.db.hosts[host],
        name=host,
        request_id="test",
        deadline_seconds=60,
    )
    platform.db.rows(
        'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
        " VALUES (%s, %s, 'DrainHost', 'host', %s, 'test', %s, 'ready')",
        *(order.workflow_id, order.project_id, order.resource_id, Jsonb(order.model_dump(mode="json"))),
    )
    platform.db.rows("UPDATE hosts SET state = 'draining' WHERE name = %s", host)
    return order


def carry_out(platform: Platform, child: Order, outcome: str = "completed") -> None:
    platform.run(platform.records.place_beside, PlaceRequest(order=child), run_id=f"run-{child.workflow_id}")
    if outcome == "completed":
        platform.run(platform.records.switch, child)
    platform.settle(child, outcome, None if outcome == "completed" else "engine_refused")  # type: ignore[arg-type]


def test_drain_moves_a_few_at_a_time_until_nothing_is_left(platform: Platform, drains: HostDrains) -> None:
    for n in range(AT_ONCE + 2):
        platform.running(f"w-{n}", wanted_host="one")
    order = drain(platform)
    first = platform.run(drains.next, order)
    assert (len(first.moves), first.busy, first.stuck) == (AT_ONCE, 2, [])
    again = platform.run(drains.next, order)
    assert {child.workflow_id for child in again.moves} == {child.workflow_id for child in first.moves}
    for child in first.moves:
        carry_out(platform, child)
    second = platform.run(drains.next, order)
    assert (len(second.moves), second.busy) == (2, 0)
    carry_out(platform, second.moves[0])
    carry_out(platform, second.moves[1], "failed")
    last = platform.run(drains.next, order)
    assert (last.moves, last.busy, len(last.stuck)) == ([], 0, 1)
    platform.run(drains.settle, DrainEnd(order=order, outcome="failed", failure=Failure(code="x", message="x")))
    assert platform.db.one("SELECT state FROM hosts WHERE name = 'one'")["state"] == "cordoned"


def test_drain_that_ends_takes_its_moves_that_have_not_begun_with_it(platform: Platform, drains: HostDrains) -> None:
    launched = platform.running(wanted_host="one")
    order = drain(platform)
    (child,) = platform.run(drains.next, order).moves
    assert platform.instance(launched)["status"] == "provisioning"
    for _ in range(2):
        platform.run(drains.settle, DrainEnd(order=order, outcome="cancelled"))
    assert platform.workflow(child)["state"] == "cancelled"
    assert platform.instance(launched)["status"] == "running"
    assert platform.db.one("SELECT state FROM hosts WHERE name = 'one'")["state"] == "ready"
    with pytest.raises(RunEnded):
        platform.run(drains.next, order)


def test_what_a_drain_found_no_room_for_is_as_well_as_before(platform: Platform, drains: HostDrains) -> None:
    launched = platform.running(wanted_host="one")
    order = drain(platform)
    (child,) = platform.run(drains.next, order).moves
    platform.settle(child, "failed", "no_capacity")
    row = platform.instance(launched)
    assert (row["status"], row["error"]) == ("running", None)
    (stuck,) = platform.run(drains.next, order).stuck
    assert "no_capacity" in stuck


def test_drain_waits_for_what_others_work_on(platform: Platform, drains: HostDrains) -> None:
    platform.place(platform.launch(wanted_host="one"))
    order = drain(platform)
    found = platform.run(drains.next, order)
    assert (found.moves, found.busy) == ([], 1)


def test_drain_that_goes_on_in_a_new_run_owns_its_row_still(platform: Platform, drains: HostDrains) -> None:
    platform.running(wanted_host="one")
    order = drain(platform)
    (child,) = platform.run(drains.next, order, run_id="first").moves
    with pytest.raises(RunEnded):
        platform.run(drains.next, order, run_id="second")
    carry_out(platform, child)
    goes_on = order.model_copy(update={"first_run_id": "first", "deadline_seconds": 5})
    for _ in range(2):
        assert platform.run(drains.next, goes_on, run_id="second").moves == []
    assert platform.workflow(order)["run_id"] == "first"
    platform.run(drains.settle, DrainEnd(order=goes_on, outcome="completed"))
    assert platform.workflow(order)["state"] == "completed"


# What an attack found


def test_host_that_is_back_keeps_its_instance(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(wanted_host="one", on_host_lost="replace")
    lose(platform, 31)
    assert replaced(worker_engine) == 1
    moving = Order.model_validate(orders(platform, "MoveInstance")[0]["order"])
    platform.db.rows("UPDATE hosts SET last_seen_at = now() WHERE name = 'one'")
    with pytest.raises(HostIsBack):
        platform.run(platform.records.place_beside, PlaceRequest(order=moving))
    platform.run(platform.records.settle, failing(moving, "host_is_back"))
    row = platform.instance(order)
    assert (row["status"], row["error"], row["generation"]) == ("running", None, 1)


def failing(order: Order, code: str) -> Settlement:
    return Settlement(order=order, outcome="failed", failure=Failure(code=code, message=code))


def test_fenced_launch_leaves_a_silent_host_only_when_it_must_have_been_stopped_there(platform: Platform) -> None:
    order = platform.launch(on_host_lost="fence")
    first = platform.place(order)
    request = PlaceRequest(order=order, silent_host=first.host)
    for silent, leaves in ((30, False), (44, False), (46, True)):
        platform.db.rows(
            "UPDATE hosts SET last_seen_at = now() - make_interval(secs => %s) WHERE name = %s", silent, first.host
        )
        assert (platform.run(platform.records.place, request).host != first.host) is leaves


def test_placement_of_an_older_version_is_no_unknown_machine(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(wanted_host="one")
    platform.db.rows("UPDATE instances SET last_generation = 0")
    assert reconcile(worker_engine, machine(order)) == []
    moving = move(platform, order)
    assert platform.run(platform.records.place_beside, PlaceRequest(order=moving)).spec.generation == 2


def test_what_changed_while_the_inventory_was_on_its_way_has_not_drifted(
    platform: Platform, worker_engine: Engine
) -> None:
    order = platform.running(wanted_host="one")
    platform.db.rows("UPDATE hosts SET reconciled_at = now() + interval '1 minute'")
    platform.db.rows("UPDATE instances SET updated_at = now() - interval '5 seconds'")
    asked_at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=10)
    looked = Inventory(host="one", machines=[], asked_at=asked_at)
    ActivityEnvironment().run(HostRecords(worker_engine, LIMITS).reconcile, looked)
    assert platform.instance(order)["drift"] is None


@pytest.mark.parametrize(
    ("policy", "silent", "expected"),
    [
        ("keep", 3600, "stuck"),
        ("keep", 20, "wait"),
        ("replace", 3600, "lost"),
        ("replace", 20, "wait"),
        ("fence", 70, "wait"),
        ("fence", 80, "lost"),
    ],
)
def test_drain_of_a_silent_host_goes_by_what_its_instances_say(
    platform: Platform, drains: HostDrains, policy: str, silent: int, expected: str
) -> None:
    platform.running(wanted_host="one", on_host_lost=policy)
    lose(platform, silent)
    found = platform.run(drains.next, drain(platform))
    if expected == "lost":
        assert [child.host_lost for child in found.moves] == [True]
    else:
        assert (found.moves, found.busy, len(found.stuck)) == ([], int(expected == "wait"), int(expected == "stuck"))


@pytest.mark.parametrize("policy", ["keep", "replace", "fence"])
def test_drain_after_an_outage_of_our_own_waits_for_hosts_to_be_heard_of(
    platform: Platform, drains: HostDrains, policy: str
) -> None:
    platform.running(wanted_host="one", on_host_lost=policy)
    lose(platform, 3600)
    platform.db.rows("UPDATE pulses SET since = now() WHERE process = %s", API)
    found = platform.run(drains.next, drain(platform))
    assert (found.moves, found.busy, found.stuck) == ([], 1, [])


def test_drain_waits_for_the_delete_that_called_a_move_off(platform: Platform, drains: HostDrains) -> None:
    platform.running(wanted_host="one")
    order = drain(platform)
    (child,) = platform.run(drains.next, order).moves
    platform.run(platform.records.place_beside, PlaceRequest(order=child), run_id=f"run-{child.workflow_id}")
    delete = platform.change(child, "DeprovisionInstance")
    platform.settle(child, "cancelled", "cancelled")
    found = platform.run(drains.next, order)
    assert (found.moves, found.busy, found.stuck) == ([], 1, [])
    platform.claim(delete, run_id="delete")
    platform.settle(delete, "completed")
    found = platform.run(drains.next, order)
    assert (found.moves, found.busy, found.stuck) == ([], 0, [])


# What is paused


def pause(platform: Platform, order: Order) -> None:
    pausing = platform.change(order, "PauseInstance")
    platform.claim(pausing)
    platform.settle(pausing, "completed")
    settled_a_while_ago(platform)


@pytest.mark.parametrize(("is_running", "is_paused", "kind"), [(True, False, "running"), (False, False, "stopped")])
def test_paused_machine_that_runs_or_ended_has_drifted(
    platform: Platform, worker_engine: Engine, is_running: bool, is_paused: bool, kind: str
) -> None:
    platform.db.rows("UPDATE projects SET drift_policy = 'heal'")
    order = platform.running(wanted_host="one")
    pause(platform, order)
    reconcile(worker_engine, machine(order, running=False, paused=True))
    assert platform.instance(order)["drift"] is None
    reconcile(worker_engine, machine(order, running=is_running, paused=is_paused))
    assert platform.instance(order)["drift"]["kind"] == kind
    healing = Order.model_validate(orders(platform, "HealInstance")[-1]["order"])
    assert platform.claim(healing).was_paused
    platform.settle(healing, "completed")
    assert platform.instance(order)["status"] == "paused"


def test_machine_that_somebody_paused_has_drifted(platform: Platform, worker_engine: Engine) -> None:
    order = platform.running(wanted_host="one")
    settled_a_while_ago(platform)
    reconcile(worker_engine, machine(order, running=False, paused=True))
    assert platform.instance(order)["drift"]["kind"] == "paused"


def test_what_is_paused_waits_for_its_host_whatever_its_policy(platform: Platform, worker_engine: Engine) -> None:
    for policy in ("replace", "fence"):
        pause(platform, platform.running(policy, wanted_host="one", on_host_lost=policy))
    lose(platform, 10_000)
    assert replaced(worker_engine) == 0


def test_drain_moves_what_is_paused(platform: Platform, drains: HostDrains) -> None:
    launched = platform.running(wanted_host="one")
    pause(platform, launched)
    (child,) = platform.run(drains.next, drain(platform)).moves
    carry_out(platform, child)
    row = platform.instance(launched)
    assert (row["status"], row["host_id"]) == ("stopped", platform.db.hosts["two"])
