"""The records of workspaces: where they are placed, with which credential, and what runs leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.runs import RunEnded
from activities.workspace_ends import WorkspaceEnd
from activities.workspaces import Placed, WorkspaceRecords
from model.base import new_id
from model.errors import NoCapacity, NotReady, Superseded
from model.workflows import Failure, Order, Outcome
from model.workspaces import WorkspaceFacts
from tests.activities.conftest import NoHistories
from tests.services import Database

FAILED = Failure(code="fetch_failed", message="no")
FACTS = WorkspaceFacts(commit="2" * 40, ref="main", size_bytes=7)


@dataclass
class Shop:
    """A workspace that is accepted; both hosts can hold it."""

    db: Database
    records: WorkspaceRecords
    id: UUID

    def order(self, kind: str, status: str) -> Order:
        """What accepting a run writes."""
        about: dict[str, Any] = {"resource_type": "workspace", "resource_id": self.id, "name": "shop"}
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            request_id="test",
            deadline_seconds=60,
            **about,
        )
        self.db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
            " VALUES (%s, %s, %s, 'workspace', %s, 'test', %s, (SELECT status FROM workspaces))",
            *(order.workflow_id, order.project_id, kind, self.id, Jsonb(order.model_dump(mode="json"))),
        )
        self.db.rows("UPDATE workspaces SET workflow_id = %s, status = %s", order.workflow_id, status)
        return order

    def placed(self, order: Order) -> Placed:
        self.run("claim", order)
        found: Placed = self.run("place", order)
        return found

    def run(self, step: str, argument: Any) -> Any:
        return ActivityEnvironment().run(getattr(self.records, step), argument)

    def settle(self, order: Order, outcome: Outcome = "completed", facts: WorkspaceFacts | None = None) -> Any:
        failure = None if outcome == "completed" else FAILED
        self.run("settle", WorkspaceEnd(order=order, outcome=outcome, failure=failure, facts=facts))
        return self.db.one("SELECT * FROM workspaces")


@pytest.fixture
def shop(database: Database, worker_engine: Engine) -> Shop:
    histories: Any = NoHistories()
    made = Shop(database, WorkspaceRecords(worker_engine, histories), new_id())
    database.rows("UPDATE hosts SET capabilities = '[\"workspaces\"]', last_seen_at = now()")
    run = new_id()
    database.rows(
        'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", state, finished_at)'
        " VALUES (%s, %s, 'InitWorkspace', 'workspace', %s, 'test', '{}', 'completed', now())",
        *(run, database.project_id, made.id),
    )
    database.rows(
        "INSERT INTO workspaces (id, project_id, name, status, git_url, workflow_id)"
        " VALUES (%s, %s, 'shop', 'initializing', 'https://git.example.org/shop.git', %s)",
        *(made.id, database.project_id, run),
    )
    return made


def test_it_is_placed_once_where_it_can_be_held(shop: Shop) -> None:
    order = shop.order("InitWorkspace", "initializing")
    shop.db.rows("UPDATE hosts SET capabilities = '[]' WHERE name = 'one'")
    first = shop.placed(order)
    assert (first.host, first.spec.keep, first.spec.login) == ("two", [], False)
    # Whatever becomes of the hosts: it is there, and its undo has to find it there.
    shop.db.rows("UPDATE hosts SET capabilities = '[\"workspaces\"]' WHERE name = 'one'")
    shop.db.rows("UPDATE hosts SET state = 'draining', last_seen_at = NULL WHERE name = 'two'")
    assert shop.run("place", order) == first
    shop.db.rows("UPDATE workspaces SET host_id = NULL, wanted_host = 'two'")
    with pytest.raises(NoCapacity, match="'two' is not there"):
        shop.run("place", order)
    shop.db.rows("UPDATE hosts SET state = 'ready'")
    with pytest.raises(NotReady, match="two"):
        shop.run("place", order)


def test_what_ends_first_counts_and_is_repeated_without_effect(shop: Shop) -> None:
    order = shop.order("InitWorkspace", "initializing")
    shop.placed(order)
    made = shop.settle(order, facts=FACTS)
    assert (made["status"], made["commit"], made["ref"], made["size_bytes"]) == ("ready", "2" * 40, "main", 7)
    assert shop.settle(order, "failed") == made
    with pytest.raises(RunEnded):
        shop.run("claim", order)
    # A sync that fails leaves all as it was, with the reason; files of the commit before stay beside the new ones.
    sync = shop.order("SyncWorkspace", "ready")
    assert shop.placed(sync).spec.keep == ["2" * 40]
    failed = shop.settle(sync, "failed")
    assert (failed["status"], failed["commit"], failed["error"]["code"]) == ("ready", "2" * 40, "fetch_failed")


def test_of_a_first_fetch_that_fails_the_row_is_left_alone(shop: Shop) -> None:
    order = shop.order("InitWorkspace", "initializing")
    shop.placed(order)
    failed = shop.settle(order, "cancelled")
    assert (failed["status"], failed["commit"]) == ("error", None)


def test_a_delete_waits_for_the_run_in_the_way_and_owns_the_row(shop: Shop) -> None:
    init = shop.order("InitWorkspace", "initializing")
    shop.placed(init)
    order = shop.order("DeprovisionWorkspace", "deleting")
    with pytest.raises(NotReady, match=str(init.workflow_id)):
        shop.run("claim", order)
    with pytest.raises(Superseded):
        shop.run("claim", init)
    assert shop.settle(init, facts=FACTS)["status"] == "deleting", "the delete owns it now"
    assert shop.placed(order).host is not None
    gone = shop.settle(order)
    assert (gone["status"], gone["host_id"]) == ("deleted", None) and gone["deleted_at"]
    with pytest.raises(RunEnded):
        shop.run("claim", order.model_copy(update={"resource_id": uuid4()}))
