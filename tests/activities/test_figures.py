"""Figures of the whole platform, and what is counted of attempts and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import figures
from activities.counting import counted, queue_of
from activities.database import once_committed, transaction
from activities.figures import Platform as Figures
from model.metrics import REGISTRY, registry_of
from model.projects import QUOTAS
from model.webhooks import DeliveryState
from tests.activities.conftest import Platform
from worker import database as schema

Read = dict[tuple[str, ...], float]


@pytest.fixture
def shown(platform: Platform) -> Iterator[Figures]:
    engine = schema.connect(platform.db.url("cairn_worker"), 1)
    yield Figures(engine)
    engine.dispose()


def read(shown: Figures) -> Read:
    """As a scrape sees them: name, and the values of labels in the order of their names."""
    shown._read_at = -figures.KEPT_SECONDS - time.monotonic()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in registry_of(shown.figures()).collect()
        for sample in family.samples
    }


def test_figures_are_what_the_database_says(platform: Platform, shown: Figures) -> None:
    running, drifted = platform.running("one"), platform.running("two")
    waiting = platform.launch("three")
    db = platform.db
    db.rows("UPDATE instances SET drift = %s WHERE id = %s", Jsonb({"kind": "stopped"}), drifted.resource_id)
    db.rows("UPDATE workflows SET created_at = now() - interval '90 s' WHERE id = %s", waiting.workflow_id)
    db.rows("UPDATE hosts SET last_seen_at = now() - interval '1 min', warning = 'look' WHERE name = 'two'")
    seen = read(shown)
    assert seen["cairn_database_up",] == 1
    assert seen["cairn_hosts", "docker", "true", "ready"] == 1
    assert seen["cairn_hosts", "docker", "false", "ready"] == 1
    assert seen["cairn_hosts_warned",] == 1
    assert 60 <= seen["cairn_lease_age_max_seconds",] < 70
    assert seen["cairn_capacity", "vcpus"] == 128
    assert seen["cairn_capacity", "memory_mb"] == 131072
    assert seen["cairn_allocated", "vcpus"] == 2
    assert seen["cairn_allocated", "memory_mb"] == 1024
    assert seen["cairn_instances", "running"] == 2
    assert seen["cairn_instances", "pending"] == 1
    assert seen["cairn_instances_drifted", "stopped"] == 1
    assert seen["cairn_workflows_open", "accepted"] == 1
    assert seen["cairn_workflows_open", "running"] == 0
    assert 90 <= seen["cairn_workflows_accepted_age_max_seconds",] < 100
    assert seen["cairn_workflows_overdue",] == 0
    assert running.name == "one"


def test_a_run_is_overdue_some_time_after_its_deadline(platform: Platform, shown: Figures) -> None:
    order = platform.launch()
    platform.place(order)
    late = order.deadline_seconds + figures.OVERDUE_MARGIN
    for seconds, overdue in ((late - 5, 0), (late + 5, 1)):
        platform.db.rows("UPDATE workflows SET started_at = now() - make_interval(secs => %s)", seconds)
        assert read(shown)["cairn_workflows_overdue",] == overdue


def test_deliveries_are_counted_in_each_state_also_where_there_are_none(platform: Platform, shown: Figures) -> None:
    """An alert compares with a while ago: what was never shown cannot be compared with."""
    seen = read(shown)
    assert {key[1]: number for key, number in seen.items() if key[0] == "cairn_webhook_deliveries"} == dict.fromkeys(
        DeliveryState, 0
    )


def test_quotas_are_sums_of_projects_with_a_limit(platform: Platform, shown: Figures) -> None:
    assert ("cairn_quota_limit", "instances") not in read(shown), "nobody has a limit"
    platform.db.project("small", instances=10, vcpus=4)
    platform.db.project("large", instances=100)
    platform.db.rows(
        "UPDATE quotas SET instances_used = 8, instances_reserved = 1, vcpus_used = 3 WHERE instances_limit = 10"
    )
    platform.db.rows("UPDATE quotas SET memory_mb_limit = 1 WHERE instances_limit = 100")
    seen = read(shown)
    assert [key[1] for key in sorted(seen) if key[0] == "cairn_quota_limit"] == sorted(QUOTAS)
    assert (seen["cairn_quota_used", "instances"], seen["cairn_quota_limit", "instances"]) == (9, 110)
    assert (seen["cairn_quota_used", "vcpus"], seen["cairn_quota_limit", "vcpus"]) == (3, 4)
    assert seen["cairn_quota_projects_near", "instances"] == 1, "nine of ten"
    assert seen["cairn_quota_projects_near", "vcpus"] == 0


def test_quotas_that_no_counter_counts_are_seen_too(platform: Platform, shown: Figures) -> None:
    platform.db.project("full", images=1, image_bytes=100, load_balancers=1)
    platform.db.project("empty", images=10, image_bytes=100, load_balancers=0)
    full = platform.db.one("SELECT id FROM projects WHERE name = 'full'")["id"]
    images = [("a", "available", "upload", 80), ("b", "deleted", "upload", 900), ("c", "pending", "registry", 70)]
    for name, status, source, size in images:
        platform.db.rows(
            "INSERT INTO images (id, project_id, name, status, source, size_bytes)"
            " VALUES (gen_random_uuid(), %s, %s, %s, %s, %s)",
            *(full, name, status, source, size),
        )
    seen = read(shown)
    assert (seen["cairn_quota_used", "images"], seen["cairn_quota_limit", "images"]) == (2, 11)
    assert (seen["cairn_quota_used", "image_bytes"], seen["cairn_quota_limit", "image_bytes"]) == (80, 200)
    assert (seen["cairn_quota_used", "load_balancers"], seen["cairn_quota_limit", "load_balancers"]) == (0, 1)
    near = {key[1]: value for key, value in seen.items() if key[0] == "cairn_quota_projects_near"}
    assert near == {"images": 1, "image_bytes": 0, "load_balancers": 0}, "and who may have none uses none up"


def test_no_project_shows_in_figures(platform: Platform, shown: Figures) -> None:
    platform.db.project("a-project-of-a-user", instances=1)
    platform.running("a-name-of-a-user")
    told = " ".join(part for key in read(shown) for part in key)
    assert "of-a-user" not in told
    assert str(platform.db.project_id) not in told


def test_every_figure_has_its_query() -> None:
    asked = {figure for figure, _ in figures._QUERIES}
    assert asked | {figures.UP} == set(figures.FIGURES)


def test_with_the_database_away_there_are_no_figures_that_look_like_rest(shown: Figures, platform: Platform) -> None:
    engine = schema.connect("postgresql://cairn_worker@127.0.0.1:1/nothing", 1)
    assert read(Figures(engine)) == {("cairn_database_up",): 0}
    assert read(shown)["cairn_database_up",] == 1


def test_many_who_ask_at_once_are_told_the_same(shown: Figures, platform: Platform) -> None:
    read(shown)
    platform.launch()
    again = registry_of(shown.figures())
    assert again.get_sample_value("cairn_instances", {"status": "pending"}) is None, "read a moment ago"
    assert read(shown)["cairn_instances", "pending"] == 1


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "completed"),
        (ApplicationError("x", non_retryable=True), "final"),
        (ApplicationError("x"), "retryable"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_an_attempt_is_counted_by_how_it_ended(error: BaseException | None, outcome: str) -> None:
    info = ActivityEnvironment().info
    info = replace(
        info,
        activity_type="tested.once",
        task_queue="host:one",
        attempt=2,
        started_time=info.current_attempt_scheduled_time + timedelta(seconds=3),
    )
    names = {
        "cairn_step_attempts_total": {"activity": "tested.once", "outcome": outcome},
        "cairn_step_retries_total": {"activity": "tested.once"},
        "cairn_step_seconds_count": {"activity": "tested.once"},
        "cairn_queue_wait_seconds_count": {"queue": "host"},
        "cairn_queue_wait_seconds_sum": {"queue": "host"},
    }
    before = {name: value(name, **labels) for name, labels in names.items()}
    try:
        with counted(info):
            assert value("cairn_steps_running", queue="host") == 1
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    grown = {name: value(name, **labels) - before[name] for name, labels in names.items()}
    assert grown == pytest.approx(dict.fromkeys(names, 1) | {"cairn_queue_wait_seconds_sum": 3})
    assert value("cairn_steps_running", queue="host") == 0
    assert queue_of(info) == ("host", "one")
    assert queue_of(replace(info, task_queue="control")) == ("control", None)


def test_ends_are_counted_once_and_only_if_they_are_committed(platform: Platform, worker_engine: Engine) -> None:
    def ends() -> float:
        return value("cairn_workflow_seconds_count", kind="ProvisionInstance", outcome="completed")

    before = ends()
    order = platform.launch()
    platform.place(order)
    platform.settle(order, "completed")
    platform.settle(order, "completed")
    assert ends() == before + 1
    counts: list[int] = []
    with pytest.raises(RuntimeError), transaction(worker_engine) as session:
        once_committed(session, lambda: counts.append(1))
        raise RuntimeError
    assert counts == []
    with transaction(worker_engine) as session:
        once_committed(session, lambda: counts.append(1))
        assert counts == []
    assert counts == [1]


def test_a_thousand_projects_make_no_more_series(platform: Platform, worker_engine: Engine) -> None:
    def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        found = Figures(worker_engine).figures().collect()
        return {(sample.name, tuple(sorted(sample.labels.items()))) for family in found for sample in family.samples}

    platform.db.rows("UPDATE quotas SET instances_limit = 1, vcpus_limit = 1, memory_mb_limit = 1")
    before = series()
    platform.db.rows(
        "WITH made AS (INSERT INTO projects (id, name, unix_name)"
        " SELECT gen_random_uuid(), 'p', 'p-' || n FROM generate_series(1000, 1999) n RETURNING id)"
        " INSERT INTO quotas (project_id, instances_limit, vcpus_limit, memory_mb_limit, instances_used)"
        " SELECT id, 1, 1, 1, 1 FROM made"
    )
    assert series() == before
