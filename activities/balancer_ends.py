"""How runs on load balancers end: the state, the settings and the targets that they leave behind."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from activities import rounds
from activities.instance_ends import settle_instance
from activities.runs import RunEnded, end, record
from model import haproxy
from model.balancers import (
    DEPROVISION,
    PROVISION,
    AppliedSpec,
    BalancerSample,
    BalancerSettings,
    BalancerStatus,
    BalancerTarget,
    LoadBalancer,
    TargetState,
)
from model.base import Frozen
from model.workflows import Failure, Order, Outcome, Step

#: After a change that failed the platform tries the next one after so long, then after twice as long each time.
AGAIN, AT_MOST = dt.timedelta(seconds=5), dt.timedelta(minutes=5)


class BalancerFacts(Frozen):
    """What a host has made of a configuration."""

    applied: AppliedSpec
    #: Of which configuration.
    revision: int
    digest: str
    settings: BalancerSettings


class BalancerEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None
    facts: BalancerFacts | None = None


def lock_balancer(session: Session, order: Order) -> LoadBalancer:
    """The row of the order's balancer, which nobody else changes until the commit."""
    mine = (LoadBalancer.project_id == order.project_id) & (LoadBalancer.id == order.resource_id)
    found = session.scalars(select(LoadBalancer).where(mine).with_for_update()).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no load balancer {order.resource_id}")
    return found


def settle_balancer(
    session: Session,
    order: Order,
    outcome: Outcome,
    failure: Failure | None,
    steps: list[Step] | None,
    facts: BalancerFacts | None = None,
) -> None:
    """End a run on a balancer, and its parts that have not begun. Once: a row that ended is left alone.

    What a change that did not complete had asked for was never asked for. What it may have told the proxy is not known
    then: the platform makes it right by a change of its own.
    """
    balancer = lock_balancer(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    rounds.call_off(session, order, {"instance": settle_instance})
    done = outcome == "completed"
    _settle_targets(session, balancer, order, done=done)
    if balancer.settings_by == order.workflow_id:
        if not done and balancer.applied_settings is not None:
            balancer.settings = balancer.applied_settings
        balancer.settings_by = None
    if done:
        balancer.failures, balancer.retry_at = 0, None
    else:
        balancer.applied_digest = None
        balancer.failures += 1
        balancer.retry_at = func.now() + min(AGAIN * 2 ** min(balancer.failures - 1, 10), AT_MOST)
    if facts is not None:
        _note(balancer, facts)
        _note_health(session, balancer, facts)
    events = []
    if balancer.workflow_id == order.workflow_id:  # else a newer one owns it now
        events.append(move_balancer(balancer, _leads_to(order, outcome)))
        balancer.error = failure.model_dump() if failure else None
        if balancer.status == BalancerStatus.DELETED:
            balancer.deleted_at = func.now()
            session.execute(delete(BalancerTarget).where(BalancerTarget.balancer_id == balancer.id))
            session.execute(delete(BalancerSample).where(BalancerSample.balancer_id == balancer.id))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _leads_to(order: Order, outcome: Outcome) -> BalancerStatus:
    if order.kind == DEPROVISION:
        return BalancerStatus.DELETED if outcome == "completed" else BalancerStatus.ERROR
    failed_launch = order.kind == PROVISION and outcome != "completed"
    return BalancerStatus.ERROR if failed_launch else BalancerStatus.ACTIVE


def _settle_targets(session: Session, balancer: LoadBalancer, order: Order, *, done: bool) -> None:
    """Those that the run added, took out, or gave another weight."""
    mine = (BalancerTarget.balancer_id == balancer.id) & (BalancerTarget.workflow_id == order.workflow_id)
    leaving = BalancerTarget.state.in_((TargetState.DRAINING, TargetState.DRAINED))
    adding = BalancerTarget.state == TargetState.ADDING
    session.execute(delete(BalancerTarget).where(mine, leaving if done else adding))
    values: dict[str, Any] = {"state": TargetState.IN, "workflow_id": None, "prior_weight": None}
    if not done:
        values["weight"] = func.coalesce(BalancerTarget.prior_weight, BalancerTarget.weight)
    session.execute(update(BalancerTarget).where(mine).values(**values, updated_at=func.now()))


def _note(balancer: LoadBalancer, facts: BalancerFacts) -> None:
    """What the proxy runs with. Where it has a newer configuration, the run of that one says so."""
    if facts.applied.revision == facts.revision > balancer.applied_revision:
        balancer.applied_revision, balancer.applied_digest = facts.revision, facts.digest
        balancer.applied_engine_id = facts.applied.engine_id
        balancer.applied_settings = facts.settings.model_dump(mode="json")


def _note_health(session: Session, balancer: LoadBalancer, facts: BalancerFacts) -> None:
    """What the host saw of new targets: the next look of its agent may be some seconds away."""
    for server, health in facts.applied.health.items():
        target = session.get(BalancerTarget, (balancer.id, UUID(haproxy.instance_of(server))))
        if target is not None and target.health != health:
            target.health, target.health_at, target.check = health, func.now(), None


def move_balancer(balancer: LoadBalancer, status: BalancerStatus, **data: Any) -> tuple[str, dict[str, Any]]:
    """Move the balancer; the event that says so."""
    previous = balancer.status
    balancer.status = status
    balancer.version += 1
    balancer.updated_at = func.now()
    return f"lb.{status}", {"name": balancer.name, "from": previous, "to": status, **data}
