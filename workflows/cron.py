"""The plans of cron jobs."""

from __future__ import annotations

import asyncio
import datetime as dt
from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError, FailureError

from workflows.options import on_api, on_control, on_cron
from workflows.saga import CANCELLED, call, failure_of, shielded

with workflow.unsafe.imports_passed_through():
    from activities.cron import MOST_WORKFLOW_SECONDS, CronRecords
    from activities.cron_calls import CronActs, CronCalls
    from activities.cron_schedules import CronSchedules
    from model.cron import CronCall, CronEnd, CronTime, CronTurn
    from model.workflows import Failure, Outcome

#: The time of a schedule that a run stands for.
_AT = SearchAttributeKey.for_datetime("TemporalScheduledStartTime")
#: A pass that takes longer has been overtaken by the next.
PASS = timedelta(seconds=60)


@workflow.defn
class RunCronJob:
    """One run of a cron job: started by Temporal at its time, or out of turn."""

    @workflow.run
    async def run(self, time: CronTime) -> None:
        at = workflow.info().typed_search_attributes.get(_AT) if time.run_id is None else None
        turn = CronTurn(time=time, at=_at(at) if time.run_id is None else None)
        begun = await call(CronRecords.begin, turn, "begin", on_control())
        if begun is None:
            return
        failure: Failure | None = None
        try:
            failure = await _reach(begun)
        except (asyncio.CancelledError, FailureError) as error:
            failure = failure_of(error)
        cancelled = failure is not None and workflow.cancellation_reason() is not None
        outcome: Outcome = "cancelled" if cancelled else "completed" if failure is None else "failed"
        end = CronEnd(call=begun, outcome=outcome, failure=CANCELLED if cancelled else failure)
        await shielded(call(CronRecords.settle, end, "settle", on_control()))
        if cancelled:
            raise asyncio.CancelledError
        if failure is not None:
            raise ApplicationError(failure.message, type=failure.code, non_retryable=True)


async def _reach(begun: CronCall) -> Failure | None:
    """Call the target, and wait for what it started."""
    within = timedelta(seconds=begun.seconds)
    if begun.kind == "http":
        await workflow.execute_activity_method(CronCalls.request, begun, **on_cron(within))
        return None
    if not await workflow.execute_activity_method(CronActs.act, begun, **on_api(within)):
        return None
    if workflow.cancellation_reason() is not None:  # which an activity that ends normally swallows
        raise asyncio.CancelledError
    return await call(CronRecords.watch, begun, "watch", on_control(timedelta(seconds=MOST_WORKFLOW_SECONDS)))


def _at(time: dt.datetime | None) -> dt.datetime:
    return time if time is not None else workflow.info().start_time.replace(microsecond=0)


@workflow.defn
class CompareCronJobs:
    """Started by its schedule."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(CronSchedules.compare, **on_control(PASS))


PLANS = [RunCronJob, CompareCronJobs]
