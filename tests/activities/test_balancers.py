"""The records of load balancers: what a proxy is told, what runs leave behind, what the platform orders by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from activities import balancer_orders
from activities.balancer_ends import BalancerEnd, BalancerFacts
from activities.balancers import BalancerRecords, Configuration
from activities.database import transaction
from activities.fleet import Limits
from activities.instances import InstanceRecords
from model import haproxy
from model.balancers import AppliedSpec, BalancerSettings
from model.base import new_id
from model.errors import NotReady
from model.workflows import Failure, Order
from tests.activities.conftest import CAPACITY, NoHistories, Platform
from tests.services import Database

LIMITS = Limits(reconcile_interval=15, fence_after=30, deadline_launch=60, capacity=CAPACITY)
FAILED = Failure(code="engine_refused", message="no")


@dataclass
class Balanced:
    """A balancer on host one, with two targets there."""

    platform: Platform
    engine: Engine
    records: BalancerRecords
    front: UUID
    proxy: UUID
    targets: list[UUID]

    @property
    def db(self) -> Database:
        return self.platform.db

    def order(self, kind: str = "UpdateLoadBalancer") -> Order:
        """What accepting a change writes."""
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            resource_type="load_balancer",
            resource_id=self.front,
            name="front",
            request_id="test",
            deadline_seconds=60,
        )
        self.db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
            " VALUES (%s, %s, %s, 'load_balancer', %s, 'test', %s, 'active')",
            *(order.workflow_id, order.project_id, kind, self.front, Jsonb(order.model_dump(mode="json"))),
        )
        status = {"DeprovisionLoadBalancer": "deleting"}.get(kind, "updating")
        self.db.rows("UPDATE load_balancers SET status = %s, workflow_id = %s", status, order.workflow_id)
        return order

    def configure(self, order: Order) -> Configuration:
        told: Configuration = self.platform.run(self.records.configure, order)
        return told

    def settle(self, order: Order, told: Configuration | None = None, failure: Failure | None = None) -> None:
        facts = None
        if told is not None and told.spec is not None:
            applied = AppliedSpec(engine_id="c-1", revision=told.spec.revision)
            facts = BalancerFacts(
                applied=applied, revision=told.spec.revision, digest=told.digest, settings=told.settings
            )
        outcome = "completed" if failure is None else "failed"
        self.platform.run(self.records.settle, BalancerEnd(order=order, outcome=outcome, failure=failure, facts=facts))

    def applied(self) -> None:
        """Make it what it should be."""
        order = self.order()
        self.settle(order, self.configure(order))

    def due(self) -> list[Order]:
        with transaction(self.engine) as session:
            return balancer_orders.order_updates(session, LIMITS)

    def rows(self) -> list[tuple[Any, ...]]:
        rows = self.db.rows("SELECT state, weight FROM lb_targets ORDER BY instance_id")
        return [(row["state"], row["weight"]) for row in rows]

    def row(self) -> dict[str, Any]:
        return self.db.one("SELECT * FROM load_balancers")


@pytest.fixture
def balanced(database: Database, worker_engine: Engine) -> Iterator[Balanced]:
    histories: Any = NoHistories()
    platform = Platform(database, InstanceRecords(worker_engine, CAPACITY, histories))
    front = new_id()
    machines = []
    for number, name in enumerate(("front", "a", "b")):
        launch = platform.launch(name, balancer_id=front if name == "front" else None)
        database.rows(
            "UPDATE instances SET status = 'running', host_id = %s, generation = 1, private_ip = %s,"
            " container_id = 'c-1', updated_at = now() - interval '1 hour' WHERE id = %s",
            *(database.hosts["one"], f"172.17.0.{number + 2}", launch.resource_id),
        )
        machines.append(launch.resource_id)
    database.rows("UPDATE workflows SET state = 'completed', finished_at = now()")
    workflow = database.one("SELECT id FROM workflows LIMIT 1")["id"]
    settings = BalancerSettings(drain_seconds=5).model_dump(mode="json")
    database.rows(
        "INSERT INTO load_balancers (id, project_id, name, status, mode, port, settings, instance_id, workflow_id)"
        " VALUES (%s, %s, 'front', 'active', 'http', 80, %s, %s, %s)",
        *(front, database.project_id, Jsonb(settings), machines[0], workflow),
    )
    for machine in machines[1:]:
        database.rows(
            "INSERT INTO lb_targets (balancer_id, instance_id, project_id, port, state, updated_at)"
            " VALUES (%s, %s, %s, 8080, 'in', now() - interval '1 hour')",
            *(front, machine, database.project_id),
        )
    records = BalancerRecords(worker_engine, histories, LIMITS)
    yield Balanced(platform, worker_engine, records, front, machines[0], machines[1:])


def test_configuration_is_of_all_targets_that_run(balanced: Balanced) -> None:
    first = balanced.configure(balanced.order())
    assert first.host == "one"
    assert first.spec is not None
    assert first.spec.machine.id == balanced.proxy
    assert first.spec.machine.balancer == balanced.front
    assert "172.17.0.3:8080" in first.spec.text and "172.17.0.4:8080" in first.spec.text
    balanced.db.rows("UPDATE instances SET status = 'stopping' WHERE name = 'a'")
    balanced.db.rows("UPDATE lb_targets SET health = 'up'")
    second = balanced.configure(balanced.order())
    assert second.spec is not None
    assert "172.17.0.3" not in second.spec.text
    assert [row["health"] for row in balanced.db.rows("SELECT health FROM lb_targets ORDER BY instance_id")] == [
        None,
        "up",
    ]
    # Elsewhere: over its published port, and at its host's address.
    balanced.db.rows(
        "UPDATE instances SET status = 'running', host_id = %s, ports = %s WHERE name = 'a'",
        *(balanced.db.hosts["two"], Jsonb([{"host_port": 20500, "container_port": 8080, "protocol": "tcp"}])),
    )
    balanced.db.rows("UPDATE hosts SET agent_url = 'https://10.9.8.7:8444' WHERE name = 'two'")
    third = balanced.configure(balanced.order())
    assert third.spec is not None
    assert "10.9.8.7:20500" in third.spec.text
    assert [one.spec.revision for one in (first, second, third) if one.spec] == [1, 2, 3]


def test_target_on_a_host_that_says_a_name_stops_no_other(balanced: Balanced) -> None:
    balanced.db.rows(
        "UPDATE instances SET host_id = %s, ports = %s WHERE name = 'a'",
        *(balanced.db.hosts["two"], Jsonb([{"host_port": 20500, "container_port": 8080, "protocol": "tcp"}])),
    )
    balanced.db.rows("UPDATE hosts SET agent_url = 'https://two.example:8444' WHERE name = 'two'")
    told = balanced.configure(balanced.order())
    assert told.spec is not None
    assert "20500" not in told.spec.text and "172.17.0.4:8080" in told.spec.text
    balanced.db.rows("UPDATE hosts SET agent_url = 'https://[fd00::7]:8444' WHERE name = 'two'")
    told = balanced.configure(balanced.order())
    assert told.spec is not None
    assert "[fd00::7]:20500" in told.spec.text


def test_nothing_is_told_twice(balanced: Balanced) -> None:
    balanced.applied()
    order = balanced.order()
    assert balanced.configure(order).spec is None
    balanced.settle(order)
    assert balanced.row()["status"] == "active"
    # Another machine has not been told.
    balanced.db.rows("UPDATE instances SET container_id = 'c-2' WHERE name = 'front'")
    assert balanced.configure(balanced.order()).spec is not None


def test_proxy_that_is_worked_on_is_waited_for(balanced: Balanced) -> None:
    balanced.db.rows("UPDATE instances SET status = 'provisioning' WHERE name = 'front'")
    with pytest.raises(NotReady):
        balanced.configure(balanced.order())


def test_change_that_fails_was_never_asked_for(balanced: Balanced) -> None:
    balanced.applied()
    order = balanced.order()
    first, second = balanced.targets
    balanced.db.rows(
        "UPDATE lb_targets SET weight = 7, prior_weight = 100, workflow_id = %s WHERE instance_id = %s",
        *(order.workflow_id, first),
    )
    balanced.db.rows(
        "UPDATE lb_targets SET state = 'draining', workflow_id = %s WHERE instance_id = %s", order.workflow_id, second
    )
    changed = BalancerSettings(algorithm="random").model_dump(mode="json")
    balanced.db.rows("UPDATE load_balancers SET settings = %s, settings_by = %s", Jsonb(changed), order.workflow_id)
    told = balanced.configure(order)
    assert told.spec is not None
    assert (len(told.draining), sorted(told.spec.weights.values())) == (1, [0, 7])
    balanced.settle(order, None, FAILED)
    row = balanced.row()
    assert balanced.rows() == [("in", 100), ("in", 100)]
    assert (row["settings"]["algorithm"], row["status"], row["error"]["code"]) == (
        *("round-robin", "active"),
        "engine_refused",
    )
    # What the proxy runs with is not known: it is told again, after a while.
    assert row["applied_digest"] is None
    assert balanced.due() == []
    balanced.db.rows("UPDATE load_balancers SET retry_at = now()")
    (again,) = balanced.due()
    balanced.settle(again, balanced.configure(again))
    assert balanced.row()["error"] is None
    assert balanced.due() == []


def test_targets_that_leave_are_out_when_they_have_drained(balanced: Balanced) -> None:
    balanced.applied()
    order = balanced.order()
    balanced.db.rows(
        "UPDATE lb_targets SET state = 'draining', workflow_id = %s WHERE instance_id = %s",
        *(order.workflow_id, balanced.targets[0]),
    )
    told = balanced.configure(order)
    assert told.spec is not None and list(told.spec.weights.values()).count(0) == 1
    for _ in range(2):
        balanced.platform.run(balanced.records.drained, order)
    last = balanced.configure(order)
    assert last.spec is not None and len(last.spec.weights) == 1
    balanced.settle(order, last)
    balanced.settle(order, last)
    assert balanced.rows() == [("in", 100)]
    assert balanced.row()["applied_revision"] == last.spec.revision


def test_what_the_host_saw_of_a_new_target_is_there_when_the_run_ends(balanced: Balanced) -> None:
    order = balanced.order()
    told = balanced.configure(order)
    assert told.spec is not None
    first, gone = sorted(told.spec.weights)[0], haproxy.server_name(new_id().hex, 1)
    facts = BalancerFacts(
        applied=AppliedSpec(engine_id="c-1", revision=1, health={first: "up", gone: "up"}),
        **{"revision": 1, "digest": told.digest, "settings": told.settings},
    )
    ended = BalancerEnd(order=order, outcome="completed", facts=facts)
    balanced.platform.run(balanced.records.settle, ended)
    rows = balanced.db.rows("SELECT instance_id, health, health_at FROM lb_targets WHERE health IS NOT NULL")
    assert [(row["instance_id"].hex, row["health"]) for row in rows] == [(haproxy.instance_of(first), "up")]
    assert rows[0]["health_at"] is not None


def test_older_answer_that_comes_late_changes_nothing(balanced: Balanced) -> None:
    early, late = balanced.order(), balanced.order()
    first, second = balanced.configure(early), balanced.configure(late)
    balanced.settle(late, second)
    balanced.settle(early, first)
    row = balanced.row()
    assert second.spec is not None
    assert (row["applied_revision"], row["status"], row["workflow_id"]) == (2, "active", late.workflow_id)


@pytest.mark.parametrize(
    "happened",
    [
        "UPDATE instances SET status = 'stopped', private_ip = NULL, updated_at = now() WHERE name = 'a'",
        "UPDATE instances SET private_ip = '172.17.0.99', updated_at = now() WHERE name = 'a'",
        "UPDATE instances SET generation = 2, updated_at = now() WHERE name = 'a'",
        "UPDATE instances SET status = 'deleted', deleted_at = now(), updated_at = now() WHERE name = 'a'",
        "UPDATE instances SET container_id = 'c-2' WHERE name = 'front'",
    ],
)
def test_what_happens_to_instances_is_followed_once(balanced: Balanced, happened: str) -> None:
    balanced.applied()
    assert balanced.due() == []
    balanced.db.rows(happened)
    (order,) = balanced.due()
    assert (order.kind, order.resource_id) == ("UpdateLoadBalancer", balanced.front)
    assert balanced.due() == [], "one at a time"
    told = balanced.configure(order)
    assert told.spec is not None
    engine_id = "c-2" if "c-2" in happened else "c-1"
    balanced.db.rows("UPDATE load_balancers SET applied_engine_id = %s", engine_id)
    balanced.settle(order, told)
    balanced.db.rows("UPDATE load_balancers SET applied_engine_id = %s", engine_id)
    assert balanced.due() == []
    assert len(balanced.rows()) == (1 if "deleted" in happened else 2)


def test_silent_host_is_not_asked(balanced: Balanced) -> None:
    balanced.applied()
    balanced.db.rows("UPDATE instances SET private_ip = '172.17.0.99', updated_at = now() WHERE name = 'a'")
    balanced.db.rows("UPDATE hosts SET last_seen_at = now() - interval '1 minute'")
    assert balanced.due() == []
    balanced.db.rows("UPDATE hosts SET last_seen_at = now()")
    assert len(balanced.due()) == 1


def test_members_join_and_are_released(balanced: Balanced) -> None:
    """What a group does with its members."""
    balanced.applied()
    parent = balanced.order("ScaleGroup")
    balanced.db.rows("UPDATE load_balancers SET status = 'active'")
    balanced.db.rows("UPDATE workflows SET state = 'running' WHERE id = %s", parent.workflow_id)
    member = balanced.targets[0]
    with transaction(balanced.engine, parent.project_id) as session:
        (child,) = balancer_orders.release(session, parent, [member], LIMITS)
    with transaction(balanced.engine, parent.project_id) as session:
        assert balancer_orders.release(session, parent, [member], LIMITS) == [child], "it has not begun"
    assert [state for state, _ in balanced.rows()] == ["draining", "in"]
    told = balanced.configure(child)
    assert len(told.draining) == 1
    balanced.platform.run(balanced.records.drained, child)
    balanced.settle(child, balanced.configure(child))
    with transaction(balanced.engine, parent.project_id) as session:
        assert balancer_orders.release(session, parent, [member], LIMITS) == [], "it is no target any more"


def test_delete_removes_the_proxy_and_forgets_targets(balanced: Balanced) -> None:
    balanced.applied()
    order = balanced.order("DeprovisionLoadBalancer")
    child = balanced.platform.run(balanced.records.remove, order)
    assert (child.kind, child.resource_id) == ("DeprovisionInstance", balanced.proxy)
    assert balanced.platform.run(balanced.records.remove, order) == child
    balanced.db.rows("UPDATE instances SET status = 'deleted' WHERE name = 'front'")
    balanced.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE id = %s", child.workflow_id)
    assert balanced.platform.run(balanced.records.remove, order) is None
    balanced.settle(order)
    assert balanced.row()["status"] == "deleted"
    assert balanced.rows() == []


def test_delete_waits_for_what_works_on_it(balanced: Balanced) -> None:
    busy = balanced.order()
    balanced.configure(busy)
    with pytest.raises(NotReady):
        balanced.platform.run(balanced.records.remove, balanced.order("DeprovisionLoadBalancer"))
