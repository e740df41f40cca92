"""The tick's look at all policies: one query over all groups, and a run only where the number of members changes. What
is odd about one group's policies is that group's trouble alone."""

from __future__ import annotations

import datetime as dt
import random
import time
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Engine, Row, func, select, text, update
from sqlalchemy.orm import Session

from activities.database import transaction
from activities.group_orders import begin
from model.balancers import SAMPLE_SECONDS
from model.groups import SCALE, Group, GroupStatus
from model.metrics import POLICIES_JUDGED, POLICIES_SECONDS
from model.policies import FRESH, REQUESTS, USED, WARM_UP, WINDOW, Policy, Seen, Verdict, judge, together
from model.restores import restored
from model.samples import FINEST
from model.workflows import Order

log = structlog.get_logger()
#: Runs that one look orders, the next looks the others; in one transaction; and notes written at once.
MOST, BATCH, NOTES = 200, 20, 1000
# Only groups on which nothing works: what is on its way is not measured yet.
_SEEN = text(
    """
    WITH measured AS MATERIALIZED (
        SELECT i.group_id, avg(s.cpu_percent / i.vcpus) AS cpu,
            avg(s.memory_bytes / (i.memory_mb * 1048576.0) * 100) AS memory
        FROM instances i JOIN samples s ON s.instance_id = i.id AND s.seconds = :finest
            AND s.at > now() - :window AND s.at >= i.created_at + :warm_up
        WHERE i.status = 'running'
            AND i.group_id IN (SELECT group_id FROM group_policies WHERE metric_type = ANY(:measured))
        GROUP BY i.group_id
    ), asked AS MATERIALIZED (
        SELECT g.id AS group_id, (
            SELECT count(*) FROM instances i WHERE i.group_id = g.id AND i.status = 'running'
        ) AS members, (
            SELECT sum((t ->> 'requests')::int8) / (count(DISTINCT s.at) * :sampled) FROM lb_samples s
            CROSS JOIN LATERAL jsonb_array_elements(s.targets) AS t
            JOIN instances i ON i.id = (t ->> 'instance_id')::uuid AND i.group_id = g.id
            WHERE s.balancer_id = g.load_balancer_id AND s.at > now() - :window - make_interval(secs => :sampled)
        ) AS per_second
        FROM scaling_groups g WHERE g.load_balancer_id IS NOT NULL AND g.status = 'active'
            AND g.id IN (SELECT group_id FROM group_policies WHERE metric_type = :requests)
    )
    SELECT p.id, p.group_id, p.name, p.metric_type, p.target_value, p.scale_out_step, p.scale_in_step, p.low_since,
        g.desired_count, g.min_instances, g.max_instances, now() AS now,
        max(p.acted_at) OVER (PARTITION BY p.group_id) + make_interval(secs => p.cooldown_sec) > now() AS cooling,
        CASE p.metric_type WHEN 'cpu' THEN m.cpu WHEN 'memory' THEN m.memory
            WHEN :requests THEN a.per_second / nullif(a.members, 0)
            ELSE CASE WHEN p.pushed_at > now() - :fresh THEN p.pushed_value END END AS value
    FROM group_policies p JOIN scaling_groups g ON g.id = p.group_id AND g.status = 'active'
    LEFT JOIN measured m ON m.group_id = p.group_id LEFT JOIN asked a ON a.group_id = p.group_id
    ORDER BY p.group_id, p.id
    """
)
_ASKED = {"finest": FINEST, "window": WINDOW, "warm_up": WARM_UP, "fresh": FRESH, "measured": list(USED)} | {
    "requests": REQUESTS,
    "sampled": SAMPLE_SECONDS,
}


_NOTE = text(
    """
    UPDATE group_policies p SET low_since = n.since
    FROM unnest(cast(:ids AS uuid[]), cast(:since AS timestamptz[])) AS n(id, since) WHERE p.id = n.id
    """
)


class _Change(NamedTuple):
    """Another number of members, and the policy that decides."""

    desired: int
    by: Row[Any]


def order_due(engine: Engine) -> list[Order]:
    """Order what policies ask for, a few groups in a transaction; what is more than ``MOST``, a later look orders."""
    began = time.perf_counter()
    with transaction(engine) as session:
        if restored(session):
            return []
        rows = session.execute(_SEEN, _ASKED).all()
    notes: list[tuple[UUID, dt.datetime | None]] = []
    changes: list[_Change] = []
    for group, of_group in groupby(rows, key=lambda row: row.group_id):
        try:
            found = _judge(list(of_group), notes)
        except Exception:  # whatever is wrong with one, the others are judged
            log.exception("policies.not_judged", group=str(group))
        else:
            changes += [] if found is None else [found]
    for start in range(0, len(notes), NOTES):
        ids, since = zip(*notes[start : start + NOTES], strict=True)
        with transaction(engine) as session:
            session.execute(_NOTE, {"ids": list(ids), "since": list(since)})
    # In any order: those that ask at every look keep no other from its turn.
    random.shuffle(changes)
    ordered: list[Order] = []
    for start in range(0, min(len(changes), MOST), BATCH):
        with transaction(engine) as session:
            ordered += _order_each(session, changes[start : min(start + BATCH, MOST)])
    POLICIES_SECONDS.observe(time.perf_counter() - began)
    return ordered


def _judge(rows: list[Row[Any]], notes: list[tuple[UUID, dt.datetime | None]]) -> _Change | None:
    """All policies of one group; what is to be written down of them goes into ``notes``."""
    verdicts = []
    for row in rows:
        sizes = (row.desired_count, row.min_instances, row.max_instances, row.scale_out_step, row.scale_in_step)
        verdict = judge(Seen(row.value, row.target_value, *sizes, row.low_since), row.now)
        if verdict.low_since != row.low_since:
            notes.append((row.id, verdict.low_since))
        verdicts.append(verdict.desired)
        POLICIES_JUDGED.labels(_word(row, verdict)).inc()
    wanted = together(rows[0].desired_count, verdicts)
    decides = rows[verdicts.index(wanted)]
    return None if wanted == decides.desired_count or decides.cooling else _Change(wanted, decides)


def _order_each(session: Session, changes: list[_Change]) -> list[Order]:
    found = []
    for one in changes:
        try:
            with session.begin_nested():
                order = _order(session, one)
        except Exception:  # whatever is wrong with one, the others are scaled
            log.exception("policies.not_ordered", group=str(one.by.group_id))
        else:
            found += [] if order is None else [order]
    return found


def _order(session: Session, change: _Change) -> Order | None:
    row = change.by
    group = session.scalars(
        select(Group)
        .where(Group.id == row.group_id, Group.status == GroupStatus.ACTIVE, Group.desired_count == row.desired_count)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if group is None:
        return None
    session.execute(update(Policy).where(Policy.id == row.id).values(acted_at=func.now(), low_since=None))
    cause = f"policy {row.name}: {row.metric_type} is {row.value:.4g}, and its target {row.target_value:.4g}"
    metric = {"metric_type": row.metric_type, "value": row.value, "target_value": row.target_value}
    return begin(session, group, SCALE, "scale", cause, desired=change.desired, metric=metric)


def _word(row: Row[Any], verdict: Verdict) -> str:
    if row.value is None:
        return "unknown"
    if verdict.desired == row.desired_count:
        return "same"
    if row.cooling:
        return "too_soon"
    return "more" if verdict.desired > row.desired_count else "fewer"
