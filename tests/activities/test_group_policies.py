"""Policies, judged by what was measured of members."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from activities import group_policies
from activities.group_orders import begin
from model.base import new_id
from model.groups import Group
from model.policies import Seen, Verdict, judge
from model.workflows import Order
from tests.activities.conftest import Platform
from tests.activities.test_groups import Groups


@pytest.fixture
def groups(platform: Platform, worker_engine: Engine) -> Groups:
    return Groups(platform, worker_engine)


def policy(groups: Groups, of: Order, **columns: Any) -> None:
    values = {"id": new_id(), "project_id": groups.db.project_id, "group_id": of.resource_id}
    values |= {"name": "one", "metric_type": "cpu", "target_value": 50} | columns
    marks = ", ".join(["%s"] * len(values))
    groups.db.rows(f"INSERT INTO group_policies ({', '.join(values)}) VALUES ({marks})", *values.values())


def measured(groups: Groups, cpu: float, memory: int = 1 << 28) -> None:
    """Every member is seen to use this, and has been running for long."""
    groups.db.rows("UPDATE instances SET created_at = now() - interval '1 hour'")
    groups.db.rows("DELETE FROM samples")
    groups.db.rows(
        "INSERT INTO samples (project_id, instance_id, seconds, at, cpu_percent, memory_bytes, pids, rx_bytes,"
        " tx_bytes, read_bytes, written_bytes)"
        " SELECT project_id, id, 10, now() - interval '15 seconds', %s, %s, 1, 0, 0, 0, 0"
        " FROM instances WHERE group_id IS NOT NULL AND status = 'running'",
        *(cpu, memory),
    )


def judged(groups: Groups) -> list[Order]:
    return group_policies.order_due(groups.engine)


def test_busy_group_grows_and_then_waits_for_its_cool_down(groups: Groups) -> None:
    order = groups.running(2)
    policy(groups, order)
    assert judged(groups) == [], "nothing is measured"
    measured(groups, 100)
    (due,) = judged(groups)
    assert judged(groups) == [], "a run works on it"
    activity = groups.activity(due)
    assert (activity["action"], activity["desired_before"], activity["desired_after"]) == ("scale", 2, 4)
    assert activity["metric"] == {"metric_type": "cpu", "value": 100, "target_value": 50}
    assert activity["cause"] == "policy one: cpu is 100, and its target 50"
    groups.through(due)
    assert len(groups.members(order)) == 4
    measured(groups, 100)
    assert judged(groups) == [], "not before its cool-down is over"
    groups.db.rows("UPDATE group_policies SET acted_at = now() - interval '2 minutes'")
    assert len(judged(groups)) == 1


def test_idle_group_shrinks_only_when_it_has_been_so_for_a_while(groups: Groups) -> None:
    order = groups.running(4)
    policy(groups, order)
    measured(groups, 10)
    assert judged(groups) == []
    since = groups.db.one("SELECT low_since FROM group_policies")["low_since"]
    assert since is not None
    measured(groups, 50)
    assert judged(groups) == []
    assert groups.db.one("SELECT low_since FROM group_policies")["low_since"] is None
    measured(groups, 10)
    groups.db.rows("UPDATE group_policies SET low_since = now() - interval '5 minutes'")
    (due,) = judged(groups)
    groups.through(due)
    assert len(groups.members(order)) == 1


def test_memory_and_what_is_pushed_count_and_the_one_that_wants_most_decides(groups: Groups) -> None:
    order = groups.running(2)
    policy(groups, order, metric_type="memory", target_value=40)
    policy(groups, order, name="two", metric_type="queue", target_value=10)
    measured(groups, 1, 512 << 19)  # half of what each has
    groups.db.rows("UPDATE group_policies SET pushed_value = 30, pushed_at = now() WHERE name = 'two'")
    (due,) = judged(groups)
    assert groups.activity(due)["metric"]["metric_type"] == "queue"
    assert groups.group(order)["desired_count"] == 6


def test_what_was_pushed_long_ago_says_nothing(groups: Groups) -> None:
    policy(groups, groups.running(1), metric_type="queue")
    groups.db.rows("UPDATE group_policies SET pushed_value = 500, pushed_at = now() - interval '3 minutes'")
    assert judged(groups) == []


def busy(groups: Groups, number: int) -> list[Order]:
    """So many groups, each of which should grow."""
    orders = [groups.running(1)]
    for n in range(1, number):
        orders.append(groups.create(1, f"web-{n}"))
        groups.through(orders[-1])
    for order in orders:
        policy(groups, order)
    measured(groups, 100)
    return orders


def test_one_groups_odd_policy_keeps_no_other_from_being_judged(groups: Groups) -> None:
    policy(groups, groups.running(2), metric_type="mine", target_value=1e-6, pushed_value=1e308)
    groups.db.rows("UPDATE group_policies SET pushed_at = now()")
    other = groups.create(2, "other")
    groups.through(other)
    policy(groups, other)
    measured(groups, 100)
    assert {order.name: groups.group(order)["desired_count"] for order in judged(groups)} == {"web": 100, "other": 4}


def test_whatever_is_wrong_with_one_group_the_others_are_judged_and_scaled(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = busy(groups, 3)
    groups.db.rows("UPDATE group_policies SET target_value = 49 WHERE group_id = %s", orders[0].resource_id)

    def odd(seen: Seen, now: dt.datetime) -> Verdict:
        if seen.target == 49:
            raise ValueError("odd")
        return judge(seen, now)

    def broken(session: Session, group: Group, *args: Any, **more: Any) -> Order:
        if group.id == orders[1].resource_id:
            session.execute(text("SELECT 1 / 0"))
        return begin(session, group, *args, **more)

    monkeypatch.setattr(group_policies, "judge", odd)
    monkeypatch.setattr(group_policies, "begin", broken)
    assert [due.resource_id for due in judged(groups)] == [orders[2].resource_id]
    assert groups.group(orders[2])["status"] == "scaling"
    acted = groups.db.rows("SELECT group_id FROM group_policies WHERE acted_at IS NOT NULL")
    assert [row["group_id"] for row in acted] == [orders[2].resource_id], "nothing is left of what failed"


def test_a_look_is_bounded_and_what_it_has_ordered_stays(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(groups, 4)
    monkeypatch.setattr(group_policies, "BATCH", 1)
    monkeypatch.setattr(group_policies, "MOST", 2)
    assert len(judged(groups)) == 2
    monkeypatch.setattr(group_policies, "_order_each", _second_fails(group_policies._order_each))
    with pytest.raises(ConnectionError):
        judged(groups)
    assert len(groups.db.rows("SELECT id FROM scaling_groups WHERE status = 'scaling'")) == 3


def _second_fails(act: Callable[..., list[Order]]) -> Callable[..., list[Order]]:
    calls = 0

    def counted(*args: Any) -> list[Order]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConnectionError
        return act(*args)

    return counted


def test_ten_thousand_groups_are_judged_in_two_seconds_and_only_what_is_due_starts(groups: Groups) -> None:
    busy = groups.running(1)
    project = groups.db.project_id
    with groups.db.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO scaling_groups (id, project_id, name, status, kind, min_instances, max_instances,"
            " desired_count, workflow_id) SELECT gen_random_uuid(), %s, 'g-' || n, 'active', 'group', 0, 9, 1, %s"
            " FROM generate_series(1, 10000) n",
            [project, busy.workflow_id],
        )
        connection.execute(
            "INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend,"
            " workflow_id, group_id, group_revision, created_at) SELECT gen_random_uuid(), %s, 'i-' || name, 'running',"
            " 'x', 'basic-1', 1, 512, 'simulated', workflow_id, id, 1, now() - interval '1 hour' FROM scaling_groups"
            " WHERE name LIKE 'g-%%'",
            [project],
        )
        connection.execute(
            "INSERT INTO group_policies (id, project_id, group_id, name, metric_type, target_value)"
            " SELECT gen_random_uuid(), project_id, id, 'cpu', 'cpu', 50 FROM scaling_groups"
        )
        connection.execute("ANALYZE")
    measured(groups, 50)
    groups.db.rows("UPDATE samples SET cpu_percent = 90 WHERE instance_id = %s", groups.members(busy)[0]["id"])
    began = time.process_time()
    (due,) = judged(groups)
    assert time.process_time() - began < 2
    assert due.resource_id == busy.resource_id
    began = time.process_time()
    assert groups.due() == []
    assert time.process_time() - began < 2
