"""The plan of a cron job's run."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleSpec,
    ScheduleState,
    WorkflowFailureError,
    WorkflowHandle,
)

from activities.cron_calls import CallFailed
from activities.runs import CONTROL
from model.base import new_id
from model.cron import CronTime
from model.errors import NotReady, Unavailable
from model.workflows import Failure
from tests.services import eventually
from tests.workflows.stage import Gate, Theatre, fails

MINE = ["cron.begin", "cron.request", "cron.settle completed"]


def time_of() -> CronTime:
    return CronTime(project_id=new_id(), job_id=new_id(), run_id=new_id())


async def start(play: Theatre, time: CronTime | None = None) -> WorkflowHandle[object, None]:
    return await play.client.start_workflow("RunCronJob", time or time_of(), id=str(new_id()), task_queue=CONTROL)


async def test_a_request_is_made_and_what_came_of_it_is_written_down(play: Theatre) -> None:
    play.stage.script["cron.begin"].append(fails(NotReady("restored")))
    play.stage.script["cron.request"].append(fails(Unavailable("away")))
    await (await start(play)).result()
    assert play.stage.calls == ["cron.begin", "cron.begin", "cron.request", *MINE[1:]]


async def test_the_schedules_own_time_is_that_of_the_run(play: Theatre) -> None:
    time = CronTime(project_id=new_id(), job_id=new_id())
    id = f"cron-{time.job_id}"
    action = ScheduleActionStartWorkflow("RunCronJob", time, id=id, task_queue=CONTROL)
    spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(every=dt.timedelta(seconds=1))])
    handle = await play.client.create_schedule(id, Schedule(action=action, spec=spec, state=ScheduleState()))
    try:
        assert await eventually(lambda: len(play.stage.turns) > 2)
    finally:
        await handle.delete()
    await asyncio.sleep(0.2)
    times = [turn.at for turn in play.stage.turns if turn.at is not None]
    assert len(times) == len(set(times)) == len(play.stage.turns)
    assert all(at.microsecond == 0 and at.tzinfo is not None for at in times)
    assert abs((times[-1] - dt.datetime.now(dt.UTC)).total_seconds()) < 10


async def test_what_has_had_its_run_is_left_alone(play: Theatre) -> None:
    play.stage.cron_kind = None
    await (await start(play)).result()
    assert play.stage.calls == ["cron.begin"]


async def test_a_refusal_fails_the_run(play: Theatre) -> None:
    play.stage.script["cron.request"].append(fails(CallFailed("it answered 404")))
    with pytest.raises(WorkflowFailureError):
        await (await start(play)).result()
    (end,) = play.stage.cron_ends
    assert (end.outcome, end.failure and end.failure.code) == ("failed", "call_failed")


async def test_a_run_ends_as_the_workflow_that_it_started(play: Theatre) -> None:
    play.stage.cron_kind = "workflow"
    play.stage.script["cron.watch"] += [fails(NotReady("it runs"))] * 2
    await (await start(play)).result()
    assert play.stage.calls == ["cron.begin", "cron.act", *["cron.watch"] * 3, "cron.settle completed"]
    play.stage.cron_failure = Failure(code="no_capacity", message="full")
    with pytest.raises(WorkflowFailureError):
        await (await start(play)).result()
    assert play.stage.cron_ends[-1].failure == play.stage.cron_failure


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(
    ("kind", "step"), [("http", "cron.request"), ("workflow", "cron.act"), ("workflow", "cron.watch")]
)
async def test_a_cancel_ends_the_run_as_cancelled(play: Theatre, kind: str, step: str, swallow: bool) -> None:
    play.stage.cron_kind = kind  # type: ignore[assignment]
    gate = Gate(swallow=swallow)
    play.stage.script[step].append(gate)
    handle = await start(play)
    await gate.reached.wait()
    await handle.cancel()
    if swallow and step != "cron.act":  # it has done what it was to do
        await handle.result()
        assert play.stage.cron_ends[-1].outcome == "completed"
        return
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.cron_ends[-1].outcome == "cancelled"
    assert play.stage.calls[-1] == "cron.settle cancelled"
