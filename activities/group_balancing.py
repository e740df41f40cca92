"""Members of groups at their load balancers: they join it once they are well, and count as ready when it has found them
so; before they go they leave every balancer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, func, select, text
from sqlalchemy.orm import Session

from activities import balancer_orders
from activities.database import use_project
from activities.fleet import Limits
from model.balancers import MOST_TARGETS, OPEN, BalancerStatus, BalancerTarget, LoadBalancer, TargetState
from model.errors import NotReady
from model.groups import Group
from model.hosts import LEASE, Host
from model.instances import Instance, Port, Status
from model.restores import restored
from model.scaling import DOWN_FOR, Member
from model.workflows import Order

log = structlog.get_logger()
#: Members of one look; the next takes the others.
MOST = 500
# Well, and no target yet: of groups that name a balancer which takes targets and has room for them. In any order, so
# that those which cannot be joined keep no other from its turn.
_JOINING = text(
    """
    SELECT m.balancer, m.group_id, m.id FROM (
        SELECT b.id AS balancer, g.id AS group_id, i.id,
            row_number() OVER (PARTITION BY b.id ORDER BY random()) AS place
        FROM scaling_groups g
        JOIN load_balancers b ON b.id = g.load_balancer_id AND b.status IN ('active', 'updating')
        JOIN instances i ON i.group_id = g.id AND i.status = 'running'
            AND (i.health_check IS NULL OR i.health = 'healthy')
            AND coalesce(i.drift ->> 'kind', '') NOT IN ('missing', 'stopped')
            AND EXISTS (
                SELECT FROM jsonb_array_elements(i.ports) p WHERE coalesce(p ->> 'protocol', 'tcp') = 'tcp'
            )
        WHERE g.status NOT IN ('deleting', 'deleted')
            AND NOT EXISTS (SELECT FROM lb_targets t WHERE t.balancer_id = b.id AND t.instance_id = i.id)
            AND (cast(:group AS uuid) IS NULL OR g.id = :group)
    ) m
    WHERE m.place <= :targets - (SELECT count(*) FROM lb_targets t WHERE t.balancer_id = m.balancer)
    ORDER BY random() LIMIT :most
    """
)


def join_due(session: Session, group_id: UUID | None = None) -> int:
    """Make targets of the members, of one group or of all, that are well by now: how many."""
    if group_id is None and restored(session):
        return 0
    joined = 0
    found = session.execute(_JOINING, {"group": group_id, "most": MOST, "targets": MOST_TARGETS}).all()
    # Who does so at the same time takes them in the same order, and neither waits for the other.
    in_order = sorted(found, key=lambda row: (row.group_id, row.id))
    for group, of_group in groupby(in_order, key=lambda row: row.group_id):
        try:
            with session.begin_nested():
                joined += _join(session, list(of_group))
        except Exception:  # whatever is wrong with one, the others' members join
            log.exception("group.not_joined", group=str(group))
    if joined:
        log.info("group.joined", members=joined)
    return joined


def _join(session: Session, rows: Iterable[Row[Any]]) -> int:
    """Members of one group."""
    joined = 0
    for row in rows:
        member = session.get_one(Instance, row.id)
        port = _port_of(member)
        if port is not None:
            use_project(session, member.project_id)
            balancer_orders.join(session, row.balancer, member, port)
            joined += 1
    return joined


def _port_of(member: Instance) -> int | None:
    """The first of its TCP ports is the one that takes requests."""
    ports = [Port.model_validate(one) for one in member.ports]
    return next((port.container_port for port in ports if port.protocol == "tcp"), None)


def seen(
    session: Session, group: Group, members: list[Member], found: Sequence[Row[Any]], now: dt.datetime
) -> list[Member]:
    """The same, where those that run and that the group's balancer has not found well do not count as ready, and those
    that it has found down for long have failed. ``found``: their rows."""
    if group.load_balancer_id is None:
        return members
    live = (LoadBalancer.id == group.load_balancer_id) & LoadBalancer.status.in_((*OPEN, BalancerStatus.CREATING))
    heard = (
        select(Host.last_seen_at > func.now() - LEASE)
        .join(Instance, Instance.host_id == Host.id)
        .where(Instance.id == LoadBalancer.instance_id, Instance.status == Status.RUNNING)
        .correlate(LoadBalancer)
    )
    balancer = session.execute(
        select(LoadBalancer.id, heard.scalar_subquery().label("heard")).where(live)
    ).one_or_none()
    if balancer is None:
        return members
    targets = session.execute(
        select(BalancerTarget.instance_id, BalancerTarget.state, BalancerTarget.health).where(
            BalancerTarget.balancer_id == group.load_balancer_id
        )
    ).all()
    well = {row.instance_id for row in targets if row.state == TargetState.IN and row.health == "up"}
    # One for which it has no room, or that has no port for it, is as one of a group without a balancer.
    running = {
        row.id for row in found if row.status == Status.RUNNING and any(port["protocol"] == "tcp" for port in row.ports)
    }
    known = running & {row.instance_id for row in targets} if len(targets) >= MOST_TARGETS else running
    # Where it finds nobody well, or is not heard of, the trouble may be its own: then it has nobody replaced.
    down = {row.id for row in found if row.id in running and _is_down(row, now)} if well and balancer.heard else set()
    return [
        member._replace(condition="failed")
        if member.condition in ("up", "ready") and member.id in down
        else member._replace(condition="up")
        if member.condition == "ready" and member.id in known and member.id not in well
        else member
        for member in members
    ]


def _is_down(row: Row[Any], now: dt.datetime) -> bool:
    """For long enough, and not for what its own health check says."""
    told = row.target == TargetState.IN and row.found == "down" and row.found_at is not None
    lasting = told and now - max(row.found_at, row.updated_at) > DOWN_FOR
    return lasting and (row.health_check is None or row.health == "healthy")


def leave(session: Session, order: Order, members: Iterable[UUID], limits: Limits) -> list[Order]:
    """The runs, children of this one, after which no balancer sends these members anything; none: that is so. To be
    called before their rows are locked, in a transaction of their project. Raises NotReady while others' runs are at
    it."""
    leaving = list(members)
    found = balancer_orders.release(session, order, leaving, limits)
    if found:
        return found
    session.flush()
    left = session.scalars(
        select(LoadBalancer.name)
        .join(BalancerTarget, BalancerTarget.balancer_id == LoadBalancer.id)
        .where(BalancerTarget.instance_id.in_(leaving), LoadBalancer.status.in_(OPEN))
        .limit(1)
    ).one_or_none()
    if left is not None:
        raise NotReady(f"load balancer {left} still sends requests to members of {order.name}", retry_after_seconds=1)
    return []
