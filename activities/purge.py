"""What is kept for a while only: rows of deleted instances, images, groups and balancers, configurations of groups,
events, deliveries, runs of cron jobs, keys, workflows that ended, void tokens, sessions and API keys."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError
from temporalio import activity

from activities.database import transaction
from model.base import Frozen
from model.cron import MOST_RUNS, RUNS_KEPT
from model.groups import REACHABLE
from model.projects import Project
from model.restores import restored
from model.webhooks import KEPT

#: Rows of one transaction: some ten milliseconds, so that what is accepted meanwhile does not notice.
BATCH = 1000
#: After a batch nothing is done for as long as it took, and no pass lasts longer than this.
SHARE, PASS_SECONDS = 1.0, 120.0
#: Within these a request may be repeated under its key, and a host whose answer was lost may join again.
KEYS, TOKENS = dt.timedelta(hours=24), dt.timedelta(days=7)
#: Counted together: workers of the release before this one know no other names.
_COUNTED_AS = dict.fromkeys(("sessions", "password_resets", "login_addresses", "api_keys"), "tokens")
_COUNTED_AS |= {"cron_runs": "deliveries", "activities": "workflows", "cache_volumes": "instances"}
_COUNTED_AS |= dict.fromkeys(("groups", "balancers", "configurations", "workspaces", "work_sessions"), "instances")
#: For so long one can see what became of sessions and API keys that are void.
VOID = dt.timedelta(days=7)
#: As long as it counts from where somebody has logged in.
ADDRESSES = dt.timedelta(days=90)
log = structlog.get_logger()

#: What PostgreSQL says of a statement that took longer than it may.
TOO_LONG = "57014"
_BOUND = text("SET LOCAL statement_timeout = '20s'")
# By age, and nothing that still holds a port. What is deleted holds none, so none is ever passed over.
_INSTANCES = text(
    """
    DELETE FROM instances WHERE id IN (
        SELECT id FROM instances i WHERE status = 'deleted' AND deleted_at < now() - :kept
        AND NOT EXISTS (SELECT FROM host_ports p WHERE p.instance_id = i.id)
        AND NOT EXISTS (SELECT FROM load_balancers b WHERE b.instance_id = i.id)
        AND NOT EXISTS (SELECT FROM work_sessions s WHERE s.instance_id = i.id)
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# Before the instances that were their proxies.
_BALANCERS = text(
    """
    DELETE FROM load_balancers WHERE id IN (
        SELECT id FROM load_balancers b WHERE status = 'deleted' AND deleted_at < now() - :kept
        AND NOT EXISTS (SELECT FROM scaling_groups g WHERE g.load_balancer_id = b.id)
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# Before their sandboxes.
_WORK_SESSIONS = text(
    """
    DELETE FROM work_sessions WHERE id IN (
        SELECT id FROM work_sessions WHERE status = 'removed' AND deleted_at < now() - :kept
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# The same, of images: none that an instance names, be it a deleted one. Where they were cached goes with them.
_IMAGES = text(
    """
    DELETE FROM images WHERE id IN (
        SELECT id FROM images i WHERE status = 'deleted' AND deleted_at < now() - :kept
        AND NOT EXISTS (SELECT FROM instances n WHERE n.image_id = i.id)
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
_WORKSPACES = text(
    """
    DELETE FROM workspaces WHERE id IN (
        SELECT id FROM workspaces WHERE status = 'deleted' AND deleted_at < now() - :kept
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# After the sessions that had them.
_CACHE_VOLUMES = text(
    """
    DELETE FROM cache_volumes WHERE id IN (
        SELECT id FROM cache_volumes v WHERE status = 'deleted' AND deleted_at < now() - :kept
        AND NOT EXISTS (SELECT FROM session_cache_volumes s WHERE s.volume_id = v.id)
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# Those that ended, of webhooks that are switched off too.
_DELIVERIES = text(
    """
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT id FROM webhook_deliveries WHERE state <> 'pending' AND created_at < now() - :kept
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# Those that ended, by age; and of each job, those behind the newest.
_CRON_RUNS = text(
    """
    DELETE FROM cron_runs WHERE id IN (
        SELECT id FROM cron_runs WHERE finished_at < now() - :kept
        ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
_MANY_CRON_RUNS = text(
    f"""
    DELETE FROM cron_runs WHERE finished_at IS NOT NULL AND id IN (
        SELECT r.id FROM cron_jobs j CROSS JOIN LATERAL (
            SELECT id FROM cron_runs WHERE project_id = j.project_id AND job_id = j.id
            ORDER BY id DESC OFFSET {MOST_RUNS} LIMIT :most
        ) r LIMIT :most
    )
    """  # noqa: S608 - a number of ours
)
# From the beginning of the project's stream, which is about their age. How far is noted with it: who resumes from
# before that is told. It only grows: what was written by an old transaction may be gone later than what came after it.
_EVENTS = text(
    """
    WITH oldest AS (
        SELECT id, created_at FROM events WHERE project_id = :project ORDER BY epoch, xid, id LIMIT :most
    ), gone AS (
        DELETE FROM events WHERE project_id = :project
        AND id IN (SELECT id FROM oldest WHERE created_at < now() - :kept) RETURNING epoch, xid, id
    ), noted AS (
        INSERT INTO event_horizons (project_id, epoch, xid, event_id)
        SELECT :project, epoch, xid, id FROM gone ORDER BY epoch DESC, xid DESC, id DESC LIMIT 1
        ON CONFLICT (project_id) DO UPDATE
        SET epoch = excluded.epoch, xid = excluded.xid, event_id = excluded.event_id
        WHERE (excluded.epoch, excluded.xid, excluded.event_id)
            > (event_horizons.epoch, event_horizons.xid, event_horizons.event_id)
    )
    SELECT count(*) FROM gone
    """
)
# With their configurations and activities; none of which a member's row is still there.
_GROUPS = text(
    """
    DELETE FROM scaling_groups WHERE id IN (
        SELECT id FROM scaling_groups g WHERE status = 'deleted' AND deleted_at < now() - :kept
        AND NOT EXISTS (SELECT FROM instances i WHERE i.group_id = g.id)
        ORDER BY deleted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# What a group of today may need: members that are still to be placed are given the script of theirs.
_NEEDED = f"""(
    {REACHABLE} OR EXISTS (
        SELECT FROM instances i
        WHERE i.group_id = c.group_id AND i.group_revision = c.revision AND i.status <> 'deleted'
    )
)"""
# Locked first, and looked at again by the next statements: what a group may go back to changes under this lock alone.
_GROUPS_THAT_CHANGED = text(
    f"""
    SELECT g.id FROM scaling_groups g WHERE g.project_id = :project
    AND EXISTS (SELECT FROM group_configurations c WHERE c.group_id = g.id AND NOT {_NEEDED})
    ORDER BY g.id LIMIT :most FOR UPDATE SKIP LOCKED
    """  # noqa: S608 - nothing but text of this program
)
_CONFIGURATIONS = text(
    f"""
    DELETE FROM group_configurations WHERE (group_id, revision) IN (
        SELECT c.group_id, c.revision FROM group_configurations c JOIN scaling_groups g ON g.id = c.group_id
        WHERE g.id = ANY(:groups) AND NOT {_NEEDED} LIMIT :most
    )
    """  # noqa: S608 - nothing but text of this program
)
# Several configurations may have the same.
_SCRIPTS = text(
    """
    DELETE FROM sealed_values s WHERE s.group_id = ANY(:groups) AND NOT EXISTS (
        SELECT FROM group_configurations c WHERE c.group_id = s.group_id AND c.template ->> 'user_data_id' = s.id::text
    )
    """
)
_ACTIVITIES = text(
    """
    DELETE FROM group_activities WHERE id IN (
        SELECT id FROM group_activities WHERE state <> 'running' AND created_at < now() - :kept
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
# In the order of ids, which is that of their creation. Rows that instances, images or groups name, or that are not old
# enough, are passed over: the next batch goes on behind them.
_WORKFLOWS = text(
    """
    WITH next AS (
        SELECT id, project_id, finished_at FROM workflows WHERE id > :after AND created_at < now() - :kept
        ORDER BY id LIMIT :most
    ), gone AS (
        DELETE FROM workflows w USING next n WHERE w.id = n.id AND n.finished_at < now() - :kept
        AND NOT EXISTS (SELECT FROM instances i WHERE i.project_id = n.project_id AND i.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM images i WHERE i.project_id = n.project_id AND i.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM scaling_groups g WHERE g.project_id = n.project_id AND g.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM load_balancers b WHERE b.project_id = n.project_id AND b.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM work_sessions s WHERE s.project_id = n.project_id AND s.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM workspaces s WHERE s.project_id = n.project_id AND s.workflow_id = n.id)
        AND NOT EXISTS (SELECT FROM cache_volumes v WHERE v.project_id = n.project_id AND v.workflow_id = n.id)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone) AS gone, (SELECT id FROM next ORDER BY id DESC LIMIT 1) AS last
    """
)
_KEYS = text(
    """
    DELETE FROM idempotency_keys WHERE (project_id, key) IN (
        SELECT project_id, key FROM idempotency_keys
        WHERE project_id = :project AND created_at < now() - :kept ORDER BY created_at LIMIT :most
    )
    """
)
_TOKENS = text(
    """
    DELETE FROM host_tokens WHERE id IN (SELECT id FROM host_tokens WHERE expires_at < now() - :kept LIMIT :most)
    """
)
_SESSIONS = text(
    """
    DELETE FROM sessions WHERE id IN (
        SELECT id FROM sessions WHERE expires_at < now() - :kept OR ended_at < now() - :kept LIMIT :most
    )
    """
)
_RESETS = text(
    """
    DELETE FROM password_resets WHERE digest IN (
        SELECT digest FROM password_resets WHERE expires_at < now() - :kept LIMIT :most
    )
    """
)
_ADDRESSES = text(
    """
    DELETE FROM login_addresses WHERE (user_id, address) IN (
        SELECT user_id, address FROM login_addresses WHERE used_at < now() - :kept LIMIT :most
    )
    """
)
_API_KEYS = text(
    """
    DELETE FROM api_keys WHERE id IN (
        SELECT id FROM api_keys WHERE least(revoked_at, expires_at) < now() - :kept LIMIT :most
    )
    """
)


class Retention(Frozen):
    """How long what is kept, from the settings."""

    deleted: dt.timedelta
    events: dt.timedelta
    workflows: dt.timedelta


class Purged(Frozen):
    """What one pass removed. ``more``: it was not through. ``failed``: kinds of which the database refused a batch."""

    #: And balancers, groups and what these were made from.
    instances: int = 0
    images: int = 0
    events: int = 0
    #: Of webhooks, and runs of cron jobs: workers of the release before this one know no other name.
    deliveries: int = 0
    workflows: int = 0
    keys: int = 0
    #: Of hosts and of passwords, sessions, API keys.
    tokens: int = 0
    more: bool = False
    failed: list[str] = []


class PurgeRecords:
    """Runs on the control queue. Every batch is a transaction: what was removed stays removed, whatever dies."""

    def __init__(self, engine: Engine, retention: Retention) -> None:
        self._engine = engine
        self._retention = retention

    @activity.defn(name="rows.purge", no_thread_cancel_exception=True)
    def purge(self) -> Purged:
        """One pass. Repeated, it goes on where it was: what is gone is gone, and the rest is found again."""
        until = time.monotonic() + PASS_SECONDS
        with transaction(self._engine) as session:
            if restored(session):
                return Purged()
            projects = list(session.scalars(select(Project.id)))
        kept = self._retention
        kinds: dict[str, Callable[[], int]] = {
            # Before what they name: balancers name instances, instances name images and groups, and all of them name
            # workflows. (Groups name balancers: those go in the next pass.)
            "balancers": lambda: self._all(until, _BALANCERS, kept.deleted),
            "work_sessions": lambda: self._all(until, _WORK_SESSIONS, kept.deleted),
            "instances": lambda: self._all(until, _INSTANCES, kept.deleted),
            "groups": lambda: self._all(until, _GROUPS, kept.deleted),
            "configurations": lambda: sum(self._configurations(until, project) for project in projects),
            "activities": lambda: self._all(until, _ACTIVITIES, kept.workflows),
            "images": lambda: self._all(until, _IMAGES, kept.deleted),
            "workspaces": lambda: self._all(until, _WORKSPACES, kept.deleted),
            "cache_volumes": lambda: self._all(until, _CACHE_VOLUMES, kept.deleted),
            "events": lambda: sum(self._all(until, _EVENTS, kept.events, project) for project in projects),
            "deliveries": lambda: self._all(until, _DELIVERIES, KEPT),
            "cron_runs": lambda: self._all(until, _CRON_RUNS, RUNS_KEPT) + self._all(until, _MANY_CRON_RUNS, RUNS_KEPT),
            "workflows": lambda: self._workflows(until),
            "keys": lambda: sum(self._all(until, _KEYS, KEYS, project) for project in projects),
            "tokens": lambda: self._all(until, _TOKENS, TOKENS),
            # With their refresh tokens. Ended or used too long ago to matter.
            "sessions": lambda: self._all(until, _SESSIONS, VOID),
            "password_resets": lambda: self._all(until, _RESETS, VOID),
            "login_addresses": lambda: self._all(until, _ADDRESSES, ADDRESSES),
            "api_keys": lambda: self._all(until, _API_KEYS, VOID),
        }
        counts, failed = Counter[str](), list[str]()
        for kind, remove in kinds.items():
            try:
                counts[_COUNTED_AS.get(kind, kind)] += remove()
            except DBAPIError as error:
                # The database is away: all of it is tried again.
                if error.connection_invalidated or getattr(error.orig, "sqlstate", None) is None:
                    raise
                # The others go all the same, and the next pass tries it again.
                log.error("purge.refused", kind=kind, error=str(error.orig).partition("\n")[0])
                failed.append(kind)
        return Purged(**counts, more=time.monotonic() >= until, failed=failed)

    def _all(self, until: float, statement: Any, kept: dt.timedelta, project: UUID | None = None) -> int:
        """Batches, until one finds nothing. (The oldest of a stream may hold some that are not old enough.)"""
        removed, batch, most = 0, BATCH, BATCH
        while batch and not self._is_over(until):
            began = time.monotonic()
            more = {} if project is None else {"project": project}
            try:
                with transaction(self._engine, project) as session:
                    session.execute(_BOUND)
                    done: Any = session.execute(statement, {"kept": kept, "most": most, **more})
                    batch = done.scalar_one() if done.returns_rows else done.rowcount
            except DBAPIError as error:
                # What hangs on them may be much.
                if getattr(error.orig, "sqlstate", None) != TOO_LONG or most == 1:
                    raise
                most = max(1, most // 10)
                continue
            removed += batch
            self._rest(began, batch)
        return removed

    def _configurations(self, until: float, project: UUID) -> int:
        """With the scripts that none of those that stay has."""
        removed, batch = 0, BATCH
        while batch and not self._is_over(until):
            began = time.monotonic()
            with transaction(self._engine, project) as session:
                session.execute(_BOUND)
                groups = list(session.scalars(_GROUPS_THAT_CHANGED, {"project": project, "most": BATCH}))
                done: Any = session.execute(_CONFIGURATIONS, {"groups": groups, "most": BATCH})
                batch = done.rowcount
                session.execute(_SCRIPTS, {"groups": groups})
            removed += batch
            self._rest(began, batch)
        return removed

    def _workflows(self, until: float) -> int:
        removed, after = 0, UUID(int=0)
        while not self._is_over(until):
            began = time.monotonic()
            with transaction(self._engine) as session:
                session.execute(_BOUND)
                some = {"after": after, "kept": self._retention.workflows, "most": BATCH}
                row = session.execute(_WORKFLOWS, some).one()
            if row.last is None:
                break
            removed, after = removed + row.gone, row.last
            self._rest(began, row.gone)
        return removed

    def _is_over(self, until: float) -> bool:
        return activity.is_cancelled() or time.monotonic() >= until

    def _rest(self, began: float, removed: int) -> None:
        if removed:
            time.sleep((time.monotonic() - began) * SHARE)
