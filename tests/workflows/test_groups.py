"""The plans of groups."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import WorkflowFailureError

from activities.groups import GroupRound
from activities.runs import start
from model.errors import EngineRefused
from model.workflows import Failure
from tests.services import eventually
from tests.workflows.stage import Gate, Theatre, fails, order
from workflows.groups import LOOK, RELEASES


def launches(count: int) -> GroupRound:
    return GroupRound(launches=[order("ProvisionInstance") for _ in range(count)])


def removals(count: int) -> GroupRound:
    return GroupRound(removals=[order("DeprovisionInstance") for _ in range(count)])


async def test_members_are_launched_and_deleted_once_they_are_released(play: Theatre) -> None:
    first = launches(5)
    again = GroupRound(launches=first.launches[3:])  # those that had not begun, it seemed
    play.stage.group_rounds = [first, again, GroupRound(waits=True), removals(2)]
    await (await play.start("ScaleGroup", resource_type="group")).result()
    assert play.stage.calls.count("instance.settle completed") == 7
    assert play.stage.calls.count("instance.create") == 5
    calls = play.stage.calls
    assert calls.index("group.release 2") < calls.index("instance.delete generation 1")
    assert calls[-2:] == ["group.next", "group.settle completed"]


async def test_members_that_go_leave_their_balancers_first_and_go_when_that_fails_again_and_again(
    play: Theatre,
) -> None:
    play.stage.group_rounds = [removals(1)]
    play.stage.releases = [[order("UpdateLoadBalancer")] for _ in range(RELEASES + 1)]
    await (await play.start("ScaleGroup", resource_type="group")).result()
    calls = play.stage.calls
    assert calls.count("group.release 1") == RELEASES == calls.count("lb.settle completed")
    last = len(calls) - 1 - calls[::-1].index("lb.settle completed")
    assert last < calls.index("instance.claim") < calls.index("instance.delete generation 1")


async def test_a_change_of_a_balancer_that_somebody_else_began_is_no_try(play: Theatre) -> None:
    change, slow = order("UpdateLoadBalancer"), Gate()
    play.stage.script["lb.configure"].append(slow)
    begun = await start(play.client, change)
    await slow.reached.wait()
    play.stage.group_rounds = [removals(1)]
    play.stage.releases = [[change] for _ in range(RELEASES + 1)]
    await (await play.start("ScaleGroup", resource_type="group")).result()
    assert play.stage.calls.count("group.release 1") == RELEASES + 2
    slow.opened.set()
    await begun.result()


async def test_more_are_launched_before_the_slowest_is_there(play: Theatre) -> None:
    slow = Gate()
    play.stage.script["instance.start"].append(slow)
    play.stage.group_rounds = [launches(6), launches(1)]
    handle = await play.start("ScaleGroup", resource_type="group")
    await slow.reached.wait()
    assert await eventually(lambda: play.stage.calls.count("instance.settle completed") == 6)
    slow.opened.set()
    await handle.result()
    assert play.stage.calls.count("instance.settle completed") == 7


async def test_others_are_looked_at_while_one_drains(play: Theatre) -> None:
    drains = Gate(swallow=True)
    play.stage.script["group.release"].append(drains)
    first = GroupRound(launches=launches(1).launches, removals=removals(1).removals)
    play.stage.group_rounds = [first, launches(1)]
    handle = await play.start("ScaleGroup", resource_type="group", deadline_seconds=600)
    await drains.reached.wait()
    assert await eventually(lambda: play.stage.calls.count("instance.settle completed") == 2, 3 * LOOK.seconds)
    drains.opened.set()
    await handle.result()
    assert play.stage.calls.count("instance.delete generation 1") == 1


async def test_called_off_it_leaves_what_is_under_way_alone(play: Theatre) -> None:
    slow = Gate()
    play.stage.script["instance.start"].append(slow)
    play.stage.group_rounds = [launches(1)]
    handle = await play.start("ScaleGroup", resource_type="group")
    await slow.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), 10)
    (end,) = play.stage.groups_ended
    assert end.outcome == "cancelled"
    slow.opened.set()
    assert await eventually(lambda: "instance.settle completed" in play.stage.calls)
    assert not [call for call in play.stage.calls if call.startswith("undo")]


async def test_deletion_is_not_called_off(play: Theatre) -> None:
    gate = Gate(swallow=True)
    play.stage.script["group.release"].append(gate)
    play.stage.group_rounds = [removals(2)]
    handle = await play.start("DeprovisionGroup", resource_type="group")
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await handle.result()
    assert play.stage.calls.count("instance.delete generation 1") == 2
    assert play.stage.calls[-1] == "group.settle completed"


async def test_failure_that_the_rows_show_is_that_of_the_run(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(EngineRefused("no")))
    why = Failure(code="image_not_found", message="went back")
    play.stage.group_rounds = [launches(2), removals(1), GroupRound(failure=why)]
    with pytest.raises(WorkflowFailureError):
        await (await play.start("ScaleGroup", resource_type="group")).result()
    (end,) = play.stage.groups_ended
    assert (end.outcome, end.failure and end.failure.code) == ("failed", "image_not_found")


async def test_long_one_goes_on_in_a_new_run_with_what_is_under_way(play: Theatre) -> None:
    play.stage.group_rounds = [launches(6) for _ in range(6)]
    first = await play.start("ScaleGroup", resource_type="group", deadline_seconds=600)
    await play.client.get_workflow_handle(first.id).result()
    assert await eventually(lambda: play.stage.calls.count("instance.settle completed") == 36, 60), play.stage.calls
    (end,) = play.stage.groups_ended
    assert end.order.first_run_id == first.first_execution_run_id
