"""The plans of hosts: drains and their moves."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from activities.drains import Round
from model.errors import EngineRefused
from tests.services import eventually
from tests.workflows.stage import Gate, Theatre, fails, order


def moves(count: int) -> Round:
    return Round(moves=[order("MoveInstance") for _ in range(count)], busy=0, stuck=[])


async def test_drain_carries_out_its_moves_round_by_round(play: Theatre) -> None:
    play.stage.rounds = [moves(3), Round(moves=[], busy=1, stuck=[]), moves(1)]
    await play.run("DrainHost", resource_type="host")
    assert play.stage.calls.count("drain.next") == 4
    assert play.stage.calls.count("instance.switch") == 4
    assert play.stage.drained[-1].outcome == "completed"


async def test_drain_goes_on_after_a_move_that_failed_and_says_what_is_left(play: Theatre) -> None:
    play.stage.rounds = [moves(2), Round(moves=[], busy=0, stuck=["web"])]
    play.stage.script["instance.create"].append(fails(EngineRefused("no")))
    handle = await play.start("DrainHost", resource_type="host")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    (end,) = play.stage.drained
    assert (end.outcome, end.failure and end.failure.code) == ("failed", "not_drained")
    assert end.failure is not None
    assert "web" in end.failure.message
    assert [settled.outcome for settled in play.stage.settled].count("completed") == 1


async def test_long_drain_goes_on_in_a_new_run_with_what_is_left_of_its_time(play: Theatre) -> None:
    play.stage.rounds = [moves(4) for _ in range(8)]
    first = await play.start("DrainHost", resource_type="host", deadline_seconds=600)
    await play.client.get_workflow_handle(first.id).result()
    last = await play.client.get_workflow_handle(first.id).describe()
    assert last.run_id != first.first_execution_run_id
    assert play.stage.calls.count("instance.switch") == 32
    assert [end.outcome for end in play.stage.drained] == ["completed"]
    order = play.stage.drained[0].order
    assert order.first_run_id == first.first_execution_run_id
    assert order.deadline_seconds < 600


async def test_long_drain_hears_a_cancel_in_its_new_run(play: Theatre) -> None:
    play.stage.rounds = [moves(4) for _ in range(8)]
    handle = await play.start("DrainHost", resource_type="host")

    async def went_on() -> bool:
        return (await play.client.get_workflow_handle(handle.id).describe()).run_id != handle.first_execution_run_id

    assert await eventually(went_on, 20)
    await play.client.get_workflow_handle(handle.id).cancel()
    assert await eventually(lambda: play.stage.drained)
    assert [end.outcome for end in play.stage.drained] == ["cancelled"]


async def test_drain_ends_at_its_deadline_though_something_else_still_works_there(play: Theatre) -> None:
    play.stage.rounds = [Round(moves=[], busy=1, stuck=[]) for _ in range(9)]
    await play.start("DrainHost", resource_type="host", deadline_seconds=8)
    assert await eventually(lambda: play.stage.drained, 20)
    (end,) = play.stage.drained
    assert (end.outcome, end.failure and end.failure.code) == ("failed", "deadline_exceeded")
    assert play.stage.calls.count("drain.next") <= 4, "less and less often"


async def test_drain_that_is_cancelled_undoes_the_moves_under_way(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["instance.start"].append(gate)
    play.stage.rounds = [moves(1), moves(1)]
    handle = await play.start("DrainHost", resource_type="host")
    await gate.reached.wait()
    await handle.cancel()
    assert await eventually(lambda: play.stage.drained)
    assert play.stage.drained[-1].outcome == "cancelled"
    assert [settled.outcome for settled in play.stage.settled] == ["cancelled"]
    assert play.stage.calls.count("drain.next") == 1
