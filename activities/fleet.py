"""The tick's look at all hosts: which are to be reconciled, which are lost. A few queries, whatever their number."""

from __future__ import annotations

import datetime as dt

import structlog
from sqlalchemy import and_, func, or_, select, text, update
from sqlalchemy.orm import Session

from activities import orders
from model.base import Frozen
from model.hosts import LEASE, MARGIN, Host
from model.instances import Instance, Status
from model.projects import Pulse
from model.workflows import State, Workflow

log = structlog.get_logger()

#: A host is looked at this often though nothing seems to have changed.
AT_LEAST_EVERY = dt.timedelta(minutes=10)
#: A process that was silent for longer was away: silence of a host says nothing until it has been back for a while.
AWAY = dt.timedelta(seconds=25)
#: Moves that one pass asks for, and when one that failed is asked for again.
MOVES, MOVE_AGAIN = 50, dt.timedelta(seconds=60)
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
    stop_grace: float = 10
    deadline_stop: float = 300
    deadline_delete: float = 300

    @property
    def fenced_after(self) -> dt.timedelta:
        """Silence of a host after which what is fenced must have been stopped there."""
        return dt.timedelta(seconds=self.fence_after) + MARGIN


def beat(process: str) -> dict[str, object]:
    """Parameters of BEAT: the process works."""
    return {"process": process, "away": AWAY}


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


def replace_lost(session: Session, limits: Limits) -> int:
    """Order moves of what must not wait for a lost host; how many.

    A host is lost when its lease lapsed a margin ago, and API and tick worked all the while. What is fenced moves
    only when its agent must have stopped it: the agent counts from before its last renewal, so it is first.
    """
    now = func.now()
    lost = dt.timedelta(seconds=(LEASE + MARGIN).total_seconds())
    steady = session.execute(
        select(func.count()).where(Pulse.process.in_((API, TICK)), Pulse.since < now - lost, Pulse.seen_at > now - AWAY)
    ).scalar_one()
    if steady < len((API, TICK)):
        return 0
    found = session.execute(
        select(Instance.id, Host.name.label("host"))
        .join(Host, Host.id == Instance.host_id)
        .join(Workflow, Workflow.id == Instance.workflow_id)
        .where(
            Host.last_seen_at < now - lost,
            Instance.status == Status.RUNNING,
            or_(
                Instance.on_host_lost == "replace",
                and_(Instance.on_host_lost == "fence", Host.last_seen_at < now - limits.fenced_after),
            ),
            ~and_(
                Workflow.kind == "MoveInstance",
                Workflow.state != State.COMPLETED,
                Workflow.finished_at > now - MOVE_AGAIN,
            ),
        )
        .limit(MOVES)
    ).all()
    moved = 0
    for row in found:
        instance = session.scalars(
            select(Instance)
            .where(Instance.id == row.id, Instance.status == Status.RUNNING)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if instance is not None:
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
