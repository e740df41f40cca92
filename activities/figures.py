"""Figures of the whole platform, read from the database when somebody asks a control worker for its metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from model.hosts import LEASE
from model.metrics import Figure, Figures
from model.webhooks import DeliveryState

#: Several that ask at once, and often, are told the same.
KEPT_SECONDS = 5.0
#: For one query; then the database counts as away.
PATIENCE_MS = 4000
#: Of a limit: from here on a project counts as near to it.
NEAR = 0.9
#: Beyond the deadline: time to undo, and to settle.
OVERDUE_MARGIN = 120
log = structlog.get_logger()

UP = Figure("cairn_database_up", "Whether the figures of the platform could be read")
HOSTS = Figure("cairn_hosts", "Hosts", ("backend", "state", "reachable"))
WARNED = Figure("cairn_hosts_warned", "Hosts of which an operator should look at something")
LEASE_AGE = Figure("cairn_lease_age_max_seconds", "Since the renewal of the lease that is oldest")
CAPACITY = Figure("cairn_capacity", "What hosts have, before over-commit; memory in MiB", ("resource",))
ALLOCATED = Figure("cairn_allocated", "What instances hold of it", ("resource",))
INSTANCES = Figure("cairn_instances", "Instances that are not deleted", ("status",))
DRIFTED = Figure("cairn_instances_drifted", "Instances that differ from what they should be", ("kind",))
OPEN = Figure("cairn_workflows_open", "Workflows that have not ended", ("state",))
ACCEPTED_AGE = Figure("cairn_workflows_accepted_age_max_seconds", "Since the acceptance of the oldest that has no run")
OVERDUE = Figure("cairn_workflows_overdue", f"Workflows that run {OVERDUE_MARGIN} s longer than their deadline")
QUOTA_USED = Figure("cairn_quota_used", "What all projects with a limit use and have reserved", ("quota",))
QUOTA_LIMIT = Figure("cairn_quota_limit", "The sum of their limits", ("quota",))
QUOTA_NEAR = Figure("cairn_quota_projects_near", f"Projects that use {NEAR:.0%} or more of a limit", ("quota",))
DELIVERIES = Figure("cairn_webhook_deliveries", "Deliveries that are kept, by state", ("state",))
DELIVERY_AGE = Figure("cairn_webhook_pending_age_max_seconds", "Since the event of the oldest that is pending")
DISABLED = Figure("cairn_webhooks_disabled", "Webhooks that the platform has switched off")
JOBS = Figure("cairn_cron_jobs", "Cron jobs", ("state",))
UNAPPLIED = Figure("cairn_cron_unapplied_age_max_seconds", "Since the oldest change of one that Temporal does not know")
GROUPS = Figure("cairn_groups", "Groups and deployments that are not deleted", ("kind", "status"))
MEMBERS = Figure("cairn_group_members", "Members of all groups: desired, there or on their way, ready", ("what",))
FAILING = Figure("cairn_groups_failing", "Groups whose last runs failed, and that are given time between two")
POLICIES = Figure("cairn_group_policies", "Policies of groups")
BALANCERS = Figure("cairn_load_balancers", "Load balancers that are not deleted", ("status",))
TARGETS = Figure("cairn_lb_targets", "Targets of load balancers, as the proxies' own checks find them", ("health",))
WITHOUT = Figure("cairn_load_balancers_without_targets", "Load balancers that have targets, none of which is up")
PULSE_AGE = Figure("cairn_pulse_age_seconds", "Since a kind of process was last known to work", ("process",))
FIGURES = (
    *(UP, HOSTS, WARNED, LEASE_AGE, CAPACITY, ALLOCATED, INSTANCES, DRIFTED, OPEN, ACCEPTED_AGE, OVERDUE),
    *(QUOTA_USED, QUOTA_LIMIT, QUOTA_NEAR, DELIVERIES, DELIVERY_AGE, DISABLED, PULSE_AGE),
    *(JOBS, UNAPPLIED, GROUPS, MEMBERS, FAILING, POLICIES, BALANCERS, TARGETS, WITHOUT),
)

# What is used of images and balancers their own rows say, as for who is shown a project's quotas.
_LIMITED = """(
    SELECT f.* FROM quotas q
    LEFT JOIN (
        SELECT project_id, count(*) AS n, sum(size_bytes) FILTER (WHERE source <> 'registry') AS bytes
        FROM images WHERE status <> 'deleted' GROUP BY 1
    ) i ON i.project_id = q.project_id
    LEFT JOIN (
        SELECT project_id, count(*) AS n FROM load_balancers WHERE status <> 'deleted' GROUP BY 1
    ) b ON b.project_id = q.project_id
    CROSS JOIN LATERAL (VALUES
        ('instances', q.instances_used + q.instances_reserved, q.instances_limit),
        ('vcpus', q.vcpus_used + q.vcpus_reserved, q.vcpus_limit),
        ('memory_mb', q.memory_mb_used + q.memory_mb_reserved, q.memory_mb_limit),
        ('images', coalesce(i.n, 0), q.images_limit),
        ('image_bytes', coalesce(i.bytes, 0), q.image_bytes_limit),
        ('load_balancers', coalesce(b.n, 0), q.load_balancers_limit)
    ) f(quota, used, most) WHERE most IS NOT NULL) limited"""
#: Of groups, those whose members count.
_KEPT = "status NOT IN ('deleting', 'deleted')"
_GIVEN = {"lease": LEASE, "margin": OVERDUE_MARGIN, "near": NEAR, "deliveries": list(DeliveryState)}
#: Each row of a query: its labels, then its value.
_QUERIES: list[tuple[Figure, str]] = [
    (
        HOSTS,
        """SELECT backend, state, CASE WHEN last_seen_at > now() - :lease THEN 'true' ELSE 'false' END,
            count(*)
        FROM hosts GROUP BY 1, 2, 3""",
    ),
    (WARNED, "SELECT count(*) FROM hosts WHERE warning IS NOT NULL"),
    (LEASE_AGE, "SELECT extract(epoch FROM now() - min(last_seen_at)) FROM hosts"),
    (CAPACITY, "SELECT 'vcpus', sum(cpus) FROM hosts UNION ALL SELECT 'memory_mb', sum(memory_mb) FROM hosts"),
    (
        ALLOCATED,
        """SELECT 'vcpus', sum(allocated_vcpus) FROM hosts
        UNION ALL SELECT 'memory_mb', sum(allocated_memory_mb) FROM hosts""",
    ),
    (INSTANCES, "SELECT status, count(*) FROM instances WHERE status <> 'deleted' GROUP BY 1"),
    (
        DRIFTED,
        "SELECT drift->>'kind', count(*) FROM instances WHERE drift IS NOT NULL AND status <> 'deleted' GROUP BY 1",
    ),
    (
        OPEN,
        """SELECT s.state, count(w.id) FROM (VALUES ('accepted'), ('running')) s(state)
        LEFT JOIN workflows w ON w.state = s.state AND w.state IN ('accepted', 'running') GROUP BY 1""",
    ),
    (
        # A child waits for its parent to start it.
        ACCEPTED_AGE,
        """SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM workflows
        WHERE state = 'accepted' AND parent_id IS NULL""",
    ),
    (
        OVERDUE,
        """SELECT count(*) FROM workflows WHERE state = 'running' AND started_at
        < now() - make_interval(secs => ("order"->>'deadline_seconds')\\:\\:float8 + :margin)""",
    ),
    (
        # Also those that there are none of: the first to be given up is seen as one more.
        DELIVERIES,
        """SELECT s.state, count(d.id) FROM unnest(cast(:deliveries AS text[])) s(state)
        LEFT JOIN webhook_deliveries d ON d.state = s.state GROUP BY 1""",
    ),
    (
        DELIVERY_AGE,
        """SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM webhook_deliveries
        WHERE state = 'pending'""",
    ),
    (DISABLED, "SELECT count(*) FROM webhooks WHERE disabled_reason IS NOT NULL"),
    (
        JOBS,
        """SELECT CASE WHEN paused THEN 'paused' ELSE 'active' END, count(*) FROM cron_jobs
        WHERE deleted_at IS NULL GROUP BY 1""",
    ),
    (
        UNAPPLIED,
        """SELECT coalesce(extract(epoch FROM now() - min(updated_at)), 0) FROM cron_jobs
        WHERE applied_version <> version""",
    ),
    (GROUPS, "SELECT kind, status, count(*) FROM scaling_groups WHERE status <> 'deleted' GROUP BY 1, 2"),
    (
        MEMBERS,
        f"""SELECT 'desired', coalesce(sum(desired_count), 0) FROM scaling_groups WHERE {_KEPT}
        UNION ALL SELECT m.what, coalesce(sum(m.n), 0) FROM (
            SELECT count(*) AS current, count(*) FILTER (WHERE i.status = 'running'
                AND (i.health_check IS NULL OR i.health = 'healthy')
                AND coalesce(i.drift->>'kind', 'changed') = 'changed') AS ready
            FROM instances i JOIN scaling_groups g ON g.id = i.group_id AND g.{_KEPT}
            WHERE i.group_id IS NOT NULL AND i.status NOT IN ('deleted', 'deleting', 'error')
        ) found CROSS JOIN LATERAL (VALUES ('current', current), ('ready', ready)) m(what, n) GROUP BY 1""",  # noqa: S608 - nothing but text of this module
    ),
    (
        # One that is tried again at this moment too; not one that is well again.
        FAILING,
        """SELECT count(*) FROM scaling_groups WHERE status = 'error' OR backoff_until > now()
            OR (failures > 0 AND status IN ('scaling', 'updating'))""",
    ),
    (POLICIES, "SELECT count(*) FROM group_policies"),
    (BALANCERS, "SELECT status, count(*) FROM load_balancers WHERE status <> 'deleted' GROUP BY 1"),
    (
        TARGETS,
        """SELECT coalesce(t.health, 'unknown'), count(*) FROM lb_targets t
        JOIN load_balancers b ON b.id = t.balancer_id AND b.status IN ('active', 'updating') GROUP BY 1""",
    ),
    (
        WITHOUT,
        """SELECT count(*) FROM (
            SELECT FROM lb_targets t JOIN load_balancers b ON b.id = t.balancer_id
            WHERE b.status IN ('active', 'updating') AND t.state = 'in'
            GROUP BY t.balancer_id HAVING NOT bool_or(t.health IS NOT DISTINCT FROM 'up')
        ) down""",
    ),
    (PULSE_AGE, "SELECT process, extract(epoch FROM now() - seen_at) FROM pulses"),
    (QUOTA_USED, f"SELECT quota, coalesce(sum(used), 0) FROM {_LIMITED} GROUP BY 1"),  # noqa: S608 - nothing but text of this module
    (QUOTA_LIMIT, f"SELECT quota, coalesce(sum(most), 0) FROM {_LIMITED} GROUP BY 1"),  # noqa: S608 - nothing but text of this module
    # Who may have none has not used it up.
    (QUOTA_NEAR, f"SELECT quota, count(*) FILTER (WHERE used > 0 AND used >= :near * most) FROM {_LIMITED} GROUP BY 1"),  # noqa: S608 - nothing but text of this module
]


class Platform:
    """Reads the figures, on a connection of its own: steps have theirs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._read: list[tuple[Figure, tuple[str, ...], float]] = []
        self._read_at = -KEPT_SECONDS

    def figures(self) -> Figures:
        return Figures(FIGURES, self._values)

    def _values(self) -> list[tuple[Figure, tuple[str, ...], float]]:
        with self._lock:
            if time.monotonic() - self._read_at >= KEPT_SECONDS:
                try:
                    self._read = [(UP, (), 1.0), *self._ask()]
                except (SQLAlchemyError, OSError) as error:
                    log.warning("figures.database_away", error=str(error).partition("\n")[0])
                    # Old figures would look like a platform at rest.
                    self._read = [(UP, (), 0.0)]
                self._read_at = time.monotonic()
            return self._read

    def _ask(self) -> Iterator[tuple[Figure, tuple[str, ...], float]]:
        with self._engine.connect() as connection:
            connection.execute(text(f"SET LOCAL statement_timeout = {PATIENCE_MS}"))
            for figure, query in _QUERIES:
                for *labels, value in connection.execute(text(query), _GIVEN).all():
                    if value is not None:
                        yield figure, tuple(str(label) for label in labels), float(value)
