"""The steps of a project's end, on rows as the API accepts them."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from activities.project_ends import AT_ONCE, ProjectEnd, ProjectEnds
from activities.rounds import Emptying
from activities.runs import RunEnded
from model.base import new_id
from model.workflows import Failure, Order
from tests.activities.conftest import NoHistories, Platform
from tests.activities.test_fleet import LIMITS


@pytest.fixture
def ends(worker_engine: Engine) -> ProjectEnds:
    return ProjectEnds(worker_engine, NoHistories(), LIMITS)  # type: ignore[arg-type]


def accepted(platform: Platform) -> Order:
    project = platform.db.project_id
    order = Order(
        workflow_id=new_id(),
        project_id=project,
        kind="DeprovisionProject",
        resource_type="project",
        resource_id=project,
        name="default",
        request_id="test",
        deadline_seconds=60,
    )
    platform.db.rows(
        'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order")'
        " VALUES (%s, %s, 'DeprovisionProject', 'project', %s, 'test', %s)",
        *(order.workflow_id, project, project, Jsonb(order.model_dump(mode="json"))),
    )
    platform.db.rows("UPDATE projects SET deleting_at = now()")
    return order


def image(platform: Platform) -> UUID:
    id = new_id()
    row = (id, platform.db.project_id)
    platform.db.rows(
        "INSERT INTO images (id, project_id, name, status, source) VALUES (%s, %s, 'own', 'pending', 'upload')", *row
    )
    return id


def carry_out(platform: Platform, child: Order, outcome: str = "completed") -> None:
    platform.run(platform.records.claim, child, run_id=f"run-{child.workflow_id}")
    platform.settle(child, outcome, None if outcome == "completed" else "engine_refused")  # type: ignore[arg-type]


def project(platform: Platform) -> dict[str, object]:
    return platform.db.one("SELECT * FROM projects WHERE id = %s", platform.db.project_id)


def test_cron_jobs_end_before_anything_else(platform: Platform, ends: ProjectEnds) -> None:
    platform.db.rows(
        "INSERT INTO cron_jobs (id, project_id, name, schedule, time_zone, target, overlap, catchup_seconds, owner)"
        " VALUES (gen_random_uuid(), %s, 'j', '@daily', 'UTC', '{}', 'skip', 60, 'test')",
        platform.db.project_id,
    )
    order = accepted(platform)
    for _ in range(2):
        platform.run(ends.next, order)
        row = platform.db.one("SELECT deleted_at, version FROM cron_jobs")
        assert row["deleted_at"] is not None and row["version"] == 2
    assert platform.run(ends.forget, order)


def test_instances_and_then_images_are_deleted_a_few_at_a_time(platform: Platform, ends: ProjectEnds) -> None:
    image(platform)
    for n in range(AT_ONCE + 1):
        platform.running(f"w-{n}")
    order = accepted(platform)
    first = platform.run(ends.next, order)
    assert (len(first.deletions), first.busy, first.stuck) == (AT_ONCE, 1, [])
    assert {child.workflow_id for child in platform.run(ends.next, order).deletions} == {
        child.workflow_id for child in first.deletions
    }
    for child in first.deletions:
        carry_out(platform, child)
    (last,) = platform.run(ends.next, order).deletions
    carry_out(platform, last)
    (own,) = platform.run(ends.next, order).deletions
    assert (own.kind, own.name) == ("DeleteImage", "own")
    assert not platform.run(ends.forget, order), "an image is there still"
    platform.db.rows("UPDATE images SET status = 'deleted', deleted_at = now()")
    platform.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE kind = 'DeleteImage'")
    assert platform.run(ends.next, order) == Emptying()
    assert platform.run(ends.forget, order)
    assert platform.run(ends.forget, order), "repeated, as its answer may be lost"
    platform.run(ends.settle, ProjectEnd(order=order, outcome="completed"))
    assert project(platform)["deleted_at"] is not None
    for table in ("bindings", "api_keys", "service_accounts", "roles"):
        assert platform.db.rows(f"SELECT 1 FROM {table}") == [], table
    assert platform.db.one("SELECT default_project_id FROM users")["default_project_id"] is None
    assert platform.db.quota()["instances_used"] == 0
    with pytest.raises(RunEnded):
        platform.run(ends.next, order)


def test_project_is_open_again_where_something_could_not_be_deleted(platform: Platform, ends: ProjectEnds) -> None:
    platform.running("web")
    order = accepted(platform)
    (child,) = platform.run(ends.next, order).deletions
    carry_out(platform, child, "failed")
    assert platform.run(ends.next, order) == Emptying(stuck=["web"], left=1)
    for _ in range(2):
        failure = Failure(code="not_emptied", message="web")
        platform.run(ends.settle, ProjectEnd(order=order, outcome="failed", failure=failure))
    assert (project(platform)["deleting_at"], project(platform)["deleted_at"]) == (None, None)
    assert platform.db.rows("SELECT 1 FROM events WHERE type = 'project.kept'") == [{"?column?": 1}]


def test_deletions_that_have_not_begun_end_with_it(platform: Platform, ends: ProjectEnds) -> None:
    launched = platform.running("web")
    own = image(platform)
    order = accepted(platform)
    (child,) = platform.run(ends.next, order).deletions
    platform.run(ends.settle, ProjectEnd(order=order, outcome="failed", failure=Failure(code="x", message="x")))
    assert platform.workflow(child)["state"] == "cancelled"
    assert platform.instance(launched)["status"] == "running"
    assert platform.db.one("SELECT status FROM images WHERE id = %s", own)["status"] == "pending"


def test_launch_under_way_is_called_off(platform: Platform, ends: ProjectEnds) -> None:
    launched = platform.launch("web")
    order = accepted(platform)
    (child,) = platform.run(ends.next, order).deletions
    assert child.resource_id == launched.resource_id
    assert platform.workflow(launched)["state"] == "cancelled"


def test_personal_project_takes_its_user_with_it(platform: Platform, ends: ProjectEnds) -> None:
    db = platform.db
    user = db.user(db.project_id, "jo", "owner")
    db.rows("UPDATE projects SET personal_of = %s WHERE id = %s", user, db.project_id)
    db.session(user)
    assert platform.run(ends.forget, accepted(platform))
    assert db.rows("SELECT 1 FROM users WHERE id = %s", user) == db.rows("SELECT 1 FROM sessions") == []


def test_what_a_release_before_left_sealed_of_a_deleted_instance_goes_too(
    platform: Platform, ends: ProjectEnds
) -> None:
    launch = platform.running()
    platform.settle(platform.change(launch, "DeprovisionInstance"), "completed")
    key = new_id()
    platform.db.rows(
        "INSERT INTO data_keys (id, project_id, master_key_id, wrapped) VALUES (%s, %s, 'here', '')",
        *(key, platform.db.project_id),
    )
    platform.db.rows(
        "INSERT INTO sealed_values (id, project_id, instance_id, data_key_id, nonce, ciphertext)"
        " VALUES (%s, %s, %s, %s, '', '')",
        *(new_id(), platform.db.project_id, launch.resource_id, key),
    )
    platform.db.rows("UPDATE instances SET status = 'deleted'")
    assert platform.run(ends.forget, accepted(platform))
    assert platform.db.rows("SELECT id FROM sealed_values UNION SELECT id FROM data_keys") == []


def test_project_of_another_is_not_forgotten(platform: Platform) -> None:
    with platform.db.connect("cairn_worker") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT forget_project(%s)", [platform.db.project_id])
        connection.execute("SELECT set_config('cairn.project', %s, false)", [str(new_id())])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT forget_project(%s)", [platform.db.project_id])
