"""What is kept for a while only: it goes, in batches; what something living needs does not."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from temporalio.testing import ActivityEnvironment

from activities import purge
from activities.purge import Purged, PurgeRecords, Retention
from model.base import new_id
from model.groups import REMEMBERED
from tests.activities.conftest import Platform
from tests.activities.test_groups import Groups

RETENTION = Retention(deleted=dt.timedelta(days=7), events=dt.timedelta(days=30), workflows=dt.timedelta(days=90))
OLD, RECENT = 100, 1


def run(engine: Engine) -> Purged:
    done: Purged = ActivityEnvironment().run(PurgeRecords(engine, RETENTION).purge)
    return done


def workflow(platform: Platform, days: float, resource: UUID | None = None, state: str = "completed") -> UUID:
    """One that was created, and ended, so many days ago; its id is of then too."""
    made = new_id()
    ended = "NULL" if state == "running" else f"now() - interval '{days} days'"
    platform.db.rows(
        'INSERT INTO workflows (id, project_id, kind, state, resource_type, resource_id, actor, "order", created_at, '
        f"finished_at) VALUES (%s, %s, 'StopInstance', %s, 'instance', %s, 'key', '{{}}', "
        f"now() - interval '{days} days', {ended})",
        *(made, platform.db.project_id, state, resource or new_id()),
    )
    return made


def instance(platform: Platform, days: float, status: str = "deleted", of: UUID | None = None) -> UUID:
    made = new_id()
    deleted = f"now() - interval '{days} days'" if status == "deleted" else "NULL"
    platform.db.rows(
        "INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend, "
        f"workflow_id, deleted_at) VALUES (%s, %s, %s, %s, 'i', 'basic-1', 1, 512, 'docker', %s, {deleted})",
        *(made, platform.db.project_id, str(made), status, of or workflow(platform, days, made)),
    )
    return made


def image(platform: Platform, days: float, status: str = "deleted", of: UUID | None = None) -> UUID:
    made = new_id()
    deleted = f"now() - interval '{days} days'" if status == "deleted" else "NULL"
    platform.db.rows(
        "INSERT INTO images (id, project_id, name, status, source, workflow_id, deleted_at) "
        f"VALUES (%s, %s, %s, %s, 'registry', %s, {deleted})",
        *(made, platform.db.project_id, str(made), status, of or workflow(platform, days, made)),
    )
    return made


def deliveries(platform: Platform, days: float, state: str, *, active: bool) -> None:
    webhook = new_id()
    platform.db.rows(
        "INSERT INTO webhooks (id, project_id, name, url, events, secret, active, epoch, xid, number) "
        "VALUES (%s, %s, %s, 'http://x', '[]', 's', %s, 0, 0, 0)",
        *(webhook, platform.db.project_id, str(webhook), active),
    )
    platform.db.rows(
        "INSERT INTO webhook_deliveries (id, project_id, webhook_id, epoch, xid, event_id, event_type, state, "
        f"created_at) VALUES (%s, %s, %s, 0, 0, 0, %s, %s, now() - interval '{days} days')",
        *(new_id(), platform.db.project_id, webhook, f"{state} {days:g}", state),
    )


def events(platform: Platform, days: float, count: int, project: UUID | None = None) -> None:
    platform.db.rows(
        "INSERT INTO events (project_id, type, resource_type, resource_id, created_at) "
        f"SELECT %s, 't', 'instance', %s, now() - interval '{days} days' FROM generate_series(1, %s)",
        *(project or platform.db.project_id, new_id(), count),
    )


def count(platform: Platform, table: str) -> int:
    return int(platform.db.one(f"SELECT count(*) FROM {table}")["count"])


def ids(platform: Platform, table: str) -> set[Any]:
    return {row["id"] for row in platform.db.rows(f"SELECT id FROM {table}")}


def test_what_is_too_old_goes_and_what_is_not_stays(platform: Platform, worker_engine: Engine) -> None:
    recent = instance(platform, RECENT)
    instance(platform, OLD)
    events(platform, OLD, 3)
    events(platform, RECENT, 2)
    lone = workflow(platform, RECENT)
    workflow(platform, OLD)
    assert run(worker_engine) == Purged(instances=1, events=3, workflows=2)
    assert ids(platform, "instances") == {recent}
    assert lone in ids(platform, "workflows")
    assert count(platform, "events") == 2
    assert run(worker_engine) == Purged()


def test_what_a_living_instance_names_stays_however_old_and_so_does_what_runs(
    platform: Platform, worker_engine: Engine
) -> None:
    launch = workflow(platform, OLD)
    living = instance(platform, OLD, "running", of=launch)
    running = workflow(platform, OLD, state="running")
    assert run(worker_engine) == Purged()
    assert ids(platform, "workflows") == {launch, running}
    assert ids(platform, "instances") == {living}


def test_images_go_after_those_made_of_them_and_before_their_workflows(
    platform: Platform, worker_engine: Engine
) -> None:
    imported = workflow(platform, OLD)
    living = image(platform, OLD, "available", of=imported)
    used = image(platform, OLD)
    recent = image(platform, RECENT)
    image(platform, OLD)
    one = instance(platform, RECENT)
    platform.db.rows("UPDATE instances SET image_id = %s WHERE id = %s", used, one)
    platform.db.rows(
        "INSERT INTO image_caches (host_id, image_id, project_id)"
        " SELECT h.id, i.id, i.project_id FROM hosts h, images i"
    )
    assert run(worker_engine) == Purged(images=1, workflows=1)
    assert ids(platform, "images") == {living, used, recent}
    assert imported in ids(platform, "workflows")
    platform.db.rows("UPDATE instances SET deleted_at = now() - interval '8 days'")
    assert run(worker_engine) == Purged(instances=1, images=1, workflows=1)


def script(platform: Platform, group: UUID) -> UUID:
    """One that lies sealed for a group's members."""
    made, key = new_id(), new_id()
    platform.db.rows(
        "INSERT INTO data_keys (id, project_id, master_key_id, wrapped) VALUES (%s, %s, %s, '')",
        *(key, platform.db.project_id, str(key)),
    )
    platform.db.rows(
        "INSERT INTO sealed_values (id, project_id, group_id, data_key_id, nonce, ciphertext)"
        " VALUES (%s, %s, %s, %s, '', '')",
        *(made, platform.db.project_id, group, key),
    )
    return made


@pytest.mark.parametrize("batch", [3, 1000])
def test_configurations_and_scripts_of_a_group_are_bounded(
    platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(purge, "BATCH", batch)
    groups = Groups(platform, worker_engine)
    order, calm = groups.create(2), groups.create(0, name="calm")
    revisions = range(2, 31)
    scripts = {revision: script(platform, order.resource_id) for revision in revisions}
    scripts[28] = scripts[2]  # a configuration that stays has the script of one that goes
    for revision in revisions:
        groups.configure(order, revision, user_data_id=str(scripts[revision]), user_data_sha256="ab")
    living, gone = (child.resource_id for child in groups.next(order).launches)
    platform.db.rows("UPDATE instances SET group_revision = 5 WHERE id = %s", living)
    platform.db.rows("UPDATE instances SET group_revision = 6, status = 'deleted' WHERE id = %s", gone)
    platform.db.rows("UPDATE scaling_groups SET revision = 3 WHERE id = %s", order.resource_id)
    for revision in (7, 8):  # all members had them; the later one is gone back to
        rolled_out = "UPDATE group_configurations SET rolled_out_at = now() WHERE revision = %s"
        platform.db.rows(rolled_out, revision)
    stay = {3, 5, 8, *range(31 - REMEMBERED, 31)}
    assert run(worker_engine) == Purged(instances=30 - len(stay))
    left = platform.db.rows(
        "SELECT revision FROM group_configurations WHERE group_id = %s ORDER BY 1", order.resource_id
    )
    assert [row["revision"] for row in left] == sorted(stay)
    assert ids(platform, "sealed_values") == {scripts[revision] for revision in stay}
    assert platform.db.one("SELECT revision FROM group_configurations WHERE group_id = %s", calm.resource_id)
    assert run(worker_engine) == Purged()


def test_deliveries_that_ended_go_after_a_week_whether_their_webhook_is_on_or_off(
    platform: Platform, worker_engine: Engine
) -> None:
    for active in (True, False):
        for days in (6, 8):
            for state in ("pending", "delivered", "dead"):
                deliveries(platform, days, state, active=active)
    assert run(worker_engine) == Purged(deliveries=4)
    left = [row["event_type"] for row in platform.db.rows("SELECT event_type FROM webhook_deliveries")]
    assert sorted(left) == sorted(2 * ["pending 6", "delivered 6", "dead 6", "pending 8"])


def test_what_the_database_refuses_stops_nothing_else(
    platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "_WORKFLOWS", text("DELETE FROM workflows WHERE now() - :kept > :after LIMIT :most"))
    for _ in range(3):
        instance(platform, OLD)
    test_keys = "INSERT INTO idempotency_keys (project_id, key, fingerprint, resource_id, workflow_id, created_at) "
    platform.db.rows(
        f"{test_keys} VALUES (%s, 'k', '', %s, %s, now() - interval '2 days')",
        *(platform.db.project_id, new_id(), new_id()),
    )
    assert run(worker_engine) == Purged(instances=3, keys=1, failed=["workflows"])


def test_horizon_never_goes_back(platform: Platform, worker_engine: Engine) -> None:
    # The transaction of the second was older than that of the first, and is purged later.
    for xid in (100, 50):
        platform.db.rows(
            "INSERT INTO events (epoch, xid, project_id, type, resource_type, resource_id, created_at) "
            "VALUES (1, %s, %s, 't', 'instance', %s, now() - interval '100 days')",
            *(xid, platform.db.project_id, new_id()),
        )
        assert run(worker_engine).events == 1
    assert platform.db.one("SELECT xid FROM event_horizons")["xid"] == 100


def test_rows_that_stay_do_not_stop_those_behind_them(
    platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "BATCH", 3)
    kept = {workflow(platform, OLD, state="running") for _ in range(7)}
    for _ in range(8):
        workflow(platform, OLD)
    events(platform, OLD, 10)
    for _ in range(4):
        instance(platform, OLD)
    assert run(worker_engine) == Purged(instances=4, events=10, workflows=12)
    assert ids(platform, "workflows") == kept


def test_a_pass_that_is_out_of_time_says_that_there_is_more(
    platform: Platform, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "PASS_SECONDS", 0.0)
    instance(platform, OLD)
    assert run(worker_engine) == Purged(more=True)
    monkeypatch.undo()
    assert run(worker_engine).instances == 1


def test_every_project_has_its_own_horizon(platform: Platform, worker_engine: Engine) -> None:
    platform.db.project("other")
    other = platform.db.one("SELECT id FROM projects WHERE name = 'other'")["id"]
    events(platform, OLD, 4)
    events(platform, OLD, 2, other)
    events(platform, RECENT, 1, other)
    last = platform.db.one("SELECT max(id) FROM events WHERE project_id = %s", platform.db.project_id)["max"]
    assert run(worker_engine).events == 6
    horizons = {row["project_id"]: row["event_id"] for row in platform.db.rows("SELECT * FROM event_horizons")}
    assert horizons[platform.db.project_id] == last
    assert set(horizons) == {platform.db.project_id, other}
    events(platform, OLD, 1)
    run(worker_engine)
    row = platform.db.one("SELECT * FROM event_horizons WHERE project_id = %s", platform.db.project_id)
    assert row["event_id"] > last


def test_keys_end_after_a_day_and_tokens_a_week_after_they_are_void(platform: Platform, worker_engine: Engine) -> None:
    for hours, key in ((25, "old"), (23, "new")):
        platform.db.rows(
            "INSERT INTO idempotency_keys (project_id, key, fingerprint, resource_id, workflow_id, created_at) "
            f"VALUES (%s, %s, '', %s, %s, now() - interval '{hours} hours')",
            *(platform.db.project_id, key, new_id(), new_id()),
        )
    for days in (8, 6):
        platform.db.rows(
            "INSERT INTO host_tokens (id, digest, actor, expires_at) "
            f"VALUES (%s, %s, 'a', now() - interval '{days} days')",
            *(new_id(), str(days).encode()),
        )
    assert run(worker_engine) == Purged(keys=1, tokens=1)
    assert count(platform, "idempotency_keys") == count(platform, "host_tokens") == 1


def test_void_sessions_resets_and_keys_go_after_a_week_and_others_stay(
    platform: Platform, worker_engine: Engine
) -> None:
    platform.db.key(platform.db.project_id, "jo", "viewer")
    user = platform.db.one("SELECT id FROM users WHERE name = 'jo'")["id"]

    def session(expires: str, ended: str) -> UUID:
        made = new_id()
        columns = "id, user_id, expires_at, ended_at"
        values = f"%s, %s, now() + interval '{expires}', {ended}"
        platform.db.rows(f"INSERT INTO sessions ({columns}) VALUES ({values})", made, user)
        platform.db.rows("INSERT INTO refresh_tokens (digest, session_id) VALUES (%s, %s)", made.bytes, made)
        return made

    def key(revoked: str) -> UUID:
        made = new_id()
        columns = "id, project_id, user_id, name, digest, revoked_at"
        row = (made, platform.db.project_id, user, "k", made.bytes)
        platform.db.rows(f"INSERT INTO api_keys ({columns}) VALUES (%s, %s, %s, %s, %s, {revoked})", *row)
        return made

    living = {session("1 day", "NULL"), session("-6 days", "NULL"), session("1 day", "now() - interval '6 days'")}
    session("-8 days", "NULL")
    session("1 day", "now() - interval '8 days'")
    for days in (6, 8):
        columns = "digest, user_id, expires_at"
        values = f"%s, %s, now() - interval '{days} days'"
        platform.db.rows(f"INSERT INTO password_resets ({columns}) VALUES ({values})", new_id().bytes, user)
    before = ids(platform, "api_keys")
    kept = {key("NULL"), key("now() - interval '6 days'"), key("now() + interval '1 day'")}
    key("now() - interval '8 days'")
    assert run(worker_engine) == Purged(tokens=4)
    assert ids(platform, "sessions") == living
    assert count(platform, "refresh_tokens") == 3
    assert count(platform, "password_resets") == 1
    assert ids(platform, "api_keys") == before | kept
