"""The records of work sessions: what runs do to sandboxes, what they leave behind, what is ordered by the clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from activities.commits import CommitRecords, Committed
from activities.database import transaction
from activities.fleet import Limits
from activities.instances import InstanceRecords
from activities.lifetimes import order_due
from activities.session_ends import SessionEnd
from activities.sessions import SessionRecords
from activities.workspaces import commits_in_use
from model.base import new_id
from model.errors import InvalidState, NotReady, WorkspaceMoved
from model.workflows import Failure, Order
from model.workspaces import Workspace
from tests.activities.conftest import CAPACITY, NoHistories, Platform
from tests.services import Database

LIMITS = Limits(reconcile_interval=15, fence_after=30, deadline_launch=60, capacity=CAPACITY)
FAILED = Failure(code="engine_refused", message="no")
COMMIT = "1" * 40


@dataclass
class Worked:
    """A session that runs on host one."""

    platform: Platform
    engine: Engine
    records: SessionRecords
    session: UUID
    sandbox: UUID
    workspace: UUID

    @property
    def db(self) -> Database:
        return self.platform.db

    def order(self, kind: str, status: str | None = None) -> Order:
        """What accepting a change writes."""
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            resource_type="session",
            resource_id=self.session,
            name="work",
            request_id="test",
            deadline_seconds=60,
        )
        self.db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
            " SELECT %s, %s, %s, 'session', id, 'test', %s, status FROM work_sessions",
            *(order.workflow_id, order.project_id, kind, Jsonb(order.model_dump(mode="json"))),
        )
        values = (order.workflow_id, status)
        self.db.rows("UPDATE work_sessions SET workflow_id = %s, status = coalesce(%s, status)", *values)
        return order

    def settle(self, order: Order, failure: Failure | None = None) -> str:
        outcome = "completed" if failure is None else "failed"
        self.platform.run(self.records.settle, SessionEnd(order=order, outcome=outcome, failure=failure))
        return str(self.db.one("SELECT status FROM work_sessions")["status"])

    def put(self, status: str) -> None:
        self.db.rows("UPDATE instances SET status = %s", status)
        self.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_type = 'instance'")

    def due(self) -> list[Order]:
        with transaction(self.engine) as session:
            return order_due(session, LIMITS)


@pytest.fixture
def worked(database: Database, worker_engine: Engine) -> Iterator[Worked]:
    histories: Any = NoHistories()
    platform = Platform(database, InstanceRecords(worker_engine, CAPACITY, histories))
    session, workspace = new_id(), new_id()
    launch = platform.launch("sandbox", session_id=session)
    database.rows(
        "UPDATE instances SET status = 'running', host_id = %s, generation = 1, container_id = 'c-1'",
        database.hosts["one"],
    )
    database.rows("UPDATE workflows SET state = 'completed', finished_at = now()")
    run = database.one("SELECT id FROM workflows LIMIT 1")["id"]
    database.rows(
        'INSERT INTO workspaces (id, project_id, name, status, path, host_id, "commit", workflow_id)'
        " VALUES (%s, %s, 'shop', 'ready', '/srv', %s, %s, %s)",
        *(workspace, database.project_id, database.hosts["one"], "2" * 40, run),
    )
    database.rows(
        'INSERT INTO work_sessions (id, project_id, name, status, workspace_id, "commit", instance_id, workflow_id)'
        " VALUES (%s, %s, 'work', 'running', %s, %s, %s, %s)",
        *(session, database.project_id, workspace, COMMIT, launch.resource_id, run),
    )
    records = SessionRecords(worker_engine, histories, LIMITS)
    yield Worked(platform, worker_engine, records, session, launch.resource_id, workspace)


def test_what_was_not_made_whole_is_its_deletes_once_there_is_one(worked: Worked) -> None:
    init = worked.order("InitSession", "initializing")
    delete = worked.order("DeprovisionSession", "removing")
    assert worked.platform.run(worked.records.remove, init) is None, "nobody waits for the other"
    with pytest.raises(NotReady):
        worked.platform.run(worked.records.remove, delete)
    worked.db.rows("UPDATE workflows SET state = 'cancelled', finished_at = now() WHERE id = %s", init.workflow_id)
    doomed = worked.platform.run(worked.records.remove, delete)
    assert doomed.change.kind == "DeprovisionInstance"


def test_a_stop_is_one_stop_of_the_sandbox_however_often_it_is_asked_for(worked: Worked) -> None:
    order = worked.order("StopSession")
    first = worked.platform.run(worked.records.change, order)
    assert (first.kind, first.resource_id) == ("StopInstance", worked.sandbox)
    assert worked.platform.run(worked.records.change, order) == first
    worked.put("stopped")
    assert worked.platform.run(worked.records.change, order) is None
    assert worked.settle(order) == "stopped"


def test_what_fails_leaves_the_session_as_its_sandbox_is(worked: Worked) -> None:
    order = worked.order("StopSession")
    worked.platform.run(worked.records.change, order)
    # Its part had not begun: that ends with it, and the sandbox runs on.
    assert worked.settle(order, FAILED) == "running"
    assert worked.db.one("SELECT status FROM instances")["status"] == "running"
    assert worked.db.one("SELECT error FROM work_sessions")["error"]["code"] == "engine_refused"
    order = worked.order("StartSession")
    worked.put("error")
    with pytest.raises(InvalidState):
        worked.platform.run(worked.records.change, order)
    worked.put("starting")
    with pytest.raises(NotReady):
        worked.platform.run(worked.records.change, order)


def test_a_delete_waits_for_other_runs_and_then_takes_the_sandbox(worked: Worked) -> None:
    stop = worked.order("StopSession")
    order = worked.order("DeprovisionSession", "removing")
    with pytest.raises(NotReady):
        worked.platform.run(worked.records.remove, order)
    assert worked.settle(stop, FAILED) == "removing"
    doomed = worked.platform.run(worked.records.remove, order)
    assert (doomed.host, doomed.tree.commit, doomed.change.kind) == ("one", COMMIT, "DeprovisionInstance")
    assert worked.platform.run(worked.records.remove, order) == doomed
    worked.put("deleted")
    assert worked.platform.run(worked.records.remove, order).change is None
    assert worked.settle(order) == "removed"
    assert worked.db.one("SELECT deleted_at FROM work_sessions")["deleted_at"]


def test_what_is_due_is_ordered_of_the_session_once(worked: Worked) -> None:
    worked.db.rows("UPDATE instances SET ttl_seconds = 1, expires_at = now() - interval '1 minute'")
    (order,) = worked.due()
    assert (order.kind, order.resource_id) == ("DeprovisionSession", worked.session)
    assert worked.db.one("SELECT status FROM work_sessions")["status"] == "removing"
    assert worked.db.one("SELECT status FROM instances")["status"] == "running"
    assert worked.due() == []
    # It was only a row, and nothing of the session is gone.
    assert worked.settle(order, FAILED) == "running"
    assert worked.due() == [], "it failed a moment ago"
    again = worked.order("DeprovisionSession", "removing")
    worked.platform.run(worked.records.remove, again)
    assert worked.settle(again, FAILED) == "error"


def test_a_commit_is_the_workspace_s_where_that_is_still_where_it_was(worked: Worked) -> None:
    commits, platform = CommitRecords(worked.engine), worked.platform
    order = worked.order("CommitSession")
    with pytest.raises(WorkspaceMoved) as refused:
        platform.run(commits.begin, order)
    assert "2" * 40 in refused.value.message and COMMIT in refused.value.message
    worked.db.rows('UPDATE workspaces SET "commit" = %s', COMMIT)
    begun = platform.run(commits.begin, order)
    assert (begun.host, begun.spec.parent, begun.spec.tree.session) == ("one", COMMIT, worked.session)
    assert platform.run(commits.begin, order) == begun
    worked.db.rows("UPDATE work_sessions SET status = 'ready'")  # as one whose agent has nothing to do
    assert platform.run(commits.begin, order) == begun
    written = Committed(order=order, spec=begun.spec, commit="3" * 40)
    for _ in range(2):  # its answer was lost
        platform.run(commits.advance, written)
    assert worked.settle(order) == "running"
    at = worked.db.one('SELECT w."commit", s.head, s."commit" AS began FROM workspaces w, work_sessions s')
    assert (at["commit"], at["head"], at["began"]) == ("3" * 40, "3" * 40, COMMIT)
    assert len(worked.db.rows("SELECT 1 FROM events WHERE type = 'session.committed'")) == 1
    # The next one follows it; another came meanwhile, and keeps what it made.
    order = worked.order("CommitSession")
    begun = platform.run(commits.begin, order)
    assert begun.spec.parent == "3" * 40
    worked.db.rows('UPDATE workspaces SET "commit" = %s', "4" * 40)
    with pytest.raises(WorkspaceMoved) as refused:
        platform.run(commits.advance, Committed(order=order, spec=begun.spec, commit="5" * 40))
    assert refused.value.details == {"workspace_commit": "4" * 40, "session_commit": "3" * 40}
    assert worked.settle(order, FAILED) == "running"
    assert worked.db.one("SELECT head FROM work_sessions")["head"] == "3" * 40


def test_a_forced_delete_forces_that_of_the_sandbox_and_waits_for_none(
    worked: Worked, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked.order("DeprovisionSession", "removing")  # one that waits for a host which is lost
    order = worked.order("DeprovisionSession", "removing").model_copy(update={"force": True})
    with pytest.raises(NotReady):
        worked.platform.run(worked.records.remove, order)
    monkeypatch.setattr("activities.sessions.FORCE_AFTER", dt.timedelta(seconds=-60))
    assert worked.platform.run(worked.records.remove, order).change.force


def test_files_of_the_commits_of_sessions_are_kept(worked: Worked) -> None:
    def kept() -> list[str]:
        with transaction(worked.engine, worked.db.project_id) as session:
            return commits_in_use(session, session.get_one(Workspace, worked.workspace))

    assert kept() == [COMMIT, "2" * 40]
    worked.db.rows("UPDATE work_sessions SET status = 'removed'")
    assert kept() == ["2" * 40]
