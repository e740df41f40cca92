"""Old samples become coarser and end, once, whatever happens in between."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities import samples
from activities.database import transaction
from activities.samples import Coarsened, SampleRecords, is_due
from model.base import new_id
from tests.activities.conftest import Platform

UTC = dt.UTC
HOUR = dt.timedelta(hours=1)


def coarsen(engine: Engine) -> Coarsened:
    done: Coarsened = ActivityEnvironment().run(SampleRecords(engine).coarsen)
    return done


def due(engine: Engine) -> bool:
    with transaction(engine) as session:
        return is_due(session)


def minute(ago: dt.timedelta, seconds: int = 60) -> dt.datetime:
    """The beginning of the interval that was then."""
    then = (dt.datetime.now(UTC) - ago).timestamp()
    return dt.datetime.fromtimestamp(then // seconds * seconds, UTC)


def insert(platform: Platform, at: dt.datetime, seconds: int = 10, instance: Any = None, **figures: float) -> None:
    values = {"cpu_percent": 1, "memory_bytes": 2, "pids": 3, "rx_bytes": 4, "tx_bytes": 5} | figures
    columns = {"read_bytes": 6, "written_bytes": 7, "seconds": seconds, "at": at} | values
    columns |= {"instance_id": instance or platform.db.project_id, "project_id": platform.db.project_id}
    platform.db.rows(
        f"INSERT INTO samples ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})", *columns.values()
    )


def kept(platform: Platform, seconds: int) -> list[dict[str, Any]]:
    return platform.db.rows("SELECT * FROM samples WHERE seconds = %s ORDER BY at, cpu_percent", seconds)


def test_minute_is_the_mean_of_its_samples(platform: Platform, worker_engine: Engine) -> None:
    at, other = minute(dt.timedelta(minutes=10)), new_id()
    for n in range(6):
        then = at + dt.timedelta(seconds=10 * n)
        insert(platform, then, cpu_percent=n, memory_bytes=100 * n, rx_bytes=n)
        insert(platform, then, instance=other, cpu_percent=50)
    insert(platform, at + dt.timedelta(seconds=60), cpu_percent=9)
    assert due(worker_engine)
    # Early in an hour these minutes belong to the one before, which is over and becomes one too.
    assert coarsen(worker_engine).intervals in (2, 3)
    mine, others, next_ = kept(platform, 60)
    assert (mine["at"], mine["cpu_percent"], mine["memory_bytes"], mine["rx_bytes"]) == (at, 2.5, 250, 5)
    assert (others["at"], others["cpu_percent"], others["instance_id"]) == (at, 50, other)
    assert next_["cpu_percent"] == 9
    assert len(kept(platform, 10)) == 13, "they are kept for an hour"
    assert not due(worker_engine)
    assert coarsen(worker_engine) == Coarsened()


def test_minute_waits_for_its_last_samples(platform: Platform, worker_engine: Engine) -> None:
    insert(platform, minute(dt.timedelta(seconds=180)))
    assert not due(worker_engine)
    assert coarsen(worker_engine) == Coarsened()


def test_hour_waits_for_its_minutes_and_is_their_mean(platform: Platform, worker_engine: Engine) -> None:
    at = minute(5 * HOUR, 3600)
    for n in range(60):
        insert(platform, at + dt.timedelta(minutes=n), 60, cpu_percent=n, tx_bytes=n)
    samples_until = at + 10 * HOUR
    insert(platform, samples_until - 10 * HOUR + dt.timedelta(minutes=60), 60, cpu_percent=1)
    assert coarsen(worker_engine).intervals == 2
    hours = kept(platform, 3600)
    assert [(row["at"], row["cpu_percent"]) for row in hours] == [(at, 29.5), (at + HOUR, 1)]
    assert hours[0]["tx_bytes"] == 59


def test_outage_of_the_worker_loses_nothing(
    platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is older than it should be is kept until it was made coarser, over as many passes as it takes."""
    monkeypatch.setattr(samples, "INTERVALS", 7)
    start = minute(5 * HOUR, 3600)
    for n in range(0, 120, 5):
        insert(platform, start + dt.timedelta(minutes=n), cpu_percent=8)
    passes = 0
    while due(worker_engine):
        coarsen(worker_engine)
        passes += 1
        assert passes < 20
    assert kept(platform, 10) == []
    assert len(kept(platform, 60)) == 24
    assert [row["cpu_percent"] for row in kept(platform, 3600)] == [8, 8]


def test_what_is_too_old_goes(platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "DELETED_AT_ONCE", 2)
    day = 24 * HOUR
    for days in (29, 30, 31, 32, 33):
        insert(platform, minute(days * day - HOUR, 3600), 3600)
    insert(platform, minute(dt.timedelta(minutes=20), 60), 60)
    insert(platform, minute(dt.timedelta(minutes=20), 60), 10)
    assert due(worker_engine)
    assert coarsen(worker_engine).deleted == 3
    assert (len(kept(platform, 60)), len(kept(platform, 10))) == (1, 1)
    assert len(kept(platform, 3600)) in (2, 3), "early in an hour, the one before is over and made of its minutes"
    assert not due(worker_engine)


def test_empty_table_is_not_due(worker_engine: Engine) -> None:
    assert not due(worker_engine)
    assert coarsen(worker_engine) == Coarsened()
