"""The steps of groups, on rows as the API accepts them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from activities import group_orders
from activities.database import transaction
from activities.group_members import AT_ONCE
from activities.group_orders import begin, close_activities, order_due
from activities.groups import GroupEnd, GroupRecords, GroupRound, Release
from activities.project_ends import ProjectEnds
from activities.runs import RunEnded
from model.base import new_id
from model.errors import NotReady, Superseded
from model.groups import Group
from model.scaling import TRIES
from model.workflows import Failure, Order, Outcome
from tests.activities.conftest import NoHistories, Platform
from tests.activities.test_fleet import LIMITS
from tests.activities.test_project_ends import accepted as end_of_project

TEMPLATE: dict[str, Any] = {
    **{"image": "cairn/base", "image_id": None, "image_reference": None, "image_format": None, "image_digest": None},
    **{"instance_type": "basic-1", "vcpus": 1, "memory_mb": 512, "env": {"MODE": "test"}, "secrets": {}, "cmd": None},
    **{"wanted_ports": [{"host_port": None, "container_port": 80, "protocol": "tcp"}], "labels": {}, "tags": []},
    **{"metadata": {}, "backend": "docker", "wanted_host": None, "wanted_labels": {}, "on_host_lost": "replace"},
    **{"ttl_seconds": None, "restart_policy": "no", "health_check": None, "user_data_sha256": None},
    **{"ssh_key_id": None, "authorized_key": None},
}


class Groups:
    """A group's rows, and its runs as a worker would run them."""

    def __init__(self, platform: Platform, engine: Engine) -> None:
        self.platform = platform
        self.db = platform.db
        self.engine = engine
        self.records = GroupRecords(engine, NoHistories(), LIMITS)  # type: ignore[arg-type]

    def create(self, desired: int, name: str = "web", **columns: Any) -> Order:
        order = self._order(new_id(), name)
        values = {
            "id": order.resource_id,
            "project_id": self.db.project_id,
            "name": name,
            "kind": "group",
            "status": "pending",
            "min_instances": 0,
            "max_instances": 100,
            "desired_count": desired,
            "workflow_id": order.workflow_id,
        } | columns
        with self.db.connect() as connection, connection.transaction():
            names = ", ".join(values)
            marks = ", ".join(["%s"] * len(values))
            connection.execute(f"INSERT INTO scaling_groups ({names}) VALUES ({marks})", list(values.values()))
            self._begin(connection, order, "create")
        self.configure(order, 1)
        return order

    def configure(self, of: Order, revision: int, **template: Any) -> None:
        self.db.rows(
            "INSERT INTO group_configurations (group_id, revision, project_id, asked, template)"
            " VALUES (%s, %s, %s, '{}', %s)",
            *(of.resource_id, revision, self.db.project_id, Jsonb(TEMPLATE | template)),
        )

    def wish(self, of: Order, action: str = "scale", kind: str = "ScaleGroup", **columns: Any) -> Order:
        """What accepting another wish writes."""
        order = self._order(of.resource_id, of.name, kind)
        status = "deleting" if kind == "DeprovisionGroup" else "scaling"
        values = columns | {"status": status, "workflow_id": order.workflow_id}
        with self.db.connect() as connection, connection.transaction():
            connection.execute(
                "UPDATE workflows SET cancel_requested_at = now() WHERE resource_id = %s AND state = 'running'",
                [of.resource_id],
            )
            connection.execute(
                "UPDATE workflows SET state = 'cancelled', finished_at = now() WHERE resource_id = %s"
                " AND state = 'accepted'",
                [of.resource_id],
            )
            said = ", ".join(f"{name} = %s" for name in values)
            connection.execute(f"UPDATE scaling_groups SET {said} WHERE id = %s", [*values.values(), of.resource_id])
            with transaction(self.engine) as session:
                session.execute(close_activities(of.resource_id))
            self._begin(connection, order, action)
        return order

    def _order(self, id: UUID, name: str, kind: str = "ScaleGroup") -> Order:
        return Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            resource_type="group",
            resource_id=id,
            name=name,
            request_id="test",
            deadline_seconds=60,
        )

    def _begin(self, connection: Any, order: Order, action: str) -> None:
        connection.execute(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order")'
            " VALUES (%s, %s, %s, 'group', %s, 'test', %s)",
            [order.workflow_id, order.project_id, order.kind, order.resource_id, Jsonb(order.written())],
        )
        connection.execute(
            "INSERT INTO group_activities (id, project_id, group_id, workflow_id, action, cause, desired_before,"
            " desired_after, revision_before, revision_after) SELECT %s, g.project_id, g.id, %s, %s, 'test', coalesce("
            "(SELECT desired_after FROM group_activities WHERE group_id = g.id ORDER BY id DESC LIMIT 1), 0),"
            " g.desired_count, 0, 1 FROM scaling_groups g WHERE g.id = %s",
            [new_id(), order.workflow_id, action, order.resource_id],
        )

    def next(self, order: Order) -> GroupRound:
        found: GroupRound = self.platform.run(self.records.next, order)
        return found

    def settle(self, order: Order, outcome: Outcome, failure: Failure | None = None) -> None:
        self.platform.run(self.records.settle, GroupEnd(order=order, outcome=outcome, failure=failure))

    def carry_out(self, child: Order, outcome: Outcome = "completed", code: str | None = None) -> None:
        run = f"run-{child.workflow_id}"
        if child.kind == "ProvisionInstance":
            self.platform.place(child, run_id=run)
        else:
            self.platform.claim(child, run_id=run)
        self.platform.settle(child, outcome, code)

    def through(self, order: Order) -> None:
        """The whole run, in which everything goes well."""
        for _ in range(50):
            step = self.next(order)
            for child in (*step.launches, *step.removals):
                self.carry_out(child)
            if not (step.launches or step.removals or step.waits):
                self.settle(order, "failed" if step.failure else "completed", step.failure)
                return
        raise AssertionError("it does not come to an end")

    def running(self, desired: int, **columns: Any) -> Order:
        order = self.create(desired, **columns)
        self.through(order)
        return order

    def group(self, of: Order) -> dict[str, Any]:
        return self.db.one("SELECT * FROM scaling_groups WHERE id = %s", of.resource_id)

    def activity(self, of: Order) -> dict[str, Any]:
        return self.db.one("SELECT * FROM group_activities WHERE workflow_id = %s", of.workflow_id)

    def members(self, of: Order) -> list[dict[str, Any]]:
        live = "SELECT * FROM instances WHERE group_id = %s AND status <> 'deleted' ORDER BY id"
        return self.db.rows(live, of.resource_id)

    def due(self) -> list[Order]:
        with transaction(self.engine) as session:
            return order_due(session)

    def fail(self, of: Order, number: int = 1) -> None:
        """Machines that ended by themselves."""
        drift = Jsonb({"kind": "stopped", "changes": {}, "detected_at": "2026-01-01T00:00:00Z"})
        for row in self.members(of)[:number]:
            self.db.rows("UPDATE instances SET drift = %s WHERE id = %s", drift, row["id"])


@pytest.fixture
def groups(platform: Platform, worker_engine: Engine) -> Groups:
    return Groups(platform, worker_engine)


def test_members_are_launched_some_at_a_time_until_there_are_as_many_as_desired(groups: Groups) -> None:
    order = groups.create(AT_ONCE + 3)
    first = groups.next(order)
    assert (len(first.launches), first.removals, groups.group(order)["status"]) == (AT_ONCE, [], "scaling")
    again = groups.next(order)
    assert [child.workflow_id for child in again.launches] == [child.workflow_id for child in first.launches]
    for child in first.launches[:4]:
        groups.carry_out(child)
    more = groups.next(order)
    assert len([child for child in more.launches if child not in first.launches]) == 3
    for child in more.launches:
        groups.carry_out(child)
    last = groups.next(order)
    assert last == GroupRound()
    groups.settle(order, "completed")
    members = groups.members(order)
    assert len(members) == AT_ONCE + 3
    assert {row["status"] for row in members} == {"running"}
    assert {row["env"]["MODE"] for row in members} == {"test"}
    assert all(row["name"].startswith("web-") and row["ports"][0]["host_port"] for row in members)
    assert groups.group(order)["status"] == "active"
    activity = groups.activity(order)
    assert (activity["state"], activity["launched"], activity["removed"]) == ("completed", AT_ONCE + 3, 0)
    total = AT_ONCE + 3
    assert groups.platform.counted()[0:4] == (total, total, total * 512, 0)
    with pytest.raises(RunEnded):
        groups.next(order)


def test_members_are_spread_over_hosts(groups: Groups) -> None:
    # One host is fuller than the other, with what is none of the group's.
    groups.platform.running("other", wanted_host="one", vcpus=8, memory_mb=8192)
    order = groups.running(6)
    hosts = [row["host_id"] for row in groups.members(order)]
    assert sorted(hosts.count(host) for host in set(hosts)) == [3, 3]
    smaller = groups.wish(order, desired_count=2)
    groups.through(smaller)
    assert len({row["host_id"] for row in groups.members(order)}) == 2


def test_what_is_too_much_is_deleted(groups: Groups) -> None:
    order = groups.running(3)
    smaller = groups.wish(order, desired_count=1)
    step = groups.next(smaller)
    assert (step.launches, len(step.removals)) == ([], 2)
    groups.platform.run(groups.records.release, Release(order=smaller, removals=step.removals))
    groups.through(smaller)
    assert len(groups.members(order)) == 1
    assert groups.platform.counted()[0] == 1


def test_newer_wish_waits_for_the_end_of_the_one_under_way_and_takes_over_what_that_began(groups: Groups) -> None:
    order = groups.create(5)
    first = groups.next(order)
    groups.carry_out(first.launches[0])
    newer = groups.wish(order, desired_count=2)
    with pytest.raises(NotReady):
        groups.next(newer)
    assert groups.platform.workflow(newer)["state"] == "running", "it is claimed, and can be called off"
    with pytest.raises(Superseded):
        groups.next(order)
    groups.settle(order, "cancelled", Failure(code="cancelled", message="x"))
    assert groups.platform.workflow(order)["error"]["code"] == "superseded"
    assert groups.activity(order)["state"] == "cancelled"
    assert groups.group(order)["desired_count"] == 2
    step = groups.next(newer)
    assert len(step.removals) == 3, "launches that are not wanted any more"
    assert {child.workflow_id for child in step.launches} <= {child.workflow_id for child in first.launches}
    groups.through(newer)
    assert len(groups.members(order)) == 2
    assert groups.platform.counted() == (2, 2, 1024, 0, 0, 0)


def test_cancelled_it_desires_what_is_there(groups: Groups) -> None:
    order = groups.create(AT_ONCE + 4)
    step = groups.next(order)
    for child in step.launches[:2]:
        groups.carry_out(child)
    groups.settle(order, "cancelled", Failure(code="cancelled", message="x"))
    group = groups.group(order)
    assert (group["status"], group["desired_count"]) == ("active", AT_ONCE)
    assert groups.activity(order)["desired_after"] == AT_ONCE
    for child in step.launches[2:]:
        groups.carry_out(child)
    assert groups.due() == []


def test_cancelled_while_it_replaces_members_it_is_paused(groups: Groups) -> None:
    order = groups.running(3)
    groups.configure(order, 2)
    update = groups.wish(order, "update", revision=2)
    for child in groups.next(update).launches:
        groups.carry_out(child)
    groups.settle(update, "cancelled", Failure(code="cancelled", message="x"))
    group = groups.group(order)
    assert (group["paused"], group["desired_count"]) == (True, 3)


def test_cancelled_while_it_replaces_and_adds_members_it_does_neither(groups: Groups) -> None:
    order = groups.running(3)
    groups.configure(order, 2)
    update = groups.wish(order, "update", revision=2, desired_count=60)
    launches = groups.next(update).launches
    for child in launches:
        groups.carry_out(child)
    groups.settle(update, "cancelled", Failure(code="cancelled", message="x"))
    group = groups.group(order)
    assert (group["paused"], group["desired_count"]) == (True, 3 + len(launches))
    assert groups.due() == []


def test_replacement_that_the_quota_has_no_room_for_fails_and_says_so(groups: Groups) -> None:
    order = groups.running(3)
    groups.db.rows("UPDATE quotas SET instances_limit = 3")
    groups.configure(order, 2)
    step = groups.next(groups.wish(order, "update", revision=2))
    assert step.failure is not None and step.failure.code == "quota_exceeded"
    assert (step.launches, step.removals) == ([], [])


def test_configuration_that_fails_is_left_for_the_one_before(groups: Groups) -> None:
    order = groups.running(4)
    assert groups.db.one("SELECT rolled_out_at FROM group_configurations")["rolled_out_at"] is not None
    groups.configure(order, 2, image="cairn/bad")
    update = groups.wish(order, "update", revision=2)
    for _ in range(20):
        step = groups.next(update)
        assert sum(row["group_revision"] == 1 for row in groups.members(order)) == 4
        for child in step.launches:
            groups.carry_out(child, "failed", "image_not_found")
        for child in step.removals:
            groups.carry_out(child)
        if not (step.launches or step.removals or step.waits):
            break
    assert step.failure is not None
    assert step.failure.code == "image_not_found"
    groups.settle(update, "failed", step.failure)
    group = groups.group(order)
    assert (group["status"], group["revision"], group["backoff_until"]) == ("active", 1, None)
    assert group["error"]["code"] == "image_not_found"
    activity = groups.activity(update)
    assert (activity["rolled_back"], activity["revision_after"], activity["state"]) == (True, 1, "failed")
    assert "group.rolled_back" in groups.platform.events(update)
    assert groups.due() == []


def test_first_configuration_that_fails_is_given_up_and_tried_again_later(groups: Groups) -> None:
    order = groups.create(2)
    for _ in range(10):
        step = groups.next(order)
        for child in step.launches:
            groups.carry_out(child, "failed", "instance_exited")
        for child in step.removals:
            groups.carry_out(child)
        if not (step.launches or step.removals or step.waits):
            break
    assert groups.activity(order)["launched"] >= TRIES
    assert step.failure is not None
    groups.settle(order, "failed", step.failure)
    group = groups.group(order)
    assert (group["status"], group["failures"]) == ("error", 1)
    assert groups.due() == [], "not before its time is over"
    groups.db.rows("UPDATE scaling_groups SET backoff_until = now() - interval '1 second'")
    (again,) = groups.due()
    groups.through(again)
    group = groups.group(order)
    assert (group["status"], group["error"], len(groups.members(order))) == ("active", None, 2)
    assert groups.platform.counted()[0] == 2


def test_quota_lets_as_many_be_launched_as_it_allows(groups: Groups) -> None:
    groups.db.rows("UPDATE quotas SET instances_limit = 3")
    order = groups.create(5)
    groups.through(order)
    group = groups.group(order)
    assert (group["status"], group["error"]["code"]) == ("error", "quota_exceeded")
    assert len(groups.members(order)) == 3
    assert groups.platform.counted()[0] == 3


def test_image_that_is_gone_launches_nothing(groups: Groups) -> None:
    order = groups.running(1)
    groups.configure(order, 2, image_id=str(new_id()))
    update = groups.wish(order, "update", revision=2)
    groups.through(update)
    group = groups.group(order)
    assert (group["status"], group["revision"], group["error"]["code"]) == ("active", 1, "image_not_found")
    assert len(groups.members(order)) == 1


def test_members_of_one_configuration_are_of_one_image(groups: Groups) -> None:
    order = groups.running(1)
    digest = f"sha256:{'1' * 64}"
    groups.db.rows("UPDATE instances SET image_digest = %s", digest)
    groups.through(groups.wish(order, desired_count=2))
    assert {row["image_digest"] for row in groups.members(order)} == {digest}


def test_members_that_fail_are_replaced_and_it_is_said_why(groups: Groups) -> None:
    order = groups.running(3)
    assert groups.due() == []
    groups.fail(order, 3)
    before = {row["id"] for row in groups.members(order)}
    (due,) = groups.due()
    assert groups.due() == [], "once"
    activity = groups.activity(due)
    assert activity["action"] == "replace"
    assert "its machine is stopped" in activity["cause"]
    groups.through(due)
    after = {row["id"] for row in groups.members(order)}
    assert len(after) == 3
    assert not after & before
    group = groups.group(order)
    assert (group["failures"], group["backoff_until"] is not None) == (1, True), "they were young: not at once again"
    groups.db.rows("UPDATE instances SET created_at = now() - interval '1 hour'")
    groups.db.rows("UPDATE scaling_groups SET backoff_until = NULL")
    groups.fail(order)
    (due,) = groups.due()
    assert groups.group(order)["failures"] == 0
    groups.through(due)


def test_whatever_is_wrong_with_one_group_the_others_are_seen_to(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = groups.running(1), groups.create(1, "other")
    groups.through(good)
    for order in (bad, good):
        groups.fail(order)

    def broken(session: Session, group: Group, *args: Any, **more: Any) -> Order:
        found = begin(session, group, *args, **more)
        if group.id == bad.resource_id:
            session.execute(text("SELECT 1 / 0"))
        return found

    monkeypatch.setattr(group_orders, "begin", broken)
    assert [due.resource_id for due in groups.due()] == [good.resource_id]
    assert (groups.group(bad)["status"], groups.group(good)["status"]) == ("active", "scaling")


def test_member_that_somebody_deletes_is_replaced(groups: Groups) -> None:
    order = groups.running(2)
    victim = groups.members(order)[0]
    launch = Order.model_validate(
        groups.db.one('SELECT "order" FROM workflows WHERE resource_id = %s', victim["id"])["order"]
    )
    groups.carry_out(groups.platform.change(launch, "DeprovisionInstance"))
    (due,) = groups.due()
    assert "1 members, and 2 are desired" in groups.activity(due)["cause"]
    groups.through(due)
    assert len(groups.members(order)) == 2


def test_member_whose_host_is_lost_is_moved_and_not_replaced_too(groups: Groups) -> None:
    order = groups.running(2)
    victim = groups.members(order)[0]
    groups.db.rows("UPDATE instances SET status = 'provisioning' WHERE id = %s", victim["id"])
    assert groups.due() == []


def test_member_that_cannot_be_deleted_fails_the_run_and_the_deletion_is_tried_again(groups: Groups) -> None:
    order = groups.running(2)
    ending = groups.wish(order, "delete", "DeprovisionGroup")
    step = groups.next(ending)
    groups.carry_out(step.removals[0], "failed", "engine_unavailable")
    groups.carry_out(step.removals[1])
    step = groups.next(ending)
    assert step.failure is not None
    assert step.failure.code == "not_emptied"
    groups.settle(ending, "failed", step.failure)
    assert groups.group(order)["status"] == "error"
    groups.db.rows("UPDATE scaling_groups SET backoff_until = NULL")
    (again,) = groups.due()
    assert again.kind == "DeprovisionGroup"
    groups.through(again)
    assert groups.group(order)["status"] == "deleted"
    assert groups.platform.counted() == (0, 0, 0, 0, 0, 0)


def test_groups_of_a_project_end_before_its_instances(groups: Groups) -> None:
    order = groups.running(1)
    ends = ProjectEnds(groups.engine, NoHistories(), LIMITS)  # type: ignore[arg-type]
    whole = end_of_project(groups.platform)
    (child,) = groups.platform.run(ends.next, whole).deletions
    assert (child.kind, child.resource_id) == ("DeprovisionGroup", order.resource_id)
    groups.through(child)
    assert groups.platform.run(ends.next, whole).deletions == []
    assert groups.members(order) == []
