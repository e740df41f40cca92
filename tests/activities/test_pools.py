"""Pools among groups, on rows as the API accepts them: what they follow, and what they leave to their sessions."""

from __future__ import annotations

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from model.base import new_id
from model.errors import NotReady
from model.pools import CAPABILITY, wanted
from model.workflows import Order
from tests.activities.conftest import Platform
from tests.activities.test_groups import Groups


@pytest.fixture
def groups(platform: Platform, worker_engine: Engine) -> Groups:
    platform.db.rows("UPDATE hosts SET capabilities = %s", Jsonb([CAPABILITY]))
    return Groups(platform, worker_engine)


def pool(groups: Groups, size: int = 2, **columns: int) -> Order:
    """One that is filled."""
    bounds = {"min_instances": size, "max_instances": size} | columns
    return groups.running(size, kind="pool", **bounds)


def ask(groups: Groups, of: Order, times: int = 1, minutes: int = 0, *, claim: bool = True) -> None:
    """Sessions that were made so long ago; what they do to the rows."""
    db = groups.db
    for number in range(times):
        session, run = new_id(), new_id()
        (member, *_) = groups.members(of)
        db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", state,'
            " finished_at) VALUES (%s, %s, 'InitSession', 'session', %s, 'test', '{}', 'completed', now())",
            *(run, db.project_id, session),
        )
        db.rows(
            "INSERT INTO workspaces (id, project_id, name, status, path, workflow_id)"
            " VALUES (%s, %s, %s, 'ready', '/', %s)",
            *(session, db.project_id, f"w{session}", run),
        )
        db.rows(
            'INSERT INTO work_sessions (id, project_id, name, status, workspace_id, "commit", instance_id, workflow_id,'
            " pool_id, start, created_at)"
            " VALUES (%s, %s, %s, 'running', %s, '', %s, %s, %s, 'warm', now() - make_interval(mins => %s))",
            *(session, db.project_id, f"s{number}{session}", session, member["id"], run, of.resource_id, minutes),
        )
        if claim:
            left = "UPDATE instances SET session_id = %s, group_id = NULL, group_revision = NULL WHERE id = %s"
            db.rows(left, session, member["id"])


def test_what_is_claimed_is_made_up_for_and_is_the_pools_no_more(groups: Groups) -> None:
    of = pool(groups)
    assert groups.due() == []
    assert all(row["warm"] and row["status"] == "running" for row in groups.members(of))
    claimed = groups.members(of)[0]
    ask(groups, of)
    (run,) = groups.due()
    assert (run.kind, run.resource_type) == ("ScaleGroup", "pool")
    groups.through(run)
    assert len(groups.members(of)) == 2 and groups.due() == []
    # Its end takes what nobody has.
    end = groups.wish(of, "delete", "DeprovisionGroup")
    groups.through(end)
    assert groups.members(of) == []
    kept = groups.db.one("SELECT status, session_id FROM instances WHERE id = %s", claimed["id"])
    assert kept["status"] == "running" and kept["session_id"]


def test_what_is_claimed_while_a_run_is_about_to_remove_it_stays(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = pool(groups)
    shrinks = groups.wish(of, desired_count=0, min_instances=0)
    before = [row["id"] for row in groups.members(of)]
    monkeypatch.setattr("activities.group_balancing.join_due", lambda *_: None)
    release = "activities.balancer_orders.release"

    def meanwhile(*_: object) -> None:
        ask(groups, of)

    with monkeypatch.context() as patch:  # after the members were read, before they are locked
        patch.setattr(release, meanwhile)
        with pytest.raises(NotReady):
            groups.next(shrinks)
    groups.through(shrinks)
    left = groups.db.rows("SELECT id FROM instances WHERE status = 'running' AND session_id IS NOT NULL")
    assert [row["id"] for row in left] == before[:1] and groups.members(of) == []


def test_size_follows_demand_within_its_bounds_and_comes_back(groups: Groups) -> None:
    of = pool(groups, 1, max_instances=3)
    ask(groups, of, 5, claim=False)
    (run,) = groups.due()
    groups.through(run)
    assert (groups.group(of)["desired_count"], len(groups.members(of))) == (3, 3)
    groups.db.rows("UPDATE work_sessions SET created_at = now() - interval '11 min'")
    (run,) = groups.due()
    groups.through(run)
    assert (groups.group(of)["desired_count"], len(groups.members(of)), groups.due()) == (1, 1, [])
    assert [wanted(2, 5, asked) for asked in (0, 3, 9)] == [2, 3, 5]


def test_members_that_are_old_or_of_another_image_are_replaced_a_few_at_a_time(groups: Groups) -> None:
    of = pool(groups, 4)
    old = groups.members(of)
    for change in ("created_at = now() - interval '25 h'", "image_digest = 'sha256:old'"):
        if "digest" in change:
            groups.db.rows("UPDATE instances SET image_digest = 'sha256:new' WHERE status = 'running'")
        row = groups.members(of)[0]
        groups.db.rows(f"UPDATE instances SET {change} WHERE id = %s", row["id"])
        (run,) = groups.due()
        assert "of this day" in groups.activity(run)["cause"]
        groups.through(run)
        assert row["id"] not in {one["id"] for one in groups.members(of)}
        assert len(groups.members(of)) == 4 and groups.due() == []
    assert {row["id"] for row in groups.members(of)} & {row["id"] for row in old}


def test_one_that_has_died_is_replaced(groups: Groups) -> None:
    of = pool(groups)
    groups.fail(of)
    (run,) = groups.due()
    groups.through(run)
    assert len(groups.members(of)) == 2 and not any(row["drift"] for row in groups.members(of))
