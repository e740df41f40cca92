"""What quotas count is what there is: whatever differs is found, mended, and told; nothing else is touched."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Engine, text
from temporalio.testing import ActivityEnvironment

from activities.quotas import Compared, QuotaRecords
from model.metrics import REGISTRY
from tests.activities.conftest import Platform
from tests.services import until

COUNTS = [f"{what}_{column}" for what in ("instances", "vcpus", "memory_mb") for column in ("used", "reserved")]


def compare(engine: Engine) -> Compared:
    done: Compared = ActivityEnvironment().run(QuotaRecords(engine).compare)
    return done


def counts(platform: Platform, project: Any = None) -> tuple[float, ...]:
    row = platform.db.quota(project)
    return tuple(row[name] for name in COUNTS)


def resizing(platform: Platform) -> None:
    """One launch that waits, one instance that runs, and one that is to get more vCPUs and less memory."""
    platform.launch("waits", vcpus=0.1)
    platform.running("runs")
    grows = platform.running("grows")
    platform.db.rows(
        "UPDATE instances SET next_type = 'basic-2', next_vcpus = 3, next_memory_mb = 256 WHERE id = %s",
        grows.resource_id,
    )
    platform.db.rows("UPDATE quotas SET vcpus_reserved = vcpus_reserved + 2")


def test_what_is_right_is_left_alone(platform: Platform, worker_engine: Engine) -> None:
    resizing(platform)
    before = counts(platform)
    assert compare(worker_engine) == Compared()
    assert counts(platform) == before == (2, 1, 2, 2.1, 1024, 512)


def test_what_differs_is_mended_and_told(platform: Platform, worker_engine: Engine) -> None:
    resizing(platform)
    right = counts(platform)
    platform.db.project("other")
    other = platform.db.one("SELECT id FROM projects WHERE name = 'other'")["id"]
    platform.db.rows("UPDATE quotas SET instances_used = instances_used + 3, vcpus_reserved = 0, memory_mb_used = 9")
    told = REGISTRY.get_sample_value("cairn_quota_differences_total", {"count": "instances_used"}) or 0
    assert compare(worker_engine) == Compared(projects=2, differences=5)
    assert counts(platform) == right
    assert counts(platform, other) == (0,) * 6
    assert REGISTRY.get_sample_value("cairn_quota_differences_total", {"count": "instances_used"}) == told + 2
    event = platform.db.one(
        "SELECT data FROM events WHERE type = 'project.quota_corrected' AND project_id = %s", platform.db.project_id
    )
    assert event["data"]["differences"]["instances_used"] == {"counted": 5, "found": 2}
    assert set(event["data"]["differences"]) == {"instances_used", "vcpus_reserved", "memory_mb_used"}
    assert compare(worker_engine) == Compared()


def test_what_is_accepted_meanwhile_is_counted_once(platform: Platform, worker_engine: Engine) -> None:
    """A launch that is half accepted is waited for where it holds the count, and not seen where it does not yet."""
    platform.launch("late")
    platform.db.rows("UPDATE instances SET quota = 'none'")
    platform.db.rows("UPDATE quotas SET instances_used = 3, instances_reserved = 0")
    found: list[Compared] = []
    comparing = threading.Thread(target=lambda: found.append(compare(worker_engine)))
    with worker_engine.connect() as accepting:
        accepting.execute(text("SELECT set_config('cairn.project', :p, true)"), {"p": str(platform.db.project_id)})
        accepting.execute(text("UPDATE quotas SET instances_reserved = 1"))
        comparing.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        assert until(lambda: platform.db.rows(waits))
        accepting.execute(text("UPDATE instances SET quota = 'reserved'"))
        accepting.commit()
    comparing.join(20)
    assert found == [Compared(projects=1, differences=1)]
    assert counts(platform) == (0, 1, 0, 1, 0, 512)


def test_after_a_restore_nothing_is_mended(platform: Platform, worker_engine: Engine) -> None:
    platform.db.rows("UPDATE quotas SET instances_used = 3")
    platform.db.rows("INSERT INTO restores (id, backup_at, epoch) VALUES (gen_random_uuid(), now(), 2)")
    assert compare(worker_engine) == Compared()
