"""Runs of groups that the platform itself asks for: where members are missing, too many, or not well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, func, select, text, update
from sqlalchemy.orm import Session

from activities import group_members, orders, pool_members
from activities.database import use_project
from activities.group_members import AT_ONCE
from activities.groups import SUPERSEDED, move_group
from model.base import new_id
from model.errors import Superseded
from model.groups import DELETE, RESTING, RUN_SECONDS, SCALE, Activity, Group, GroupStatus
from model.policies import Policy
from model.restores import restored
from model.scaling import DOWN_FOR, UNHEALTHY_FOR, Member, backoff, choose
from model.workflows import Failure, Order

log = structlog.get_logger()
#: Groups of one look; the next takes the others.
MOST = 50
#: Failed members that a cause names.
SHOWN = 3
#: A member that fails sooner is not the first of many: the group is given time before the next.
YOUNG = dt.timedelta(minutes=5)
# Which may be due: one query, that reads the members of all groups once. What is really to be done, ``choose`` says; so
# that those of which that is nothing keep no other from its turn, they come in any order.
_DUE = text(
    f"""
    SELECT g.id FROM scaling_groups g JOIN workflows w ON w.project_id = g.project_id AND w.id = g.workflow_id
    LEFT JOIN (
        SELECT group_id, count(*) FILTER (WHERE status NOT IN ('deleting', 'error')) AS live,
            min(group_revision) AS oldest, max(group_revision) AS newest,
            bool_or(status = 'error' OR (status = 'running' AND (drift->>'kind' IN ('missing', 'stopped')
                OR (health = 'unhealthy' AND coalesce(health_at, updated_at) < now() - :unhealthy)))) AS failed
        FROM instances WHERE group_id IS NOT NULL AND status <> 'deleted' GROUP BY group_id
    ) m ON m.group_id = g.id
    WHERE g.status IN ('active', 'error') AND (g.backoff_until IS NULL OR g.backoff_until <= now())
        AND (coalesce(m.live, 0) <> {pool_members.WANTED} OR m.failed OR (w.kind = :delete AND w.state = 'failed')
            OR (NOT g.paused AND (m.oldest <> g.revision OR m.newest <> g.revision))
            OR EXISTS (
                SELECT FROM lb_targets t JOIN instances i ON i.id = t.instance_id AND i.group_id = g.id
                WHERE t.balancer_id = g.load_balancer_id AND t.state = 'in' AND t.health = 'down'
                    AND t.health_at < now() - :down AND i.status = 'running'
            ) OR ({pool_members.STALE}))
    ORDER BY random() LIMIT :most
    """  # noqa: S608 - nothing but text of this program
)
_SUPERSEDED = Failure(code=Superseded.code, message=SUPERSEDED)


def order_due(session: Session) -> list[Order]:
    """Order what is to be done about groups that are not as they should be, once: who looks at the same time passes
    over what is locked here."""
    if restored(session):
        return []
    found: list[Order] = []
    due = {"unhealthy": UNHEALTHY_FOR, "down": DOWN_FOR, "delete": DELETE, "most": MOST} | pool_members.TIMES
    for id in session.scalars(_DUE, due).all():
        try:
            with session.begin_nested():
                order = _order(session, id)
        except Exception:  # whatever is wrong with one, the others are looked at
            log.exception("group.not_looked_at", group=str(id))
        else:
            found += [] if order is None else [order]
    return found


def _order(session: Session, id: UUID) -> Order | None:
    group = session.scalars(
        select(Group).where(Group.id == id, Group.status.in_(RESTING)).with_for_update(skip_locked=True)
    ).one_or_none()
    if group is None:
        return None
    use_project(session, group.project_id)
    if group.status == GroupStatus.ERROR and _is_to_be_deleted(session, group):
        return begin(session, group, DELETE, "delete", "its deletion had failed")
    group.desired_count = pool_members.wanted_of(session, group)
    rows = group_members.rows(session, group)
    members = group_members.members(session, group, rows)
    if choose(group_members.wish_of(group), members, AT_ONCE).is_done:
        return None
    _give_time(session, group, rows, members)
    return begin(session, group, SCALE, "replace", _cause(group, rows, members))


def _is_to_be_deleted(session: Session, group: Group) -> bool:
    """Whether it is its deletion that failed."""
    last = text("SELECT kind FROM workflows WHERE id = :id")
    return bool(session.scalar(last, {"id": group.workflow_id}) == DELETE)


def _give_time(session: Session, group: Group, rows: Sequence[Row[Any]], members: Sequence[Member]) -> None:
    """Where what was launched a short while ago fails, the next run is not at once."""
    now: dt.datetime = session.execute(select(func.now())).scalar_one()
    made = {row.id: row.created_at for row in rows}
    ages = [now - made[member.id] for member in members if member.condition == "failed"]
    if group.status != GroupStatus.ERROR:
        group.failures = group.failures + 1 if ages and max(ages) < YOUNG else 0
        group.backoff_until = now + backoff(group.failures) if group.failures else None


def _cause(group: Group, rows: Sequence[Row[Any]], members: Sequence[Member]) -> str:
    bad = {member.id for member in members if member.condition == "failed"}
    failed = [group_members.cause(row).message for row in rows if row.id in bad]
    if failed:
        more = len(failed) - SHOWN
        return "; ".join(failed[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    if len(rows) != group.desired_count:
        return f"{len(rows)} members, and {group.desired_count} are desired"
    if group.kind == "pool":
        return f"not all of its {len(rows)} members are of this day and of the image that there is now"
    return f"not all members have configuration {group.revision}"


def begin(
    session: Session,
    group: Group,
    kind: str,
    action: str,
    cause: str,
    *,
    parent_id: UUID | None = None,
    desired: int | None = None,
    metric: dict[str, Any] | None = None,
) -> Order:
    """Order a run of the group, whose row the caller has locked; leaves its project in use. ``desired``: another number
    of members, for this ``metric``."""
    order = Order(
        workflow_id=new_id(),
        project_id=group.project_id,
        kind=kind,
        resource_type=group.kind,
        resource_id=group.id,
        name=group.name,
        request_id=cause[:200],
        deadline_seconds=RUN_SECONDS,
    )
    log.info("group.ordered", group=str(group.id), kind=kind, cause=cause)
    use_project(session, group.project_id)
    orders.write(session, order, prior_status=group.status, parent_id=parent_id)
    session.execute(close_activities(group.id))
    session.execute(forget_low(group.id))
    session.add(
        Activity(
            id=new_id(),
            project_id=group.project_id,
            group_id=group.id,
            workflow_id=order.workflow_id,
            action=action,
            cause=cause,
            metric=metric,
            desired_before=group.desired_count,
            desired_after=0 if kind == DELETE else group.desired_count if desired is None else desired,
            revision_before=group.revision,
            revision_after=group.revision,
        )
    )
    group.workflow_id = order.workflow_id
    group.desired_count = group.desired_count if desired is None else desired
    status = GroupStatus.DELETING if kind == DELETE else GroupStatus.SCALING
    move_group(session, group, order, status, because=cause)
    return order


def forget_low(group_id: UUID) -> Any:
    """SQL: nobody judges the group while it changes, so that it is not known whether it was low all the while."""
    return update(Policy).where(Policy.group_id == group_id).values(low_since=None)


def close_activities(group_id: UUID) -> Any:
    """SQL: whatever was under way for the group is not any more: another run takes its place."""
    open_ = (Activity.group_id == group_id) & (Activity.state == "running")
    ended = {"state": "cancelled", "finished_at": func.now(), "error": _SUPERSEDED.model_dump()}
    return update(Activity).where(open_).values(**ended)
