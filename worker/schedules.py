"""The system work that Temporal starts by the clock: all of it, declared in one place."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleListActionStartWorkflow,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode

from activities.runs import CONTROL
from model.settings import Settings

#: Id of a schedule → the workflow that it starts.
WORK: Mapping[str, str] = {"tick": "Tick", "purge": "Purge", "quotas": "CompareQuotas", "cron": "CompareCronJobs"}


async def declare(client: Client, settings: Settings) -> None:
    """Create every schedule, or bring it up to date with the settings. Raises RPCError."""
    every = {
        "tick": settings.tick_seconds,
        "purge": settings.purge_interval,
        "quotas": settings.quota_interval,
        "cron": settings.cron_interval,
    }
    for id, workflow in WORK.items():
        action = ScheduleActionStartWorkflow(workflow, id=id, task_queue=CONTROL)
        await _declare(client, id, action, timedelta(seconds=every[id]))
    await _forget_old_schedules(client)


async def missing(client: Client) -> list[str]:
    """Those that are not there. Raises RPCError."""
    absent = []
    for id in WORK:
        try:
            await client.get_schedule_handle(id).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            absent.append(id)
    return absent


async def _forget_old_schedules(client: Client) -> None:
    """0.1 had one for each host; the tick starts what is needed."""
    async for schedule in await client.list_schedules():
        action = schedule.schedule.action if schedule.schedule else None
        if isinstance(action, ScheduleListActionStartWorkflow) and action.workflow == "ReconcileHost":
            await client.get_schedule_handle(schedule.id).delete()


async def _declare(client: Client, id: str, action: ScheduleActionStartWorkflow, every: timedelta) -> None:
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        # A pass that was missed is not made up for, and two never run at once.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=10)),
    )
    try:
        await client.create_schedule(id, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(id).update(lambda _: ScheduleUpdate(schedule=schedule))
