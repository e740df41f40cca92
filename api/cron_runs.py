"""``/v1/cron/jobs/{id}/runs``: what became of each time; and runs out of turn."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.cron import CALL, find
from api.cron_schemas import Backfill, Backfilled, RunView, RunWithOutput
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.paging import Paging, page_of
from model import cron_times
from model.base import new_id
from model.cron import MOST_BACKFILLED, OPEN, CronRun, RunState, idempotency_key
from model.errors import NotFound, QuotaExceeded, ValidationFailed

router = APIRouter(prefix="/v1/cron/jobs/{job_id}", tags=["cron"], responses=RESPONSES)

#: Of one job, runs out of turn that have not ended.
MOST_OPEN = 10
_listed = [column for column in CronRun.__table__.columns if column.name != "output"]


@router.post("/trigger", status_code=202, responses=also(429), response_model=Envelope[RunView])
async def trigger(
    request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:run")], body: Nothing | None = None
) -> Response:
    """Run it now, once, beside whatever runs already; also while it is paused."""
    job = await find(caller, job_id, lock=True)
    run_id = new_id()
    if answered := await Acceptance(request, caller).answered_before(run_id, None):
        return answer(request, _view(await _find(caller, job_id, answered.resource_id)), 202)
    mine = (CronRun.project_id == caller.project_id) & (CronRun.job_id == job_id)
    is_open = CronRun.manual & CronRun.state.in_(OPEN)
    if (await caller.execute(select(func.count()).select_from(CronRun).where(mine, is_open))).scalar_one() >= MOST_OPEN:
        raise QuotaExceeded(f"cron job {job.name} has {MOST_OPEN} runs out of turn that have not ended", runs=MOST_OPEN)
    values = {"id": run_id, "project_id": caller.project_id, "job_id": job_id, "scheduled_at": func.now()}
    row = (await caller.execute(insert(CronRun).values(manual=True, **values).returning(*_listed))).one()
    caller.changed("cron_job", job_id, after={"name": job.name, "triggered": str(run_id)})
    await caller.execute(CALL)
    return answer(request, _view(row), 202)


@router.post("/backfill", status_code=202, response_model=Envelope[Backfilled])
async def backfill(
    request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:run")], body: Backfill
) -> Response:
    """Make up for times that are past: those of which there is no run. One after the other, oldest first; with
    `overlap: allow_all` several at once. The job may be paused. Repeated with its Idempotency-Key it adds nothing:
    `runs` is then how many of its times have one."""
    job = await find(caller, job_id, lock=True)
    answered = await Acceptance(request, caller).answered_before(job_id, body.model_dump(mode="json"))
    if answered:
        return answer(request, {"runs": await _count(caller, job_id, body)}, 202)
    found: list[dt.datetime] = []
    # The first second too: a time is after that before it.
    for time in cron_times.times(job.schedule, job.time_zone, body.start - dt.timedelta(microseconds=1)):
        if time > body.end:
            break
        if len(found) == MOST_BACKFILLED:
            said = f"these are more than {MOST_BACKFILLED} times: ask for fewer"
            raise ValidationFailed(f"end: {said}", fields=[{"field": "end", "message": said}])
        found.append(time)
    added = 0
    if found:
        rows = [
            {"id": new_id(), "project_id": caller.project_id, "job_id": job_id, "scheduled_at": time} for time in found
        ]
        made = upsert(CronRun).values(rows).on_conflict_do_nothing().returning(CronRun.id)
        added = len((await caller.execute(made)).all())
    told = {"name": job.name, "start": body.start.isoformat(), "end": body.end.isoformat(), "runs": added}
    caller.changed("cron_job", job_id, after=told)
    await caller.execute(CALL)
    return answer(request, {"runs": added}, 202)


async def _count(caller: Caller, job_id: UUID, body: Backfill) -> int:
    """Of its times, those of which there is a run."""
    within = CronRun.scheduled_at.between(body.start, body.end)
    mine = (CronRun.project_id == caller.project_id) & (CronRun.job_id == job_id) & ~CronRun.manual
    return int((await caller.execute(select(func.count()).select_from(CronRun).where(mine, within))).scalar_one())


@router.get("/runs", response_model=Envelope[list[RunView]])
async def index(
    request: Request,
    job_id: UUID,
    caller: Annotated[Caller, may("cron:read")],
    page: Paging,
    state: Annotated[RunState | None, Query()] = None,
) -> Response:
    """What became of its times, the newest run first; of one job the last 1,000 are kept, for 30 days."""
    await find(caller, job_id)
    query = select(*_listed).where(CronRun.project_id == caller.project_id, CronRun.job_id == job_id)
    if state is not None:
        query = query.where(CronRun.state == state)
    return await page_of(request, caller, query, CronRun.__table__.c.id, page, _view)


@router.get("/runs/{run_id}", response_model=Envelope[RunWithOutput])
async def show(request: Request, job_id: UUID, run_id: UUID, caller: Annotated[Caller, may("cron:read")]) -> Response:
    """One run, with the first 64 KiB of what was answered or written."""
    await find(caller, job_id)
    row = await _find(caller, job_id, run_id)
    return answer(request, _view(row) | {"output": row.output})


async def _find(caller: Caller, job_id: UUID, run_id: UUID) -> Row[Any]:
    mine = (CronRun.project_id == caller.project_id) & (CronRun.job_id == job_id)
    row = (await caller.execute(select(CronRun.__table__).where(mine, CronRun.id == run_id))).one_or_none()
    if row is None:
        raise NotFound(f"there is no run {run_id} of cron job {job_id}")
    return row


def _view(row: Row[Any]) -> dict[str, Any]:
    run: Any = row
    computed = {"idempotency_key": idempotency_key(run)}
    return {name: getattr(row, name) for name in RunView.model_fields if name not in computed} | computed
