"""A restored platform decides nothing by itself, and rows become what machines are."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.database import transaction
from activities.differences import Runs, write_down
from activities.fleet import Limits
from activities.hosts import HostRecords, Inventory
from activities.lifetimes import order_due
from activities.restores import Adoption, RestoreRecords, Survey
from activities.runs import RunEnded
from model.base import new_id
from model.errors import InvalidState, NotReady, PortTaken, Unresolved
from model.instances import OwnedMachine, Port
from model.restores import Difference, FoundMachine
from model.workflows import Order
from tests.activities.conftest import CAPACITY, Platform

LIMITS = Limits(reconcile_interval=10, fence_after=60, deadline_launch=60, capacity=CAPACITY)
NO_RUNS = Runs({}, {}, set(), set())


@pytest.fixture
def records(worker_engine: Engine) -> RestoreRecords:
    return RestoreRecords(worker_engine, None, None)  # type: ignore[arg-type]


def restore(platform: Platform) -> None:
    platform.db.rows("INSERT INTO restores (id, backup_at, epoch) VALUES (gen_random_uuid(), now(), 2)")


def found(platform: Platform, id: UUID, generation: int = 1, **more: Any) -> FoundMachine:
    values = {"engine_id": "e-9", "running": True, "image": "cairn/base", "vcpus": 1, "memory_mb": 512, "name": "web"}
    values |= {"project_id": platform.db.project_id, "ports": [Port(host_port=20500, container_port=80)]}
    return FoundMachine(id=id, generation=generation, **(values | more))


def decide(platform: Platform, kind: str, id: UUID) -> Order:
    order = platform._order(kind, id, "web").model_copy(update={"resource_type": "restore"})
    with platform.db.connect() as connection:
        platform._write(connection, order, None)
        connection.execute("UPDATE workflows SET resource_type = 'restore' WHERE id = %s", [order.workflow_id])
    return order


def note(platform: Platform, records: RestoreRecords, *machines: FoundMachine, host: str = "one") -> None:
    platform.run(records.note, Survey(host=host, machines=list(machines)))


def adopt(platform: Platform, records: RestoreRecords, machine: FoundMachine) -> None:
    order = decide(platform, "AdoptInstance", machine.id)
    claimed = platform.run(records.claim, order)
    assert claimed.host == "one"
    for _ in range(2):  # the answer to the first was lost
        platform.run(records.adopt, Adoption(order=order, host="one", machines=[machine]))


def differ(engine: Engine, runs: Runs = NO_RUNS) -> dict[str, Difference]:
    return {one.kind: one for one in write_down(engine, runs) if one.kind != "host_not_seen"}


def reconcile(engine: Engine, *machines: OwnedMachine) -> list[OwnedMachine]:
    inventory = Inventory(host="one", machines=list(machines))
    leftovers: list[OwnedMachine] = ActivityEnvironment().run(HostRecords(engine, LIMITS).reconcile, inventory)
    return leftovers


def machine(id: UUID, generation: int = 1) -> OwnedMachine:
    return OwnedMachine(engine_id="e-9", id=id, generation=generation, running=True)


def test_machine_without_a_row_gets_one_that_holds_all_that_it_uses(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    restore(platform)
    unknown = found(platform, new_id(), generation=4, labels={"a": "b"}, restart_policy="always")
    note(platform, records, unknown)
    assert differ(worker_engine)["machine_without_row"].id == unknown.id
    adopt(platform, records, unknown)
    row = platform.db.one("SELECT * FROM instances WHERE id = %s", unknown.id)
    assert (row["status"], row["generation"], row["last_generation"]) == ("running", 4, 4)
    assert (row["name"], row["instance_type"], row["labels"]) == ("web", "basic-1", {"a": "b"})
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert platform.counted() == (1, 1, 512, 0, 0, 0)
    assert differ(worker_engine) == {}


def test_launch_whose_run_ended_since_becomes_what_its_machine_is(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    """Settled as a run that ended without its row it would be undone, and its machine a leftover."""
    order = platform.launch(wanted_ports=Jsonb([]))
    platform.place(order)
    restore(platform)
    running = found(platform, order.resource_id, ports=[])
    note(platform, records, running)
    runs = Runs({}, {order.workflow_id: "completed"}, set(), set())
    differences = differ(worker_engine, runs)
    assert differences["machine_differs"].id == order.resource_id
    assert not differences["row_without_run"].blocks
    adopt(platform, records, running)
    assert (platform.instance(order)["status"], platform.workflow(order)["state"]) == ("running", "completed")
    assert platform.counted() == (1, 1, 512, 0, 0, 0)
    assert differ(worker_engine) == {}


def test_row_that_is_older_than_its_machine_becomes_it(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    order = platform.running(wanted_host="two", ports=[{"host_port": None, "container_port": 80, "protocol": "tcp"}])
    restore(platform)
    moved = found(platform, order.resource_id, generation=3, vcpus=2, memory_mb=2048, running=False)
    note(platform, records, moved)
    assert differ(worker_engine)["machine_differs"].generation == 3
    adopt(platform, records, moved)
    row = platform.instance(order)
    assert (row["status"], row["generation"], row["instance_type"]) == ("stopped", 3, "standard-1")
    assert platform.held() == {"vcpus": 2, "memory_mb": 2048, "ports": 1}
    assert platform.counted() == (1, 2, 2048, 0, 0, 0)


def test_look_that_was_asked_for_before_another_says_nothing_after_it(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    """Its note is repeated when what it saw was discarded, and looked for again."""
    restore(platform)
    began = dt.datetime.now(dt.UTC)
    looks = [Survey(host="one", machines=[found(platform, new_id())], asked_at=began)]
    looks.append(Survey(host="one", machines=[], asked_at=began + dt.timedelta(seconds=1)))
    for look in (*looks, looks[0]):
        platform.run(records.note, look)
    assert differ(worker_engine) == {}


def test_row_whose_machine_is_gone_gives_back_all_that_it_held(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    order = platform.running(wanted_host="one", ports=[{"host_port": None, "container_port": 80, "protocol": "tcp"}])
    restore(platform)
    note(platform, records)
    assert differ(worker_engine)["row_without_machine"].id == order.resource_id
    forgetting = decide(platform, "ForgetDifference", order.resource_id)
    for _ in range(2):
        platform.run(records.forget, forgetting)
    assert platform.instance(order)["status"] == "deleted"
    assert platform.held() == {"vcpus": 0, "memory_mb": 0, "ports": 0}
    assert platform.counted() == (0, 0, 0, 0, 0, 0)


def test_port_that_a_row_holds_is_not_given_to_a_machine(platform: Platform, records: RestoreRecords) -> None:
    holder = platform.running(wanted_host="one", ports=[{"host_port": 20500, "container_port": 80, "protocol": "tcp"}])
    restore(platform)
    unknown = found(platform, new_id(), name=None)
    note(platform, records, unknown)
    with pytest.raises(PortTaken, match=str(holder.resource_id)):
        adopt(platform, records, unknown)
    assert platform.counted() == (1, 1, 512, 0, 0, 0)


def test_machine_on_which_a_run_works_is_not_adopted(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    order = platform.launch()
    platform.place(order)
    restore(platform)
    note(platform, records, found(platform, order.resource_id, generation=2))
    differ(worker_engine, Runs({order.workflow_id: "ProvisionInstance"}, {}, set(), set()))
    with pytest.raises(InvalidState, match="still works on it"):
        adopt(platform, records, found(platform, order.resource_id, generation=2))


def test_reconcile_removes_nothing_while_it_is_restored_and_nothing_from_before_afterwards(
    platform: Platform, worker_engine: Engine
) -> None:
    unknown = machine(new_id())
    restore(platform)
    order = platform.db.one("SELECT id FROM restores")
    platform.db.rows("UPDATE restores SET restored_at = now() + interval '1 second'")
    assert reconcile(worker_engine, unknown) == []
    platform.db.rows("UPDATE restores SET finished_at = now() WHERE id = %s", order["id"])
    assert reconcile(worker_engine, unknown) == []
    assert "unknown" in platform.db.one("SELECT warning FROM hosts WHERE name = 'one'")["warning"]
    # What was made since the restore has had a row.
    platform.db.rows("UPDATE restores SET restored_at = now() - interval '1 hour'")
    assert reconcile(worker_engine, unknown) == [unknown]


def test_nothing_is_due_and_nothing_begins(platform: Platform, worker_engine: Engine, records: RestoreRecords) -> None:
    late = platform.running()
    platform.db.rows("UPDATE instances SET ttl_seconds = 1, expires_at = now() - interval '1 hour'")
    waiting = platform.launch("waiting")
    restore(platform)
    with transaction(worker_engine) as session:
        assert order_due(session, LIMITS) == []
    assert platform.instance(late)["status"] == "running"
    with pytest.raises(NotReady):
        platform.place(waiting)
    lost = waiting.model_copy(update={"workflow_id": new_id(), "resource_id": new_id()})
    with pytest.raises(RunEnded):
        platform.place(lost)
    platform.db.rows("UPDATE restores SET finished_at = now()")
    assert platform.place(waiting).spec.generation == 1


def test_finish_is_refused_while_something_is_undecided_and_counts_past_every_generation(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    order = platform.running(wanted_host="one")
    restore(platform)
    for host in ("one", "two"):
        note(
            platform, records, *([found(platform, order.resource_id, generation=7)] if host == "one" else []), host=host
        )
    finishing = decide(platform, "FinishRestore", new_id())
    write_down(worker_engine, NO_RUNS)
    with pytest.raises(Unresolved, match="machine_differs web"):
        records._finish(finishing)
    platform.db.rows("UPDATE restores SET left_alone = %s", Jsonb([str(order.resource_id)]))
    records._finish(finishing)
    assert platform.instance(order)["last_generation"] == 7
    assert reconcile(worker_engine, machine(order.resource_id, 7)) == []
    records._finish(finishing)


def test_files_that_no_row_knows_are_named_hinder_nothing_and_stay_named(
    platform: Platform, worker_engine: Engine, records: RestoreRecords
) -> None:
    restore(platform)
    platform.db.rows("UPDATE hosts SET last_seen_at = NULL")
    id, cache, older = new_id(), new_id(), new_id()
    for kind, tree in (("session", id), ("cache", cache)):
        platform.db.rows(
            "INSERT INTO restore_trees (id, host, restore_id, kind, project_id)"
            " SELECT %s, 'one', id, %s, %s FROM restores",
            *(tree, kind, platform.db.project_id),
        )
    platform.db.rows(
        "INSERT INTO restore_trees (id, host, restore_id, kind, project_id) VALUES (%s, 'one', %s, 'session', %s)",
        *(older, new_id(), platform.db.project_id),
    )
    named = {one.id: one for one in write_down(worker_engine, NO_RUNS)}
    assert set(named) == {id, cache}, "what was told since another restore says nothing"
    assert named[id].kind == "files_without_row" and not named[id].blocks
    assert f"trees/sessions/{id}" in named[id].what
    assert f"trees/caches/{platform.db.project_id}/{cache}" in named[cache].what
    for kind in ("AdoptInstance", "DiscardMachine", "ForgetDifference"):
        with pytest.raises(InvalidState, match="files"):
            platform.run(records.claim, decide(platform, kind, id))
    records._finish(decide(platform, "FinishRestore", new_id()))
    assert platform.db.one("SELECT finished_at FROM restores")["finished_at"] is not None
    # Its operator may come back to them.
    assert {row["resource_id"] for row in platform.db.rows("SELECT resource_id FROM restore_differences")} == {
        id,
        cache,
    }
    assert not platform.db.rows("SELECT 1 FROM restore_trees")
