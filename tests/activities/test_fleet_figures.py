"""What is shown, and counted, of cron jobs, groups and load balancers: right, and of no project by itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from activities.figures import Platform as Figures
from model.workflows import Failure
from tests.activities.conftest import Platform
from tests.activities.test_balancers import Balanced
from tests.activities.test_balancers import balanced as balanced  # noqa: PLC0414 - a fixture
from tests.activities.test_cron import Jobs
from tests.activities.test_figures import read, value
from tests.activities.test_group_policies import judged, measured, policy
from tests.activities.test_groups import Groups
from tests.services import Database
from worker import database as schema

FAILED = Failure(code="engine_refused", message="no")


@pytest.fixture
def shown(database: Database) -> Iterator[Figures]:
    engine = schema.connect(database.url("cairn_worker"), 1)
    yield Figures(engine)
    engine.dispose()


@pytest.fixture
def groups(platform: Platform, worker_engine: Engine) -> Groups:
    return Groups(platform, worker_engine)


@pytest.fixture
def jobs(database: Database, worker_engine: Engine) -> Jobs:
    return Jobs(database, worker_engine)


def test_jobs_and_changes_that_temporal_does_not_know_are_shown(jobs: Jobs, shown: Figures) -> None:
    assert read(shown)["cairn_cron_unapplied_age_max_seconds",] == 0
    jobs.make(applied_version=1)
    jobs.make(applied_version=1, paused=True)
    jobs.make(updated_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=90))
    seen = read(shown)
    assert (seen["cairn_cron_jobs", "active"], seen["cairn_cron_jobs", "paused"]) == (2, 1)
    assert 90 <= seen["cairn_cron_unapplied_age_max_seconds",] < 100


def test_runs_are_counted_once_by_how_they_ended_and_by_how_late_they_began(jobs: Jobs) -> None:
    def counted() -> list[float]:
        late = [value(f"cairn_cron_late_seconds_{what}") for what in ("count", "sum")]
        return [*late, *(value("cairn_cron_runs_total", outcome=outcome) for outcome in ("completed", "failed"))]

    before = counted()
    job = jobs.make()
    at = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(seconds=40)
    call = jobs.begun(job, at)
    assert jobs.begun(job, at) == call, "the step is repeated"
    for _ in range(2):
        jobs.settle(call, "failed", FAILED)
    jobs.settle(jobs.begun(job, at + dt.timedelta(seconds=40), "run-2"))
    count, late, completed, failed = (now - then for now, then in zip(counted(), before, strict=True))
    assert (count, completed, failed) == (2, 1, 1)
    assert 40 <= late < 50
    # What a back-fill makes up for is late by intent.
    own = jobs.db.one(
        "INSERT INTO cron_runs (id, project_id, job_id, scheduled_at) VALUES (gen_random_uuid(), %s, %s, %s)"
        " RETURNING id",
        *(jobs.db.project_id, job, at - dt.timedelta(days=9)),
    )["id"]
    assert jobs.begin(job, own=own, run_id="run-3") is not None
    assert counted()[0] - before[0] == 2


def test_members_are_sums_and_groups_that_fail_are_counted_until_they_are_well(groups: Groups, shown: Figures) -> None:
    first, second = groups.running(2), groups.create(3, "other")
    groups.db.rows(
        "UPDATE instances SET drift = %s WHERE id = %s", Jsonb({"kind": "stopped"}), groups.members(first)[0]["id"]
    )
    seen = read(shown)
    assert [seen["cairn_group_members", what] for what in ("desired", "current", "ready")] == [5, 2, 1]
    assert (seen["cairn_groups", "group", "active"], seen["cairn_groups", "group", "pending"]) == (1, 1)
    assert seen["cairn_groups_failing",] == 0
    before = value("cairn_group_runs_total", action="create", outcome="failed")
    groups.next(second)
    for _ in range(2):
        groups.settle(second, "failed", FAILED)
    assert value("cairn_group_runs_total", action="create", outcome="failed") == before + 1
    for columns, failing in (
        ("status = 'error', failures = 2, backoff_until = now() - interval '1 s'", 1),
        ("status = 'scaling'", 1),
        ("status = 'active'", 0),
        ("backoff_until = now() + interval '1 min'", 1),
        ("status = 'deleting', backoff_until = NULL", 0),
    ):
        groups.db.rows(f"UPDATE scaling_groups SET {columns} WHERE id = %s", second.resource_id)
        assert read(shown)["cairn_groups_failing",] == failing, columns
    assert read(shown)["cairn_group_members", "desired"] == 2, "one that goes away desires nothing"


def test_a_look_at_policies_is_timed_and_each_verdict_counted(groups: Groups, shown: Figures) -> None:
    def verdicts() -> dict[str, float]:
        known = ("more", "fewer", "same", "too_soon", "unknown")
        return {verdict: value("cairn_policies_judged_total", verdict=verdict) for verdict in known}

    def grown() -> dict[str, float]:
        return {verdict: now - before[verdict] for verdict, now in verdicts().items() if now > before[verdict]}

    order = groups.running(2)
    policy(groups, order)
    before, looks = verdicts(), value("cairn_policies_seconds_count")
    judged(groups)
    assert grown() == {"unknown": 1}
    measured(groups, 50)
    judged(groups)
    assert grown() == {"unknown": 1, "same": 1}
    measured(groups, 100)
    groups.db.rows("UPDATE group_policies SET acted_at = now()")
    judged(groups)
    groups.db.rows("UPDATE group_policies SET acted_at = NULL")
    assert judged(groups) != []
    assert grown() == {"unknown": 1, "same": 1, "too_soon": 1, "more": 1}
    assert value("cairn_policies_seconds_count") == looks + 4
    assert read(shown)["cairn_group_policies",] == 1


def test_balancers_without_a_target_that_is_up_are_counted(balanced: Balanced, shown: Figures) -> None:
    for health, without in (("NULL", 1), ("'down'", 1), ("CASE WHEN port = 1 THEN 'up' ELSE 'down' END", 0)):
        balanced.db.rows("UPDATE lb_targets SET port = 1 WHERE instance_id = %s", balanced.targets[0])
        balanced.db.rows(f"UPDATE lb_targets SET health = {health}")
        assert read(shown)["cairn_load_balancers_without_targets",] == without, health
    seen = read(shown)
    assert (seen["cairn_lb_targets", "up"], seen["cairn_lb_targets", "down"]) == (1, 1)
    assert seen["cairn_load_balancers", "active"] == 1
    balanced.db.rows("DELETE FROM lb_targets")
    assert read(shown)["cairn_load_balancers_without_targets",] == 0, "it was asked for none"
