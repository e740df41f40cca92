"""What is due by the clock: instances whose time to live is over, and those that have done nothing for too long."""

from __future__ import annotations

import structlog
from sqlalchemy import ColumnElement, and_, func, literal_column, select
from sqlalchemy.orm import Session

from activities import orders
from activities.fleet import Limits
from model.hosts import LEASE, Host
from model.instances import Instance, Status
from model.lifetimes import AGAIN, FRESH
from model.restores import restored
from model.samples import FINEST, Sample
from model.workflows import Order, Outcome, Workflow

log = structlog.get_logger()
#: Instances of one look; the next takes the others.
MOST = 50


def order_due(session: Session, limits: Limits) -> list[Order]:
    """Order the deletes and stops that are due, once: whoever looks at the same time passes over what is locked here,
    and afterwards it is in another state. Costs two looks at small indexes."""
    found: list[Order] = []
    if restored(session):
        return found
    for instance in _locked(session, _expired(), "DeprovisionInstance"):
        log.info("instance.expired", instance=str(instance.id))
        orders.call_off_others(session, instance)
        found.append(
            orders.change(
                session,
                instance,
                "DeprovisionInstance",
                because="its time to live is over",
                deadline_seconds=limits.deadline_delete,
                grace_seconds=limits.stop_grace,
            )
        )
    for instance in _locked(session, _idle(), "StopInstance"):
        log.info("instance.idle", instance=str(instance.id), since=str(instance.active_at))
        found.append(
            orders.change(
                session,
                instance,
                "StopInstance",
                because=f"idle for {instance.idle_stop_seconds} s",
                deadline_seconds=limits.deadline_stop,
                grace_seconds=limits.stop_grace,
            )
        )
    return found


def settled(instance: Instance, status: Status, outcome: Outcome) -> None:
    """A run has ended, and the instance is ``status``. A start that completed has waited until it was healthy."""
    if status is Status.RUNNING:
        if instance.idle_stop_seconds is not None:
            instance.active_at = func.now()
        if outcome == "completed":
            instance.health = "healthy" if instance.health_check else None
    elif status is Status.DELETED and instance.user_data_sha256 is not None:
        instance.user_data = None  # it may hold secrets


def _locked(session: Session, due: ColumnElement[bool], kind: str) -> list[Instance]:
    # One that failed is not tried again at once.
    failed = and_(Workflow.kind == kind, Workflow.finished_at > func.now() - AGAIN)
    return list(
        session.scalars(
            select(Instance)
            .join(Workflow, Workflow.id == Instance.workflow_id)
            .where(due, ~failed)
            .order_by(Instance.id)
            .limit(MOST)
            .with_for_update(of=Instance, skip_locked=True)
        ).all()
    )


def _expired() -> ColumnElement[bool]:
    return and_(
        Instance.expires_at <= func.now(),
        # As the index has it.
        Instance.status != literal_column("'deleted'"),
        Instance.status != Status.DELETING,
    )


def _idle() -> ColumnElement[bool]:
    """What is not known is not idle: its host is there, and has measured it since it was last active, and lately."""
    now = func.now()
    known = (
        select(Sample.at)
        .where(
            Sample.instance_id == Instance.id,
            Sample.seconds == FINEST,
            Sample.at > now - FRESH,
            Sample.at >= Instance.active_at,
        )
        .correlate(Instance)
        .exists()
    )
    leased = select(Host.id).where(Host.id == Instance.host_id, Host.last_seen_at > now - LEASE).correlate(Instance)
    return and_(
        Instance.status == literal_column("'running'"),
        Instance.idle_stop_seconds.is_not(None),
        Instance.active_at + func.make_interval(0, 0, 0, 0, 0, 0, Instance.idle_stop_seconds) <= now,
        leased.exists(),
        known,
    )
