"""The records of cache volumes: where they are, and what runs leave behind; what of them is purged."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.cache_volume_ends import CacheVolumeEnd
from activities.cache_volumes import CacheVolumeRecords
from activities.project_ends import ProjectEnds
from activities.purge import PurgeRecords, Retention
from activities.runs import RunEnded
from model.base import new_id
from model.cache_volumes import CacheHosts, CacheSpec
from model.errors import NotReady, Superseded
from model.workflows import Failure, Order, Outcome
from tests.activities.conftest import NoHistories, Platform
from tests.activities.test_fleet import LIMITS
from tests.activities.test_project_ends import accepted
from tests.services import Database

FAILED = Failure(code="engine_refused", message="host one: no", step="cache_volume.clear")
CLEAR, DELETE = "ClearCacheVolume", "DeprovisionCacheVolume"


@dataclass
class Pip:
    """A cache volume that is on both hosts."""

    db: Database
    records: CacheVolumeRecords
    id: UUID

    def order(self, kind: str, status: str, **more: Any) -> Order:
        """What accepting a run writes."""
        about: dict[str, Any] = {"resource_type": "cache_volume", "resource_id": self.id, "name": "pip"}
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            request_id="test",
            deadline_seconds=60,
            **about | more,
        )
        self.db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
            " VALUES (%s, %s, %s, 'cache_volume', %s, 'test', %s, (SELECT status FROM cache_volumes))",
            *(order.workflow_id, order.project_id, kind, self.id, Jsonb(order.model_dump(mode="json"))),
        )
        self.db.rows("UPDATE cache_volumes SET workflow_id = %s, status = %s", order.workflow_id, status)
        return order

    def claim(self, order: Order, waited: float = 0) -> CacheHosts:
        environment = ActivityEnvironment()
        scheduled = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=waited)
        environment.info = replace(environment.info, scheduled_time=scheduled)
        found: CacheHosts = environment.run(self.records.claim, order)
        return found

    def settle(self, order: Order, outcome: Outcome = "completed") -> Any:
        failure = None if outcome == "completed" else FAILED
        ended = CacheVolumeEnd(order=order, outcome=outcome, failure=failure)
        ActivityEnvironment().run(self.records.settle, ended)
        return self.db.one("SELECT * FROM cache_volumes")


def written(database: Database) -> UUID:
    id = new_id()
    database.rows(
        "INSERT INTO cache_volumes (id, project_id, name, status, path) VALUES (%s, %s, 'pip', 'ready', '/c')",
        *(id, database.project_id),
    )
    for host in ("two", "one"):
        database.rows(
            "INSERT INTO cache_volume_hosts (volume_id, host_id, project_id) VALUES (%s, %s, %s)",
            *(id, database.hosts[host], database.project_id),
        )
    return id


@pytest.fixture
def pip(database: Database, worker_engine: Engine) -> Pip:
    histories: Any = NoHistories()
    return Pip(database, CacheVolumeRecords(worker_engine, histories), written(database))


def test_it_is_cleared_where_it_is_once(pip: Pip) -> None:
    order = pip.order(CLEAR, "clearing")
    found = pip.claim(order)
    assert found == CacheHosts(hosts=["one", "two"], spec=CacheSpec(id=pip.id, project_id=pip.db.project_id))
    assert pip.claim(order) == found
    cleared = pip.settle(order)
    assert (cleared["status"], cleared["error"]) == ("ready", None) and cleared["cleared_at"]
    assert pip.settle(order, "failed") == cleared
    with pytest.raises(RunEnded):
        pip.claim(order)
    # One that fails leaves it ready, with the reason, and may be repeated.
    again = pip.order(CLEAR, "clearing")
    pip.claim(again)
    failed = pip.settle(again, "failed")
    assert (failed["status"], failed["error"]["message"]) == ("ready", "host one: no")
    assert failed["cleared_at"] == cleared["cleared_at"]
    assert len(pip.db.rows("SELECT 1 FROM cache_volume_hosts")) == 2


def test_a_delete_waits_for_the_run_in_the_way_and_owns_the_row(pip: Pip) -> None:
    clear = pip.order(CLEAR, "clearing")
    pip.claim(clear)
    order = pip.order(DELETE, "deleting")
    with pytest.raises(NotReady, match=str(clear.workflow_id)):
        pip.claim(order)
    with pytest.raises(Superseded):
        pip.claim(clear)
    assert pip.settle(clear)["status"] == "deleting", "the delete owns it now"
    assert pip.claim(order).hosts == ["one", "two"]
    gone = pip.settle(order)
    assert gone["status"] == "deleted" and gone["deleted_at"]
    assert not pip.db.rows("SELECT 1 FROM cache_volume_hosts")
    with pytest.raises(RunEnded):
        pip.claim(order.model_copy(update={"resource_id": uuid4()}))


def test_a_delete_that_is_forced_waits_for_a_moment_alone(pip: Pip) -> None:
    pip.claim(pip.order(DELETE, "deleting"))
    forced = pip.order(DELETE, "deleting", force=True)
    with pytest.raises(NotReady):
        pip.claim(forced)
    assert pip.claim(forced, waited=60).hosts == ["one", "two"]


@pytest.mark.parametrize(("claimed", "ends"), [(False, "ready"), (True, "error")])
def test_a_delete_that_fails_has_changed_something_once_it_has_begun(pip: Pip, claimed: bool, ends: str) -> None:
    order = pip.order(DELETE, "deleting")
    if claimed:
        pip.claim(order)
    assert pip.settle(order, "cancelled")["status"] == ends
    assert len(pip.db.rows("SELECT 1 FROM cache_volume_hosts")) == 2


def test_a_projects_end_takes_it_along_once_no_session_has_it(platform: Platform, worker_engine: Engine) -> None:
    histories: Any = NoHistories()
    ends = ProjectEnds(worker_engine, histories, LIMITS)
    pip = Pip(platform.db, CacheVolumeRecords(worker_engine, histories), written(platform.db))
    platform.running("web")
    order = accepted(platform)
    (first,) = platform.run(ends.next, order).deletions
    assert first.resource_type == "instance"
    platform.run(platform.records.claim, first, run_id="run-2")
    platform.settle(first, "completed")
    (child,) = platform.run(ends.next, order).deletions
    assert (child.kind, child.resource_id) == (DELETE, pip.id)
    assert not platform.run(ends.forget, order)
    pip.claim(child)
    assert pip.settle(child)["status"] == "deleted"
    assert platform.run(ends.forget, order)


def test_it_is_purged_after_the_sessions_that_had_it(pip: Pip, worker_engine: Engine) -> None:
    order = pip.order(DELETE, "deleting")
    pip.claim(order)
    pip.settle(order)
    pip.db.rows("UPDATE cache_volumes SET deleted_at = now() - interval '3 days'")
    pip.db.rows("UPDATE workflows SET finished_at = now() - interval '3 days', created_at = now() - interval '3 days'")
    session, workspace, instance = new_id(), new_id(), new_id()
    at = (pip.db.project_id, order.workflow_id)
    pip.db.rows(
        "INSERT INTO workspaces (id, project_id, name, status, path, workflow_id)"
        " VALUES (%s, %s, 'w', 'ready', '/', %s)",
        *(workspace, *at),
    )
    pip.db.rows(
        "INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend,"
        " workflow_id, deleted_at) VALUES (%s, %s, 's', 'deleted', 'i', 'basic-1', 1, 1, 'docker', %s, now())",
        *(instance, *at),
    )
    pip.db.rows(
        'INSERT INTO work_sessions (id, project_id, name, status, workspace_id, "commit", instance_id, workflow_id,'
        " deleted_at) VALUES (%s, %s, 's', 'removed', %s, '1', %s, %s, now())",
        *(session, pip.db.project_id, workspace, instance, order.workflow_id),
    )
    pip.db.rows(
        "INSERT INTO session_cache_volumes (session_id, volume_id, project_id) VALUES (%s, %s, %s)",
        *(session, pip.id, pip.db.project_id),
    )
    day = dt.timedelta(days=1)
    purge = PurgeRecords(worker_engine, Retention(deleted=day, events=day, workflows=day))
    for ended, left in ((False, 1), (True, 0)):
        if ended:
            pip.db.rows("UPDATE work_sessions SET deleted_at = now() - interval '3 days'")
        done = ActivityEnvironment().run(purge.purge)
        assert done.failed == []
        for table in ("cache_volumes", "session_cache_volumes"):
            assert len(pip.db.rows(f"SELECT 1 FROM {table}")) == left, (table, ended)
