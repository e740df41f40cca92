"""Changes of balancers that the platform asks for: where what a proxy runs with is not what it should, and where
members of a group come and go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from uuid import UUID

import structlog
from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from activities import orders
from activities.balancer_configs import config_of, forget_deleted
from activities.balancer_ends import move_balancer
from activities.database import use_project
from activities.fleet import Limits
from activities.runs import record
from model import haproxy
from model.balancers import (
    OPEN,
    UPDATE,
    BalancerSettings,
    BalancerStatus,
    BalancerTarget,
    LoadBalancer,
    TargetState,
)
from model.base import new_id
from model.hosts import LEASE, Host
from model.instances import Instance, Status
from model.workflows import Order, State, Workflow

log = structlog.get_logger()
#: Balancers of one look; the next takes the others.
MOST = 50
#: What changed so long before a look may have been committed after it.
COMMITTED = dt.timedelta(seconds=20)
#: One is looked at this often though nothing seems to have changed: for its hosts' addresses, and for its certificate.
AT_LEAST_EVERY, WITH_TLS = dt.timedelta(minutes=10), dt.timedelta(seconds=30)


def order_updates(session: Session, limits: Limits) -> list[Order]:
    """Order an update of each balancer at rest that should run with something else by now. One look at the few that
    may, whatever their number; what cannot be applied just now (its host is silent) waits."""
    found = []
    for id in session.scalars(_candidates()).all():
        try:
            with session.begin_nested():
                order = _look(session, id, limits)
        except Exception:  # whatever is wrong with one, the others are looked at
            log.exception("lb.not_looked_at", load_balancer=str(id))
        else:
            found += [] if order is None else [order]
    return found


def _look(session: Session, id: UUID, limits: Limits) -> Order | None:
    balancer = session.scalars(
        select(LoadBalancer)
        .where(LoadBalancer.id == id, LoadBalancer.status == BalancerStatus.ACTIVE)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if balancer is None:
        return None
    use_project(session, balancer.project_id)
    forget_deleted(session, balancer)
    proxy = session.get_one(Instance, balancer.instance_id)
    digest = haproxy.digest(config_of(session, balancer, proxy))
    balancer.looked_at = func.now()
    if digest == balancer.applied_digest and proxy.container_id == balancer.applied_engine_id:
        return None
    because = "its targets have changed" if balancer.applied_digest else "what it runs with is not known"
    return update(session, balancer, limits, because=because)


def update(
    session: Session, balancer: LoadBalancer, limits: Limits, *, because: str, parent_id: UUID | None = None
) -> Order:
    """Order an update of a balancer whose row the caller has locked, and whose project is in use."""
    drain = BalancerSettings.model_validate(balancer.settings).drain_seconds
    order = Order(
        workflow_id=new_id(),
        project_id=balancer.project_id,
        kind=UPDATE,
        resource_type="load_balancer",
        resource_id=balancer.id,
        name=balancer.name,
        request_id=because,
        deadline_seconds=limits.deadline_balancer + drain,
    )
    orders.write(session, order, prior_status=balancer.status, parent_id=parent_id)
    balancer.workflow_id = order.workflow_id
    session.flush()
    record(session, order, move_balancer(balancer, BalancerStatus.UPDATING, because=because))
    return order


def join(session: Session, balancer_id: UUID, instance: Instance, port: int, weight: int = 100) -> None:
    """Make an instance a target, in whose project the transaction is; the platform's next look tells the proxy, within
    seconds. One that is a target already stays as it is."""
    row = {"balancer_id": balancer_id, "instance_id": instance.id, "project_id": instance.project_id}
    values = {**row, "port": port, "weight": weight, "state": TargetState.IN}
    session.execute(insert(BalancerTarget).values(**values).on_conflict_do_nothing())


def release(session: Session, parent: Order, instances: Iterable[UUID], limits: Limits) -> list[Order]:
    """Order that these instances leave every balancer, as children of ``parent``: they have drained, and are out of
    rotation, when those have ended. In a transaction of the project of all of them, whose instances are not locked.
    Those that it ordered before and that have not begun come again; what is no target needs nothing."""
    ours = select(Workflow).where(
        Workflow.parent_id == parent.workflow_id, Workflow.kind == UPDATE, Workflow.state == State.ACCEPTED
    )
    found = [Order.model_validate(row.order) for row in session.scalars(ours).all()]
    leaving = [BalancerTarget.instance_id.in_(list(instances)), BalancerTarget.project_id == parent.project_id]
    leaving.append(BalancerTarget.state.in_((TargetState.IN, TargetState.ADDING)))
    wanted = select(BalancerTarget.balancer_id).where(*leaving)
    for balancer in session.scalars(
        select(LoadBalancer)
        .where(LoadBalancer.id.in_(wanted), LoadBalancer.status.in_(OPEN))
        .order_by(LoadBalancer.id)
        .with_for_update()
    ).all():
        order = update(session, balancer, limits, because=f"{parent.kind}: {parent.name}", parent_id=parent.workflow_id)
        here = BalancerTarget.balancer_id == balancer.id
        for target in session.scalars(select(BalancerTarget).where(here, *leaving)).all():
            target.state, target.workflow_id = TargetState.DRAINING, order.workflow_id
            target.updated_at = func.now()
        found.append(order)
    return found


def _candidates() -> Select[UUID]:
    now = func.now()
    changed = (
        select(BalancerTarget.instance_id)
        .join(Instance, Instance.id == BalancerTarget.instance_id)
        .where(
            BalancerTarget.balancer_id == LoadBalancer.id,
            func.greatest(Instance.updated_at, BalancerTarget.updated_at) > LoadBalancer.looked_at - COMMITTED,
        )
        .correlate(LoadBalancer)
    )
    return (
        select(LoadBalancer.id)
        .join(Instance, Instance.id == LoadBalancer.instance_id)
        .join(Host, Host.id == Instance.host_id)
        .where(
            LoadBalancer.status == BalancerStatus.ACTIVE,
            Instance.status == Status.RUNNING,
            Host.last_seen_at > now - LEASE,
            or_(LoadBalancer.retry_at.is_(None), LoadBalancer.retry_at < now),
            or_(
                LoadBalancer.looked_at.is_(None),
                LoadBalancer.applied_digest.is_(None),
                LoadBalancer.applied_engine_id.is_distinct_from(Instance.container_id),
                LoadBalancer.looked_at < now - AT_LEAST_EVERY,
                and_(LoadBalancer.settings["tls"].as_string().is_not(None), LoadBalancer.looked_at < now - WITH_TLS),
                changed.exists(),
            ),
        )
        .order_by(LoadBalancer.looked_at.nulls_first())
        .limit(MOST)
    )
