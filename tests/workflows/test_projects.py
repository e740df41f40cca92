"""The plan of a project's end."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from activities.rounds import Emptying
from model.errors import EngineRefused
from tests.workflows.stage import Gate, Theatre, fails, order

KIND = "DeprovisionProject"


def deletions(count: int) -> Emptying:
    return Emptying(deletions=[order("DeprovisionInstance") for _ in range(count)])


async def test_everything_is_deleted_round_by_round_and_then_the_project(play: Theatre) -> None:
    image = Emptying(deletions=[order("DeleteImage", resource_type="image")])
    play.stage.emptying = [deletions(3), Emptying(busy=1), image, Emptying(), deletions(1)]
    play.stage.forgotten = [False]  # something came while it was looked through
    await (await play.start(KIND, resource_type="project")).result()
    assert play.stage.calls.count("instance.delete generation 1") == 4
    assert play.stage.calls.count("image.discard") == 1
    assert play.stage.calls[-2:] == ["project.forget", "project.settle completed"]
    assert play.stage.calls.count("project.forget") == 2


async def test_what_cannot_be_deleted_is_named_and_the_project_stays(play: Theatre) -> None:
    play.stage.emptying = [deletions(2), Emptying(stuck=["web"], left=1)]
    play.stage.script["instance.delete"].append(fails(EngineRefused("no")))
    with pytest.raises(WorkflowFailureError):
        await (await play.start(KIND, resource_type="project")).result()
    (end,) = play.stage.projects_ended
    assert end.failure is not None and end.failure.code == "not_emptied" and "web" in end.failure.message
    assert "project.forget" not in play.stage.calls


async def test_cancel_does_not_stop_it(play: Theatre) -> None:
    gate = Gate(swallow=True)
    play.stage.script["project.forget"].append(gate)
    handle = await play.start(KIND, resource_type="project")
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await handle.result()
    assert play.stage.calls[-1] == "project.settle completed"


async def test_long_one_goes_on_in_a_new_run(play: Theatre) -> None:
    play.stage.emptying = [deletions(6) for _ in range(8)]
    first = await play.start(KIND, resource_type="project", deadline_seconds=600)
    await play.client.get_workflow_handle(first.id).result()
    assert play.stage.calls.count("instance.delete generation 1") == 48
    (end,) = play.stage.projects_ended
    assert end.order.first_run_id == first.first_execution_run_id


async def test_user_goes_after_the_projects(play: Theatre) -> None:
    gone = [Emptying(deletions=[order("DeprovisionProject", resource_type="project")]) for _ in range(2)]
    play.stage.leaving = [gone[0], Emptying(busy=1), gone[1]]
    await (await play.start("DeprovisionUser", resource_type="user")).result()
    calls = [call for call in play.stage.calls if not call.startswith("project.next")]
    assert calls == [
        *("user.next", "project.forget", "project.settle completed", "user.next", "user.next"),
        *("project.forget", "project.settle completed", "user.next", "user.forget", "user.settle completed"),
    ]


async def test_user_whose_projects_cannot_be_deleted_stays(play: Theatre) -> None:
    play.stage.leaving = [Emptying(stuck=["project 1"], left=1)]
    with pytest.raises(WorkflowFailureError):
        await (await play.start("DeprovisionUser", resource_type="user")).result()
    (end,) = play.stage.users_ended
    assert end.failure is not None and end.failure.code == "not_emptied" and "project 1" in end.failure.message
    assert "user.forget" not in play.stage.calls
