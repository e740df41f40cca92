"""Temporal's schedules of cron jobs: one for each, as its row says; and runs that Temporal does not start by itself.

All that is to be done is in rows, and all of it may be done twice: what one worker leaves, another does again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, func, or_, select, text, update
from sqlalchemy.orm import Session
from temporalio import activity
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    ScheduleListDescription,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    WorkflowExecutionStatus,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.cron import settle_run
from activities.database import transaction, use_project
from activities.runs import CONTROL, NAME, PROJECT, RESOURCE
from model import cron_times
from model.base import Frozen
from model.cron import CronJob, CronRun, CronTime, Overlap, RunState, prefix, schedule_id, workflow_id
from model.projects import Installation
from model.restores import restored
from model.workflows import Failure, Outcome

#: Of each kind, at one look; and how many calls to Temporal at once, each with so much time.
BATCH, AT_ONCE = 40, 8
PATIENCE = dt.timedelta(seconds=15)
#: What a worker has taken is not looked for before this: longer than all of a batch may take.
IN_HAND = dt.timedelta(seconds=90)
#: What failed is looked for again after this.
AGAIN = dt.timedelta(seconds=10)
#: How often a run that has not ended is compared with Temporal.
CHECK_EVERY = dt.timedelta(seconds=30)
#: What was changed within this may not be in Temporal's list yet.
YOUNG = dt.timedelta(seconds=60)
#: No run lasts longer; one that is stuck is ended by Temporal.
LONGEST_RUN = dt.timedelta(hours=3)
OVERLAP = {
    Overlap.SKIP: ScheduleOverlapPolicy.SKIP,
    Overlap.BUFFER_ONE: ScheduleOverlapPolicy.BUFFER_ONE,
    Overlap.BUFFER_ALL: ScheduleOverlapPolicy.BUFFER_ALL,
    Overlap.CANCEL_OTHER: ScheduleOverlapPolicy.CANCEL_OTHER,
    Overlap.TERMINATE_OTHER: ScheduleOverlapPolicy.TERMINATE_OTHER,
    Overlap.ALLOW_ALL: ScheduleOverlapPolicy.ALLOW_ALL,
}
T = TypeVar("T")
log = structlog.get_logger()

# Out of turn at once; of those that a back-fill asked for, one of each job after the other, unless all may run at once.
_WAITING = text(
    """
    UPDATE cron_runs SET checked_at = now() + :in_hand WHERE id IN (
        SELECT r.id FROM cron_runs r JOIN cron_jobs j ON j.id = r.job_id AND j.deleted_at IS NULL
        WHERE r.state = 'pending' AND r.checked_at <= now() AND (
            r.manual OR j.overlap = 'allow_all' OR NOT EXISTS (
                SELECT FROM cron_runs o WHERE o.job_id = r.job_id AND NOT o.manual AND o.id <> r.id
                AND (o.state = 'running' OR (o.state = 'pending' AND o.scheduled_at < r.scheduled_at))
            )
        )
        ORDER BY r.checked_at LIMIT :most FOR UPDATE OF r SKIP LOCKED
    ) RETURNING id
    """
)


class Compared(Frozen):
    """What one comparison found: schedules of ours without a row, rows that Temporal has otherwise."""

    removed: int = 0
    again: int = 0


class CronSchedules:
    """Runs on the control queue, and beside it whenever something was accepted, and with every tick."""

    def __init__(self, engine: Engine, client: Client) -> None:
        self._engine = engine
        self._client = client
        self._installation: UUID | None = None

    async def look(self) -> int:
        """Tell Temporal what it does not know yet, start what waits, end what ended elsewhere: how many failed."""
        work = await asyncio.to_thread(self._take)
        if work is None:
            return 0
        jobs, waiting, unchecked = work
        return (
            await self._each(jobs, self._apply, self._leave_job)
            + await self._each(waiting, self._start, self._leave_run)
            + await self._each(unchecked, self._check)
        )

    @activity.defn(name="cron.compare")
    async def compare(self) -> Compared:
        """Remove schedules of ours that no job has, and have those told again that are not as their jobs say.

        Async: it reads all of Temporal's schedules. Another installation's are strangers.
        """
        listed: dict[str, ScheduleListDescription] = {}
        async for one in await self._client.list_schedules(page_size=500):
            activity.heartbeat()
            listed[one.id] = one
        # After the list: what has no row now, had one when it was made, or is nobody's.
        return await self._compare(listed)

    async def _compare(self, listed: dict[str, ScheduleListDescription]) -> Compared:
        found = await asyncio.to_thread(self._otherwise, listed)
        if found is None:
            return Compared()
        orphans, again = found
        await self._each(orphans, self._remove)
        if orphans or again:
            log.warning("cron.compared", removed=len(orphans), again=again)
        return Compared(removed=len(orphans), again=again)

    async def _each(
        self, items: Sequence[T], act: Callable[[T], Awaitable[None]], leave: Callable[[T], None] | None = None
    ) -> int:
        """How many failed; ``leave`` takes those out of this worker's hands."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(item: T) -> bool:
            async with gate:
                try:
                    await asyncio.wait_for(act(item), PATIENCE.total_seconds())
                    return False
                except Exception as error:  # whatever one is, it keeps no other waiting
                    log.warning("cron.failed", what=act.__name__, error=str(error) or type(error).__name__)
                    if leave is not None:
                        with contextlib.suppress(Exception):  # else it is free once its time has passed
                            await asyncio.to_thread(leave, item)
                    return True

        return sum(await asyncio.gather(*(one(item) for item in items)))

    def _take(self) -> tuple[list[CronJob], list[CronRun], list[CronRun]] | None:
        """Jobs to tell of, runs to start, runs to compare, each in this worker's hands for a while; None: the platform
        is restored, and nothing of it goes on."""
        with transaction(self._engine) as session:
            if restored(session):
                return None
            self._know_installation(session)
            is_due = (CronJob.applied_version != CronJob.version) | (CronJob.good_until < func.now())
            free = or_(CronJob.in_hand_until.is_(None), CronJob.in_hand_until < func.now())
            due = select(CronJob.id).where(is_due, free).order_by(CronJob.id).limit(BATCH)
            taken = update(CronJob).where(CronJob.id.in_(due.with_for_update(skip_locked=True)))
            jobs = session.scalars(taken.values(in_hand_until=func.now() + IN_HAND).returning(CronJob)).all()
            started = session.scalars(_WAITING, {"in_hand": IN_HAND, "most": BATCH}).all()
            waiting = session.scalars(select(CronRun).where(CronRun.id.in_(started)).order_by(CronRun.id)).all()
            old = (CronRun.state == RunState.RUNNING) & (CronRun.checked_at < func.now() - CHECK_EVERY)
            longest = select(CronRun.id).where(old).order_by(CronRun.checked_at).limit(BATCH)
            checked = update(CronRun).where(CronRun.id.in_(longest.with_for_update(skip_locked=True)))
            unchecked = session.scalars(checked.values(checked_at=func.now()).returning(CronRun)).all()
            return list(jobs), list(waiting), list(unchecked)

    async def _apply(self, job: CronJob) -> None:
        """Bring Temporal's schedule to what the job says now, whatever it was."""
        id = schedule_id(self._ours(), job.id)
        if job.deleted_at is not None:
            await self._remove(id)
            await asyncio.to_thread(self._forget, job)
            return
        plan = await asyncio.to_thread(cron_times.plan, job.schedule, job.time_zone, dt.datetime.now(dt.UTC))
        schedule = _schedule(id, job, plan)
        try:
            await self._client.create_schedule(id, schedule)
        except ScheduleAlreadyRunningError:
            await self._client.get_schedule_handle(id).update(lambda _: ScheduleUpdate(schedule=schedule))
        await asyncio.to_thread(self._note, job, plan.good_until)

    async def _remove(self, id: str) -> None:
        try:
            await self._client.get_schedule_handle(id).delete()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    async def _start(self, run: CronRun) -> None:
        time = CronTime(project_id=run.project_id, job_id=run.job_id, run_id=run.id)
        try:
            await self._client.start_workflow(
                "RunCronJob",
                time,
                id=workflow_id(self._ours(), run),
                task_queue=CONTROL,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                execution_timeout=LONGEST_RUN,
                search_attributes=_attributes(run.project_id, run.job_id),
                static_summary="a run of a cron job, out of turn",
            )
        except WorkflowAlreadyStartedError:
            # It ran and ended without ever claiming its row (terminated by hand, say).
            ended = Failure(code="run_ended", message="its run ended outside Cairn")
            await asyncio.to_thread(self._settle, run, "failed", ended)

    async def _check(self, run: CronRun) -> None:
        """End a row whose run has ended without saying so."""
        try:
            handle = self._client.get_workflow_handle(run.temporal_id or "", run_id=run.run_id)
            status = (await handle.describe()).status
            name = status.name.lower() if status else ""
            if status in (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW):
                return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            name = "unknown"
        failure = Failure(code=f"run_{name}", message=f"its run ended outside Cairn: {name}")
        outcome: Outcome = "cancelled" if name in ("canceled", "terminated") else "failed"
        await asyncio.to_thread(self._settle, run, outcome, failure)

    def _settle(self, run: CronRun, outcome: Outcome, failure: Failure) -> None:
        with transaction(self._engine, run.project_id) as session:
            settle_run(session, run.project_id, run.id, outcome, failure)

    def _note(self, job: CronJob, good_until: dt.datetime | None) -> None:
        """Temporal has this version; one that came meanwhile is looked for at once."""
        values = {"applied_version": job.version, "good_until": good_until, "in_hand_until": None}
        with transaction(self._engine, job.project_id) as session:
            session.execute(update(CronJob).where(CronJob.id == job.id).values(**values))

    def _leave_job(self, job: CronJob) -> None:
        held = (CronJob.id == job.id) & (CronJob.in_hand_until == job.in_hand_until)
        with transaction(self._engine, job.project_id) as session:
            session.execute(update(CronJob).where(held).values(in_hand_until=func.now() + AGAIN))

    def _leave_run(self, run: CronRun) -> None:
        held = (CronRun.id == run.id) & (CronRun.checked_at == run.checked_at) & (CronRun.state == RunState.PENDING)
        with transaction(self._engine, run.project_id) as session:
            session.execute(update(CronRun).where(held).values(checked_at=func.now() + AGAIN))

    def _forget(self, job: CronJob) -> None:
        with transaction(self._engine, job.project_id) as session:
            session.execute(delete(CronJob).where(CronJob.id == job.id))

    def _otherwise(self, listed: dict[str, ScheduleListDescription]) -> tuple[list[str], int] | None:
        with transaction(self._engine) as session:
            if restored(session):
                return None
            ours = prefix(self._know_installation(session))
            columns = (CronJob.id, CronJob.project_id, CronJob.version, CronJob.paused, CronJob.updated_at)
            settled = CronJob.applied_version == CronJob.version
            jobs = {schedule_id(self._ours(), row.id): row for row in session.execute(select(*columns, settled))}
            orphans = [id for id in listed if id.startswith(ours) and id not in jobs]
            young = dt.datetime.now(dt.UTC) - YOUNG
            other = [
                row.id for id, row in jobs.items() if row.updated_at < young and not _is_as_told(row, listed.get(id))
            ]
            for project in {row.project_id for row in jobs.values() if row.id in set(other)}:
                use_project(session, project)
                wrong = (CronJob.project_id == project) & CronJob.id.in_(other)
                session.execute(update(CronJob).where(wrong).values(applied_version=0))
            return orphans, len(other)

    def _know_installation(self, session: Session) -> UUID:
        if self._installation is None:
            self._installation = session.scalars(select(Installation.id)).one()
        return self._installation

    def _ours(self) -> UUID:
        if self._installation is None:
            raise RuntimeError("it is read with the first rows")
        return self._installation


def _is_as_told(row: Any, listed: ScheduleListDescription | None) -> bool:
    if listed is None or listed.schedule is None:
        return False
    return listed.schedule.state.note == _version(row.version) and listed.schedule.state.paused == row.paused


def _version(version: int) -> str:
    """Temporal shows it with the schedule."""
    return f"version {version}"


def _schedule(id: str, job: CronJob, plan: cron_times.Plan) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            "RunCronJob",
            CronTime(project_id=job.project_id, job_id=job.id),
            id=id,
            task_queue=CONTROL,
            execution_timeout=LONGEST_RUN,
            typed_search_attributes=_attributes(job.project_id, job.id, job.name),
            static_summary=f"cron job {job.name}: {job.schedule} {job.time_zone}",
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=plan.every)] if plan.every else [],
            calendars=[_calendar(job, one) for one in plan.calendars],
        ),
        policy=SchedulePolicy(
            overlap=OVERLAP[Overlap(job.overlap)], catchup_window=dt.timedelta(seconds=job.catchup_seconds)
        ),
        state=ScheduleState(note=_version(job.version), paused=job.paused),
    )


def _calendar(job: CronJob, one: cron_times.Calendar) -> ScheduleCalendarSpec:
    return ScheduleCalendarSpec(
        year=[ScheduleRange(one.year)],
        month=[ScheduleRange(one.month)],
        day_of_month=[ScheduleRange(day) for day in one.days],
        hour=[ScheduleRange(hour) for hour in one.hours],
        minute=[ScheduleRange(minute) for minute in one.minutes],
        comment=f"{job.schedule} {job.time_zone}",
    )


def _attributes(project_id: UUID, job_id: UUID, name: str | None = None) -> TypedSearchAttributes:
    pairs = [SearchAttributePair(PROJECT, str(project_id)), SearchAttributePair(RESOURCE, str(job_id))]
    return TypedSearchAttributes([*pairs, *([SearchAttributePair(NAME, name)] if name else [])])
