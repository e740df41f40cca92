"""What is due by the clock: instances whose time to live is over, and those that have done nothing for too long."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import ColumnElement, and_, case, func, literal_column, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from activities import orders, session_orders
from activities.fleet import Limits
from model.hosts import LEASE, Host
from model.instances import Instance, Status
from model.lifetimes import AGAIN, AT_MOST, AT_MOST_SILENT, FRESH
from model.restores import restored
from model.samples import FINEST, Sample
from model.sessions import DEPROVISION, STOP
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
    for instance in _locked(session, _expired(), "DeprovisionInstance", since=Instance.expires_at):
        with _alone(session, instance):
            found.extend(_ended(session, instance, limits))
    for instance in _locked(session, _idle(), "StopInstance", since=Instance.active_at):
        with _alone(session, instance):
            found.extend(_stopped(session, instance, limits))
    return found


@contextmanager
def _alone(session: Session, instance: Instance) -> Iterator[None]:
    """One that cannot be ordered keeps no other from its turn."""
    try:
        with session.begin_nested():
            yield
    except Exception:  # whatever is wrong with it
        log.exception("instance.due_not_ordered", instance=str(instance.id))


def _ended(session: Session, instance: Instance, limits: Limits) -> list[Order]:
    """A session goes with its sandbox."""
    if instance.session_id is None:
        return [_delete(session, instance, limits)]
    order = session_orders.due(session, instance, DEPROVISION, "its time to live is over", limits)
    return [] if order is None else [order]


def _stopped(session: Session, instance: Instance, limits: Limits) -> list[Order]:
    if instance.session_id is None:
        return [_stop(session, instance, limits)]
    because = f"idle for {instance.idle_stop_seconds} s"
    order = session_orders.due(session, instance, STOP, because, limits)
    return [] if order is None else [order]


def _delete(session: Session, instance: Instance, limits: Limits) -> Order:
    log.info("instance.expired", instance=str(instance.id))
    orders.call_off_others(session, instance)
    return orders.change(
        session,
        instance,
        "DeprovisionInstance",
        because="its time to live is over",
        deadline_seconds=limits.deadline_delete,
        grace_seconds=limits.stop_grace,
    )


def _stop(session: Session, instance: Instance, limits: Limits) -> Order:
    log.info("instance.idle", instance=str(instance.id), since=str(instance.active_at))
    return orders.change(
        session,
        instance,
        "StopInstance",
        because=f"idle for {instance.idle_stop_seconds} s",
        deadline_seconds=limits.deadline_stop,
        grace_seconds=limits.stop_grace,
    )


def settled(instance: Instance, order: Order, status: Status, outcome: Outcome, *, started: bool) -> None:
    """A run has ended, and the instance is ``status``. ``started``: a step of it started the machine, which, where it
    completed, has waited until it was healthy; else only a look says how it is."""
    if status is Status.RUNNING:
        if instance.idle_stop_seconds is not None:
            instance.active_at = func.now()
        if outcome == "completed" and started:
            instance.health = "healthy" if instance.health_check else None
        elif outcome == "completed" and order.kind == "ResumeInstance":
            instance.health = None


def _locked(
    session: Session, due: ColumnElement[bool], kind: str, since: InstrumentedAttribute[dt.datetime | None]
) -> list[Instance]:
    """Those that are due ``since`` then, but for what was tried and failed not long ago."""
    tried = aliased(Workflow)
    tries = (
        select(func.count())
        .where(
            tried.project_id == Instance.project_id,
            tried.resource_id == Instance.id,
            tried.kind == kind,
            tried.created_at >= since,
        )
        .correlate(Instance)
        .scalar_subquery()
    )
    pause = AGAIN * func.pow(2, func.least(func.greatest(tries, 1), 10) - 1)
    longest = case((_leased(), AT_MOST), else_=AT_MOST_SILENT)
    failed = and_(Workflow.kind == kind, Workflow.finished_at > func.now() - func.least(pause, longest))
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


def _leased() -> ColumnElement[bool]:
    """Its host is there."""
    mine = select(Host.id).where(Host.id == Instance.host_id, Host.last_seen_at > func.now() - LEASE)
    return mine.correlate(Instance).exists()


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
    return and_(
        Instance.status == literal_column("'running'"),
        Instance.idle_stop_seconds.is_not(None),
        Instance.active_at + func.make_interval(0, 0, 0, 0, 0, 0, Instance.idle_stop_seconds) <= now,
        _leased(),
        known,
    )
