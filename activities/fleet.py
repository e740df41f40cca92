"""The tick's look at all hosts: which are to be reconciled, which are lost. A few queries, whatever their number."""

from __future__ import annotations

import datetime as dt

import structlog
from sqlalchemy import and_, func, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from activities import orders
from activities.placement import Capacity, room_beside
from model.base import Frozen
from model.errors import NoCapacity
from model.hosts import LEASE, MARGIN, Host
from model.instances import Instance, Status
from model.projects import Pulse
from model.restores import restored
from model.workflows import State, Workflow

log = structlog.get_logger()

#: A host is looked at this often though nothing seems to have changed.
AT_LEAST_EVERY = dt.timedelta(minutes=10)
#: A process that was silent for longer was away: silence of a host says nothing until it has been back for a while.
AWAY = dt.timedelta(seconds=25)
#: The same of the tick, in ticks, where they are far apart.
AWAY_TICKS = 2.5
#: Moves that one pass looks at. One that failed is asked for again after a minute, then after twice as long each time,
#: at most half an hour; five minutes where some host has room (it may lack a port, or an image).
MOVES = 50
MOVE_AGAIN, AT_MOST, AT_MOST_WITH_ROOM = (dt.timedelta(minutes=minutes) for minutes in (1, 30, 5))
#: What hosts and judges of hosts depend on.
API, TICK = "api", "tick"
BEAT = text(
    """
    INSERT INTO pulses (process) VALUES (:process) ON CONFLICT (process) DO UPDATE SET seen_at = now(),
        since = CASE WHEN pulses.seen_at < now() - cast(:away AS interval) THEN now() ELSE pulses.since END
    """
)


class Limits(Frozen):
    """The settings that what the platform orders by itself goes by."""

    reconcile_interval: float
    fence_after: float
    deadline_launch: float
    capacity: Capacity
    stop_grace: float = 10
    tick_seconds: float = 10
    deadline_stop: float = 300
    deadline_delete: float = 300
    deadline_balancer: float = 120
    #: Id of the master key that secrets are to lie under; None: this worker has none.
    newest_key: str | None = None

    @property
    def tick_away(self) -> dt.timedelta:
        """Silence of the tick after which it was away."""
        return max(AWAY, dt.timedelta(seconds=AWAY_TICKS * self.tick_seconds))


def beat(process: str, away: dt.timedelta = AWAY) -> dict[str, object]:
    """Parameters of BEAT: the process works, and does so more often than ``away``."""
    return {"process": process, "away": away}


def to_reconcile(session: Session, limits: Limits) -> list[str]:
    """Hosts that hold something else than was last found right, or whose instances changed since; marks the look."""
    changed = (
        select(Instance.id)
        .where(Instance.host_id == Host.id, Instance.updated_at > Host.reconciled_at)
        .correlate(Host)
        .exists()
    )
    now = func.now()
    half = dt.timedelta(seconds=limits.reconcile_interval / 2)
    wanted = (
        select(Host.id)
        .where(
            Host.inventory.is_not(None),
            Host.last_seen_at > now - LEASE,
            or_(
                Host.reconciled_at.is_(None),
                Host.reconciled_at < now - AT_LEAST_EVERY,
                and_(
                    Host.reconciled_at < now - half,
                    or_(Host.reconciled.is_distinct_from(Host.inventory), changed),
                ),
            ),
        )
        .with_for_update(skip_locked=True)
    )
    marked = update(Host).where(Host.id.in_(wanted)).values(reconciled_at=now).returning(Host.name)
    return list(session.scalars(marked))


def silence_says_something(session: Session, tick_away: dt.timedelta = AWAY) -> bool:
    """Whether a host that is silent for lease and margin is lost: API and tick have worked all the while."""
    now = func.now()
    steady = select(func.count()).where(
        Pulse.since < now - (LEASE + MARGIN),
        or_(
            and_(Pulse.process == API, Pulse.seen_at > now - AWAY),
            and_(Pulse.process == TICK, Pulse.seen_at > now - tick_away),
        ),
    )
    return session.execute(steady).scalar_one() == len((API, TICK))


def replace_lost(session: Session, limits: Limits) -> int:
    """Order moves of what must not wait for a lost host; how many.

    A host is lost when its lease lapsed a margin ago, and API and tick worked all the while. What is fenced moves
    only when its agent must have stopped it: the agent counts from before its last renewal, so it is first.
    """
    if not silence_says_something(session, limits.tick_away) or restored(session):
        return 0
    now = func.now()
    lost = LEASE + MARGIN
    granted = func.make_interval(0, 0, 0, 0, 0, 0, func.coalesce(Host.fence_after, limits.fence_after))
    move = aliased(Workflow)
    # Since the host is silent: when it is heard of again, all of this begins anew.
    tries = (
        select(func.count())
        .where(
            move.project_id == Instance.project_id,
            move.resource_id == Instance.id,
            move.kind == "MoveInstance",
            move.created_at > Host.last_seen_at,
        )
        .scalar_subquery()
    )
    doubled = MOVE_AGAIN * func.pow(2, func.least(func.greatest(tries, 1), 10) - 1)
    failed = and_(Workflow.kind == "MoveInstance", Workflow.state != State.COMPLETED)
    due = or_(~failed, Workflow.finished_at < now - func.least(doubled, AT_MOST))
    may_be_due = and_(
        Workflow.error["code"].astext == NoCapacity.code,
        Workflow.finished_at < now - func.least(doubled, AT_MOST_WITH_ROOM),
    )
    found = session.execute(
        select(Instance.id, Host.name.label("host"), due.label("due"))
        .join(Host, Host.id == Instance.host_id)
        .join(Workflow, Workflow.id == Instance.workflow_id)
        .where(
            Host.last_seen_at < now - lost,
            Instance.status == Status.RUNNING,
            or_(
                Instance.on_host_lost == "replace",
                and_(Instance.on_host_lost == "fence", Host.last_seen_at < now - MARGIN - granted),
            ),
            or_(due, may_be_due),
        )
        # Those that wait for room keep no other from its turn.
        .order_by(due.desc(), func.random())
        .limit(MOVES)
    ).all()
    moved = 0
    for row in found:
        instance = session.scalars(
            select(Instance)
            .where(Instance.id == row.id, Instance.status == Status.RUNNING)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if instance is not None and (row.due or room_beside(session, instance, limits.capacity)):
            log.warning("instance.host_lost", instance=str(instance.id), host=row.host, policy=instance.on_host_lost)
            orders.change(
                session,
                instance,
                "MoveInstance",
                because=f"host lost: {row.host}",
                deadline_seconds=limits.deadline_launch,
                grace_seconds=limits.stop_grace,
                host_lost=True,
            )
            moved += 1
    return moved
