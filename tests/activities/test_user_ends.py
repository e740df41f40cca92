"""The steps of a user's end, on rows as the API accepts them."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from activities.project_ends import ProjectEnd, ProjectEnds
from activities.rounds import Emptying
from activities.runs import RunEnded
from activities.user_ends import UserEnd, UserEnds
from model.base import new_id
from model.workflows import Failure, Order
from tests.activities.conftest import NoHistories, Platform
from tests.activities.test_fleet import LIMITS


@pytest.fixture
def users(worker_engine: Engine) -> UserEnds:
    return UserEnds(worker_engine, NoHistories())  # type: ignore[arg-type]


@pytest.fixture
def projects(worker_engine: Engine) -> ProjectEnds:
    return ProjectEnds(worker_engine, NoHistories(), LIMITS)  # type: ignore[arg-type]


class Jo:
    """Owns a personal project, one alone, and one with somebody who is deactivated."""

    def __init__(self, platform: Platform) -> None:
        self.db = db = platform.db
        names = ("personal", "alone", "shared")
        for name in names:
            db.project(name)
        self.personal, self.alone, self.shared = (
            db.one("SELECT id FROM projects WHERE name = %s", name)["id"] for name in names
        )
        self.id: UUID = db.one("SELECT user_id FROM bindings WHERE project_id = %s", self.personal)["user_id"]
        for project in (self.alone, self.shared):
            db.rows("UPDATE bindings SET user_id = %s WHERE project_id = %s", self.id, project)
        db.rows("UPDATE projects SET personal_of = %s WHERE id = %s", self.id, self.personal)
        other = db.user(self.shared, "asleep", "owner")
        db.rows("UPDATE users SET deactivated_at = now() WHERE id = ANY(%s)", [other, self.id])

    def order(self) -> Order:
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind="DeprovisionUser",
            resource_type="user",
            resource_id=self.id,
            name=str(self.id),
            request_id="test",
            deadline_seconds=60,
        )
        self.db.rows(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order")'
            " VALUES (%s, %s, 'DeprovisionUser', 'user', %s, 'test', %s)",
            *(order.workflow_id, order.project_id, self.id, Jsonb(order.model_dump(mode="json"))),
        )
        return order

    def is_there(self) -> bool:
        return bool(self.db.rows("SELECT 1 FROM users WHERE id = %s", self.id))


@pytest.fixture
def jo(platform: Platform) -> Jo:
    return Jo(platform)


def end(platform: Platform, projects: ProjectEnds, child: Order) -> None:
    run_id = f"run-{child.workflow_id}"
    assert platform.run(projects.next, child, run_id) == Emptying()
    assert platform.run(projects.forget, child, run_id)
    platform.run(projects.settle, ProjectEnd(order=child, outcome="completed"))


def test_what_nobody_else_owns_goes_and_the_personal_project_last(
    platform: Platform, users: UserEnds, projects: ProjectEnds, jo: Jo
) -> None:
    order = jo.order()
    (first,) = platform.run(users.next, order).deletions
    assert (first.kind, first.project_id, first.resource_id) == ("DeprovisionProject", jo.alone, jo.alone)
    assert platform.run(users.next, order).deletions == [first], "its answer may be lost"
    assert not platform.run(users.forget, order), "there are projects still"
    end(platform, projects, first)
    (last,) = platform.run(users.next, order).deletions
    assert last.project_id == jo.personal
    end(platform, projects, last)
    assert not jo.is_there(), "went with the personal project"
    assert platform.run(users.next, order) == Emptying()
    assert platform.run(users.forget, order) and platform.run(users.forget, order)
    platform.run(users.settle, UserEnd(order=order, outcome="completed"))
    assert jo.db.one("SELECT deleted_at FROM projects WHERE id = %s", jo.shared)["deleted_at"] is None
    assert "user.deleted" in platform.events(order)
    with pytest.raises(RunEnded):
        platform.run(users.next, order)


def test_what_could_not_be_deleted_is_named_and_the_personal_project_is_left(
    platform: Platform, users: UserEnds, projects: ProjectEnds, jo: Jo
) -> None:
    order = jo.order()
    (first,) = platform.run(users.next, order).deletions
    platform.run(projects.next, first, f"run-{first.workflow_id}")
    failure = Failure(code="not_emptied", message="web")
    platform.run(projects.settle, ProjectEnd(order=first, outcome="failed", failure=failure))
    assert platform.run(users.next, order) == Emptying(stuck=[f"project {jo.alone}"], left=1)
    platform.run(users.settle, UserEnd(order=order, outcome="failed", failure=failure))
    assert jo.is_there()
    assert jo.db.rows("SELECT 1 FROM projects WHERE deleting_at IS NOT NULL OR deleted_at IS NOT NULL") == []


def test_project_that_another_run_deletes_is_waited_for(platform: Platform, users: UserEnds, jo: Jo) -> None:
    jo.db.rows("UPDATE projects SET deleting_at = now() WHERE id = %s", jo.alone)
    assert platform.run(users.next, jo.order()) == Emptying(busy=1)


def test_deletions_that_have_not_begun_end_with_it(platform: Platform, users: UserEnds, jo: Jo) -> None:
    order = jo.order()
    (first,) = platform.run(users.next, order).deletions
    platform.run(users.settle, UserEnd(order=order, outcome="failed", failure=Failure(code="x", message="x")))
    assert platform.workflow(first)["state"] == "cancelled"
    assert jo.db.rows("SELECT 1 FROM projects WHERE deleting_at IS NOT NULL") == []


def test_user_who_was_activated_again_is_not_deleted(platform: Platform, users: UserEnds, jo: Jo) -> None:
    jo.db.rows("UPDATE users SET deactivated_at = NULL WHERE id = %s", jo.id)
    jo.db.rows("UPDATE projects SET deleted_at = now(), personal_of = NULL WHERE id <> %s", jo.db.project_id)
    assert not platform.run(users.forget, jo.order())
    assert jo.is_there()


def test_a_user_who_is_activated_again_keeps_what_is_not_deleted_yet(
    platform: Platform, users: UserEnds, projects: ProjectEnds, jo: Jo
) -> None:
    order = jo.order()
    (first,) = platform.run(users.next, order).deletions
    end(platform, projects, first)
    platform.db.rows("UPDATE users SET deactivated_at = NULL WHERE id = %s", jo.id)
    assert platform.run(users.next, order) == Emptying(), "the personal project stays, with the user"
    assert not platform.run(users.forget, order) and jo.is_there()
