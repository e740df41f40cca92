"""Members of groups at their load balancers: joined once they are well, drained before they go, counted when they are
found well there; and scaled by the requests that they get."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import text
from sqlalchemy.orm import Session

from activities import group_balancing
from activities.balancer_orders import join
from activities.database import transaction
from activities.groups import GroupRound, Release
from model.errors import NotReady
from model.instances import Instance
from model.workflows import Order
from tests.activities.test_balancers import FAILED, Balanced, balanced
from tests.activities.test_group_policies import judged, policy
from tests.activities.test_groups import Groups

__all__ = ["balanced"]


@pytest.fixture
def groups(balanced: Balanced) -> Groups:
    return Groups(balanced.platform, balanced.engine)


def behind(groups: Groups, balanced: Balanced, desired: int = 2) -> Order:
    """A group of running members whose balancer finds them well."""
    order = groups.create(desired, load_balancer_id=balanced.front)
    for child in groups.next(order).launches:
        groups.carry_out(child)
    assert groups.next(order).waits, "its balancer has not seen them yet"
    found_well(groups)
    groups.through(order)
    return order


def found_well(groups: Groups) -> None:
    groups.db.rows("UPDATE lb_targets SET health = 'up', health_at = now()")


def targets(groups: Groups, of: Order) -> list[tuple[str, int]]:
    found = groups.db.rows(
        "SELECT t.state, t.port FROM lb_targets t JOIN instances i ON i.id = t.instance_id WHERE i.group_id = %s",
        of.resource_id,
    )
    return [(row["state"], row["port"]) for row in found]


def released(groups: Groups, order: Order, removals: list[Order]) -> list[Order]:
    orders: list[Order] = groups.platform.run(groups.records.release, Release(order=order, removals=removals))
    return orders


def drained(balanced: Balanced, update: Order) -> None:
    """The run of a balancer that takes some out, in which everything goes well."""
    told = balanced.configure(update)
    assert told.draining
    balanced.platform.run(balanced.records.drained, update)
    balanced.settle(update, balanced.configure(update))


def test_members_join_their_balancer_once_they_run(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    assert targets(groups, order) == [("in", 80)] * 2
    with transaction(groups.engine) as session:
        assert group_balancing.join_due(session) == 0
    groups.db.rows("DELETE FROM lb_targets")
    groups.db.rows("UPDATE instances SET health_check = '{}', health = 'starting' WHERE group_id IS NOT NULL")
    with transaction(groups.engine) as session:
        assert group_balancing.join_due(session) == 0, "they are not well yet"
    groups.db.rows("UPDATE instances SET health = 'healthy' WHERE group_id IS NOT NULL")
    with transaction(groups.engine) as session:
        assert group_balancing.join_due(session) == 2
    assert targets(groups, order) == [("in", 80)] * 2


def another(groups: Groups, balanced: Balanced, desired: int = 1) -> Order:
    """Members of a group whose balancer is another one, and has not been told of them."""
    order = groups.create(desired, "other")
    groups.through(order)
    groups.db.rows(
        "INSERT INTO load_balancers (id, project_id, name, status, mode, port, settings, instance_id, workflow_id)"
        " SELECT gen_random_uuid(), project_id, 'second', status, mode, port, settings, instance_id, workflow_id"
        " FROM load_balancers WHERE id = %s",
        balanced.front,
    )
    groups.db.rows(
        "UPDATE scaling_groups SET load_balancer_id = (SELECT id FROM load_balancers WHERE name = 'second')"
        " WHERE id = %s",
        order.resource_id,
    )
    return order


def joined(groups: Groups) -> int:
    with transaction(groups.engine) as session:
        return group_balancing.join_due(session)


@pytest.mark.parametrize("why", ["full", "portless"])
def test_members_that_cannot_join_keep_no_other_group_from_joining(
    groups: Groups, balanced: Balanced, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    order = behind(groups, balanced, 3)
    groups.db.rows("DELETE FROM lb_targets")
    monkeypatch.setattr(group_balancing, "MOST", 2)
    if why == "full":
        monkeypatch.setattr(group_balancing, "MOST_TARGETS", 1)
        assert joined(groups) == 1, "it has room for one"
    else:
        groups.db.rows("UPDATE instances SET ports = '[]' WHERE group_id = %s", order.resource_id)
    other = another(groups, balanced)
    assert joined(groups) == 1
    assert targets(groups, other) == [("in", 80)]
    assert joined(groups) == 0


def test_whatever_is_wrong_with_one_group_the_others_members_join(
    groups: Groups, balanced: Balanced, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = behind(groups, balanced)
    groups.db.rows("DELETE FROM lb_targets")
    other = another(groups, balanced)

    def broken(session: Session, balancer: UUID, instance: Instance, port: int) -> None:
        if instance.group_id == order.resource_id:
            session.execute(text("SELECT 1 / 0"))
        join(session, balancer, instance, port)

    monkeypatch.setattr(group_balancing.balancer_orders, "join", broken)
    assert joined(groups) == 1
    assert (targets(groups, order), targets(groups, other)) == ([], [("in", 80)])


def test_one_that_goes_drains_first_and_stays_reachable_for_that(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    wish = groups.wish(order, desired_count=1)
    (doomed,) = groups.next(wish).removals
    state = groups.db.one("SELECT state FROM lb_targets WHERE instance_id = %s", doomed.resource_id)["state"]
    assert state == "draining", "from the moment on in which it is about to be deleted"
    groups.db.rows(
        "UPDATE instances SET private_ip = '172.17.0.9', host_id = %s WHERE id = %s",
        *(groups.db.hosts["one"], doomed.resource_id),
    )
    (update,) = released(groups, wish, [doomed])
    assert released(groups, wish, [doomed]) == [update], "it has not begun"
    told = balanced.configure(update)
    with pytest.raises(NotReady):
        released(groups, wish, [doomed])
    assert told.spec is not None
    assert [told.spec.weights[name] for name in told.draining] == [0], "it is told of, and takes nothing new"
    drained(balanced, update)
    assert released(groups, wish, [doomed]) == []
    assert targets(groups, order) == [("in", 80)]


def test_where_a_drain_fails_it_is_asked_again(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    wish = groups.wish(order, desired_count=1)
    (doomed,) = groups.next(wish).removals
    (update,) = released(groups, wish, [doomed])
    balanced.settle(update, balanced.configure(update), failure=FAILED)
    (again,) = released(groups, wish, [doomed])
    assert again.workflow_id != update.workflow_id
    assert released(groups, wish, [other(groups, balanced)]) == [again], "others' are no reason to wait"


def test_no_member_is_replaced_before_its_successor_is_found_well(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced, 1)
    groups.configure(order, 2, env={"MODE": "other"})
    wish = groups.wish(order, "update", revision=2)
    (launch,) = groups.next(wish).launches
    groups.carry_out(launch)
    step = groups.next(wish)
    assert (step.removals, step.waits) == ([], True), "its balancer does not send it anything yet"
    assert targets(groups, order) == [("in", 80)] * 2
    found_well(groups)
    (doomed,) = groups.next(wish).removals
    assert doomed.resource_id != launch.resource_id


def found_down(groups: Groups, revision: int, minutes: int = 3) -> None:
    """All members of that configuration, and no others."""
    groups.db.rows(
        "UPDATE lb_targets t SET health = CASE i.group_revision WHEN %s THEN 'down' ELSE 'up' END, \"check\" = 'L4CON',"
        " health_at = now() - %s * interval '1 minute' FROM instances i WHERE i.id = t.instance_id",
        *(revision, minutes),
    )
    groups.db.rows("UPDATE instances SET updated_at = now() - interval '1 hour' WHERE group_id IS NOT NULL")


def heard(groups: Groups, balanced: Balanced) -> None:
    """The balancer runs on a host that is heard of."""
    one = groups.db.hosts["one"]
    groups.db.rows("UPDATE instances SET status = 'running', host_id = %s WHERE id = %s", one, balanced.proxy)
    groups.db.rows("UPDATE hosts SET last_seen_at = now()")


def updated(groups: Groups, order: Order) -> Order:
    """On its way to another configuration, of which the first new member runs."""
    groups.configure(order, 2, image="cairn/bad")
    update = groups.wish(order, "update", revision=2)
    for child in groups.next(update).launches:
        groups.carry_out(child)
    groups.next(update)  # it joins
    return update


def ended(groups: Groups, run: Order) -> GroupRound:
    """Its last round, where the balancer finds all members of the second configuration down."""
    for _ in range(30):
        found_down(groups, 2)
        step = groups.next(run)
        for child in (*step.launches, *step.removals):
            groups.carry_out(child)
        if not (step.launches or step.removals or step.waits):
            return step
    raise AssertionError(f"it still waits: {step}")


def test_bad_image_that_runs_but_does_not_answer_is_rolled_back(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    heard(groups, balanced)
    update = updated(groups, order)
    found_down(groups, 2, minutes=1)
    step = groups.next(update)
    assert (step.launches, step.removals, step.waits) == ([], [], True), "it may still be starting"
    assert "find it down: L4CON" in groups.activity(update)["error"]["message"], "why it waits shows"
    step = ended(groups, update)
    assert step.failure is not None
    assert (step.failure.code, groups.group(order)["revision"]) == ("unhealthy", 1)
    assert len(groups.members(order)) == 2


def test_wish_after_wish_lets_no_bad_configuration_stay(groups: Groups, balanced: Balanced) -> None:
    """What members of the runs before failed counts for the last, as long as the configuration is the same."""
    order = behind(groups, balanced)
    heard(groups, balanced)
    run = updated(groups, order)
    for desired in (3, 2, 3, 2):
        found_down(groups, 2)
        step = groups.next(run)
        if groups.group(order)["revision"] == 1:
            break
        for child in (*step.launches, *step.removals):
            groups.carry_out(child)
        groups.next(run)  # the new one joins
        run_before, run = run, groups.wish(order, desired_count=desired, revision=2)
        groups.db.rows("UPDATE group_activities SET revision_after = 2 WHERE workflow_id = %s", run.workflow_id)
        groups.db.rows("UPDATE group_activities SET revision_after = 2 WHERE workflow_id = %s", run_before.workflow_id)
        groups.settle(run_before, "cancelled", FAILED)
    assert groups.group(order)["revision"] == 1


def test_member_that_hangs_is_replaced_unless_the_balancer_may_be_to_blame(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    heard(groups, balanced)
    (hangs, _) = groups.members(order)
    found_down(groups, 1)
    groups.db.rows("UPDATE lb_targets SET health = 'down'")
    assert groups.due() == [], "it finds nobody well"
    found_down(groups, 2)
    groups.db.rows("UPDATE lb_targets SET health = 'down' WHERE instance_id = %s", hangs["id"])
    groups.db.rows("UPDATE hosts SET last_seen_at = now() - interval '1 hour'")
    assert groups.due() == [], "nobody knows what it finds now"
    groups.db.rows("UPDATE hosts SET last_seen_at = now()")
    (due,) = groups.due()
    assert "find it down" in groups.activity(due)["cause"]
    (doomed,) = groups.next(due).removals
    assert doomed.resource_id == hangs["id"]


def test_configuration_without_a_port_for_the_balancer_comes_to_an_end(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    groups.configure(order, 2, wanted_ports=[])
    back = groups.wish(order, "rollback", revision=2)
    groups.through(back)
    assert {row["group_revision"] for row in groups.members(order)} == {2}


def test_run_goes_back_to_nothing_that_the_group_could_not_have_by_now(groups: Groups, balanced: Balanced) -> None:
    order = groups.create(2)
    groups.db.rows("UPDATE group_configurations SET template = jsonb_set(template, '{wanted_ports}', '[]')")
    groups.through(order)
    groups.configure(order, 2, image="cairn/bad")
    update = groups.wish(order, "update", revision=2, load_balancer_id=balanced.front)
    for _ in range(20):
        step = groups.next(update)
        for child in step.launches:
            groups.carry_out(child, "failed", "image_not_found")
        for child in step.removals:
            groups.carry_out(child)
        if not (step.launches or step.removals or step.waits):
            break
    assert step.failure is not None
    assert groups.group(order)["revision"] == 2


def test_requests_at_the_balancer_scale_a_group(groups: Groups, balanced: Balanced) -> None:
    order = behind(groups, balanced)
    policy(groups, order, metric_type="requests", target_value=10)
    assert judged(groups) == [], "nothing is measured"
    told = [{"instance_id": str(row["id"]), "requests": 300} for row in groups.members(order)]
    told.append({"instance_id": str(balanced.targets[0]), "requests": 9000})
    groups.db.rows(
        "INSERT INTO lb_samples (balancer_id, at, project_id, sessions, requests, bytes_in, bytes_out, errors, targets)"
        " SELECT %s, now() - n * interval '10 seconds', %s, 0, 9600, 0, 0, 0, %s FROM generate_series(1, 3) n",
        *(balanced.front, groups.db.project_id, Jsonb(told)),
    )
    (due,) = judged(groups)
    activity = groups.activity(due)
    assert activity["metric"] == {"metric_type": "requests", "value": 30, "target_value": 10}
    assert activity["desired_after"] == 6


def other(groups: Groups, balanced: Balanced) -> Order:
    """A member of nothing."""
    id: UUID = balanced.proxy
    return groups.create(0, "other").model_copy(update={"resource_id": id, "kind": "DeprovisionInstance"})
