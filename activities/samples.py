"""The life of samples: what is old becomes coarser, what is too old goes."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from temporalio import activity

from activities.chores import Chore
from activities.database import transaction
from model.base import Frozen
from model.samples import FINEST, KEPT, LATE

#: Intervals that one pass makes coarser, and how often it deletes how many rows: what is left is the next pass's.
INTERVALS, DELETIONS, DELETED_AT_ONCE = 30, 50, 10_000
#: Deletion waits so long, so that there is one each minute and not one with every tick.
SLACK = dt.timedelta(minutes=1)
#: Coarser from finer: each from the one before.
STEPS = list(pairwise(KEPT))
#: An interval is made coarser when this has passed since its end: from then on no sample of it is taken.
SETTLED = LATE + dt.timedelta(seconds=10)

_BOUND = text("SET LOCAL statement_timeout = '20s'")
# The oldest interval of which there are finer samples, and no coarser ones after its beginning. Its bounds come
# from both ends of an index; intervals without samples are never looked at.
_NEXT = text(
    """
    SELECT date_bin(make_interval(secs => :coarse), min(at), 'epoch') FROM samples
    WHERE seconds = :fine AND at >= coalesce(
        (SELECT max(at) + make_interval(secs => :coarse) FROM samples WHERE seconds = :coarse), '-infinity'
    )
    """
)
_COARSER = text(
    """
    INSERT INTO samples (project_id, instance_id, seconds, at, cpu_percent, memory_bytes, pids,
                         rx_bytes, tx_bytes, read_bytes, written_bytes)
    SELECT project_id, instance_id, :coarse, :at, avg(cpu_percent), avg(memory_bytes), avg(pids),
           max(rx_bytes), max(tx_bytes), max(read_bytes), max(written_bytes)
    FROM samples WHERE seconds = :fine AND at >= :at AND at < :until
    GROUP BY project_id, instance_id ORDER BY instance_id
    ON CONFLICT DO NOTHING
    """
)
_OLDEST = text("SELECT min(at) FROM samples WHERE seconds = :seconds")
_DELETE = text(
    """
    DELETE FROM samples WHERE (instance_id, seconds, at) IN (
        SELECT instance_id, seconds, at FROM samples WHERE seconds = :seconds AND at < :before
        ORDER BY at LIMIT :most
    )
    """
)
_NOW = text("SELECT now()")


class Coarsened(Frozen):
    """What one pass did."""

    intervals: int = 0
    deleted: int = 0


def is_due(session: Session) -> bool:
    """Whether a pass would do anything: a few looks at the ends of an index."""
    now = session.execute(_NOW).scalar_one()
    if any(_next(session, fine, coarse, now) for fine, coarse in STEPS):
        return True
    return any(
        oldest is not None and oldest < limit - SLACK
        for seconds, limit in _limits(session, now).items()
        for oldest in [session.execute(_OLDEST, {"seconds": seconds}).scalar_one()]
    )


def due(session: Session) -> list[Chore]:
    """A pass, where it would do anything."""
    summary = "Make old samples coarser, and remove those that are too old"
    return [Chore("CoarsenSamples", "samples", summary)] if is_due(session) else []


class SampleRecords:
    """Runs on the control queue, whenever the tick finds it due."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="samples.coarsen", no_thread_cancel_exception=True)
    def coarsen(self) -> Coarsened:
        """One pass: an interval, or some thousand rows, in each transaction. Repeated, it goes on where it was."""
        intervals = deleted = 0
        for fine, coarse in STEPS:
            while intervals < INTERVALS and not activity.is_cancelled() and self._coarsen(fine, coarse):
                intervals += 1
        for _ in range(DELETIONS):
            gone = 0 if activity.is_cancelled() else self._delete()
            deleted += gone
            if not gone:
                break
        return Coarsened(intervals=intervals, deleted=deleted)

    def _coarsen(self, fine: int, coarse: int) -> bool:
        with transaction(self._engine) as session:
            session.execute(_BOUND)
            at = _next(session, fine, coarse, session.execute(_NOW).scalar_one())
            if at is None:
                return False
            until = at + dt.timedelta(seconds=coarse)
            session.execute(_COARSER, {"fine": fine, "coarse": coarse, "at": at, "until": until})
            return True

    def _delete(self) -> int:
        with transaction(self._engine) as session:
            session.execute(_BOUND)
            deleted = 0
            for seconds, limit in _limits(session, session.execute(_NOW).scalar_one()).items():
                some = {"seconds": seconds, "before": limit, "most": DELETED_AT_ONCE}
                deleted += session.execute(_DELETE, some).rowcount  # type: ignore[attr-defined]
            return deleted


def _next(session: Session, fine: int, coarse: int, now: dt.datetime) -> dt.datetime | None:
    """The beginning of the next interval that is to be made coarser, if it is time."""
    at: dt.datetime | None = session.execute(_NEXT, {"fine": fine, "coarse": coarse}).scalar_one()
    if at is None:
        return None
    end = at + dt.timedelta(seconds=coarse)
    if end + SETTLED > now:
        return None
    if fine != FINEST:
        # What it is made of must be whole first.
        finer = STEPS[STEPS.index((fine, coarse)) - 1]
        unmade = session.execute(_NEXT, {"fine": finer[0], "coarse": finer[1]}).scalar_one()
        if unmade is not None and unmade < end:
            return None
    return at


def _limits(session: Session, now: dt.datetime) -> dict[int, dt.datetime]:
    """Resolution → samples before this are too old. None of what has not been made coarser yet."""
    limits = {seconds: now - kept for seconds, kept in KEPT.items()}
    for fine, coarse in STEPS:
        unmade = session.execute(_NEXT, {"fine": fine, "coarse": coarse}).scalar_one()
        if unmade is not None:
            limits[fine] = min(limits[fine], unmade)
    return limits
