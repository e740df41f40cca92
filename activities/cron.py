"""Runs of cron jobs in the database: how each begins and ends."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import once_committed, transaction
from model.base import new_id
from model.cron import LONGEST_WAIT, OPEN, CronCall, CronEnd, CronJob, CronRun, CronTurn, Overlap, RunState
from model.errors import NotReady
from model.metrics import CRON_LATE_SECONDS, CRON_RUNS
from model.restores import restored
from model.workflows import TERMINAL, Event, Failure, Outcome, State, Workflow

#: A workflow that a run started may take so long.
MOST_WORKFLOW_SECONDS = 7200.0
#: For finding an API that takes a call up, and for its own work beside what its target takes.
MARGIN_SECONDS = 300.0
#: How often a run that has not ended is compared with Temporal.
CHECK_EVERY = dt.timedelta(seconds=30)
#: Of an overlapping run, whose successor found it.
TERMINATED = Failure(code="cancelled", message="the next run's time came, and this job's runs terminate the one before")
_CALL = text("SELECT pg_notify('cairn', 'cron')")
_NOTIFY = text("SELECT pg_notify('cairn', '')")


class CronRecords:
    """Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="cron.begin")
    def begin(self, turn: CronTurn) -> CronCall | None:
        """Claim the row of a run, which is made where Temporal's schedule started it; None: there is nothing to do,
        as the job is gone, or the time has had its run. Raises NotReady while the platform is restored."""
        time, info = turn.time, activity.info()
        with transaction(self._engine, time.project_id) as session:
            if restored(session):
                raise NotReady("the platform was restored from a backup: this goes on when its operator has finished")
            job = session.get(CronJob, time.job_id)
            if job is None or job.deleted_at is not None:
                return None
            if time.run_id is None:
                session.execute(_made(turn))
            this = (CronRun.job_id == job.id) & (CronRun.scheduled_at == turn.at) & ~CronRun.manual
            which = this if time.run_id is None else CronRun.id == time.run_id
            mine = (CronRun.state == RunState.RUNNING) & (CronRun.run_id == info.workflow_run_id)
            run = session.execute(
                update(CronRun)
                .where(which, (CronRun.state == RunState.PENDING) | mine)
                .values(
                    state=RunState.RUNNING,
                    temporal_id=info.workflow_id,
                    run_id=info.workflow_run_id,
                    started_at=func.coalesce(CronRun.started_at, func.now()),
                    checked_at=func.now(),
                )
                .returning(CronRun)
            ).scalar_one_or_none()
            if run is None:
                return None
            if job.overlap == Overlap.TERMINATE_OTHER and time.run_id is None:
                _look_at_terminated(session, run)
            _count_late(session, turn, run)
            ((kind, target),) = job.target.items()
            retries = target.get("retries") or 0
            seconds = MARGIN_SECONDS + (target.get("timeout") or 0) * (1 + retries) + retries * LONGEST_WAIT
            return CronCall(project_id=time.project_id, job_id=job.id, run_id=run.id, kind=kind, seconds=seconds)

    @activity.defn(name="cron.watch")
    def watch(self, call: CronCall) -> Failure | None:
        """How the workflow that the run started ended; None: well. Raises NotReady until then."""
        with transaction(self._engine, call.project_id) as session:
            run = session.get(CronRun, call.run_id)
            started = session.get(Workflow, run.workflow_id) if run and run.workflow_id else None
            if started is None or started.state == State.COMPLETED:
                return None  # the job was deleted, or there was nothing to do
            if started.state not in TERMINAL:
                raise NotReady(f"workflow {started.id} is {started.state}")
            if started.error:
                return Failure.model_validate(started.error)
            return Failure(code=started.state, message=f"workflow {started.id} was {started.state}")

    @activity.defn(name="cron.settle")
    def settle(self, end: CronEnd) -> None:
        """End the run, once. One that was called off calls off what it started."""
        with transaction(self._engine, end.call.project_id) as session:
            settle_run(session, end.call.project_id, end.call.run_id, end.outcome, end.failure)


def settle_run(session: Session, project_id: UUID, run_id: UUID, outcome: Outcome, failure: Failure | None) -> None:
    """In the rows of its project. A run that ended is left alone."""
    run = session.execute(
        update(CronRun)
        .where(CronRun.id == run_id, CronRun.state.in_(OPEN))
        .values(state=outcome, finished_at=func.now(), error=failure.model_dump() if failure else None)
        .returning(CronRun)
    ).scalar_one_or_none()
    if run is None:
        return
    once_committed(session, CRON_RUNS.labels(outcome).inc)
    if outcome == "cancelled" and run.workflow_id is not None:
        now = func.coalesce(Workflow.cancel_requested_at, func.now())
        open_one = (Workflow.id == run.workflow_id) & Workflow.state.not_in(TERMINAL)
        session.execute(update(Workflow).where(open_one).values(cancel_requested_at=now))
    if outcome == "failed":
        session.execute(insert(Event).values(**_failed(session, project_id, run, failure)))
        session.execute(_NOTIFY)
    # Of those that wait for their turn, the next.
    session.execute(_CALL)


def _count_late(session: Session, turn: CronTurn, run: CronRun) -> None:
    """Of runs that begin, once."""
    now: dt.datetime = session.execute(select(func.now())).scalar_one()
    if turn.time.run_id is None and run.started_at == now:
        late = (now - run.scheduled_at).total_seconds()
        once_committed(session, lambda: CRON_LATE_SECONDS.observe(max(late, 0.0)))


def _made(turn: CronTurn) -> Any:
    time = turn.time
    values = {"id": new_id(), "project_id": time.project_id, "job_id": time.job_id, "scheduled_at": turn.at}
    return upsert(CronRun).values(**values).on_conflict_do_nothing()


def _look_at_terminated(session: Session, run: CronRun) -> None:
    """Temporal ended the run before this one, which could not say so itself: the next look asks it. It did not end what
    the platform began of itself, for times that were past."""
    before = (CronRun.job_id == run.job_id) & (CronRun.id != run.id) & ~CronRun.manual
    earlier = before & (CronRun.state == RunState.RUNNING) & (CronRun.scheduled_at < run.scheduled_at)
    looked_at = update(CronRun).where(earlier).values(checked_at=func.now() - 2 * CHECK_EVERY)
    if session.execute(looked_at.returning(CronRun.id)).all():
        session.execute(_CALL)


def _failed(session: Session, project_id: UUID, run: CronRun, failure: Failure | None) -> dict[str, Any]:
    name = session.scalar(select(CronJob.name).where(CronJob.id == run.job_id))
    at: dt.datetime = run.scheduled_at
    data = {"name": name, "run_id": str(run.id), "scheduled_at": at.isoformat()}
    return {
        "project_id": project_id,
        "type": "cron_job.failed",
        "resource_type": "cron_job",
        "resource_id": run.job_id,
        "workflow_id": run.workflow_id,
        "data": data | {"error": failure.model_dump() if failure else None},
    }
