"""Stand-ins for the activities of cron jobs, on the stage of the other plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from activities.cron_schedules import Compared
from model.base import new_id
from model.cron import CronCall, CronEnd, CronTurn
from model.workflows import Failure

if TYPE_CHECKING:
    from tests.workflows.stage import Stage


class CronControl:
    """Of the control queue."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="cron.begin")
    async def begin(self, turn: CronTurn) -> CronCall | None:
        await self._stage.play()
        self._stage.turns.append(turn)
        time, kind = turn.time, self._stage.cron_kind
        if kind is None:
            return None
        return CronCall(
            project_id=time.project_id, job_id=time.job_id, run_id=time.run_id or new_id(), kind=kind, seconds=30
        )

    @activity.defn(name="cron.watch")
    async def watch(self, call: CronCall) -> Failure | None:
        await self._stage.play()
        return self._stage.cron_failure

    @activity.defn(name="cron.settle")
    async def settle(self, end: CronEnd) -> None:
        await self._stage.play(f" {end.outcome}")
        self._stage.cron_ends.append(end)

    @activity.defn(name="cron.compare")
    async def compare(self) -> Compared:
        await self._stage.play()
        return Compared()


class CronTargets:
    """Of the queue of requests to targets."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="cron.request")
    async def request(self, call: CronCall) -> None:
        await self._stage.play()


class CronApi:
    """Of the queue of the APIs."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="cron.act")
    async def act(self, call: CronCall) -> bool:
        await self._stage.play()
        return call.kind == "workflow"
