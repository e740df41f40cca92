"""The plans of work sessions, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from model.errors import EngineRefused, WorkspaceMoved
from tests.workflows.stage import Gate, Theatre, fails

LAUNCH = ["instance.place", "image.ensure", "instance.create", "instance.start", "instance.settle completed"]
DELETE = ["instance.claim", "instance.delete generation 1", "instance.settle completed"]
BACK = ["undo session.remove", *DELETE, "undo session.discard"]


async def test_a_new_session_is_files_and_a_launch(play: Theatre) -> None:
    await (await play.start("InitSession")).result()
    begun = ["session.begin", "session.prepare", "session.launch"]
    assert play.stage.calls == [*begun, *LAUNCH, "session.settle completed"]


async def test_a_claimed_sandbox_gets_the_files_and_is_seen_to_run(play: Theatre) -> None:
    play.stage.warm = True
    await (await play.start("InitSession")).result()
    assert play.stage.calls == ["session.begin", "session.join", "instance.start", "session.settle completed"]


async def test_a_claimed_sandbox_that_cannot_have_them_goes(play: Theatre) -> None:
    play.stage.warm = True
    play.stage.script["session.join"].append(fails(EngineRefused("no")))
    with pytest.raises(WorkflowFailureError):
        await (await play.start("InitSession")).result()
    assert play.stage.calls == ["session.begin", "session.join", *BACK, "session.settle failed"]


@pytest.mark.parametrize("step", ["session.prepare", "session.launch", "instance.create", "instance.start"])
async def test_what_fails_leaves_neither_sandbox_nor_files(play: Theatre, step: str) -> None:
    play.stage.script[step].append(fails(EngineRefused("no")))
    with pytest.raises(WorkflowFailureError):
        await (await play.start("InitSession")).result()
    assert play.stage.calls[-6:] == [*BACK, "session.settle failed"]
    failure = play.stage.sessions_ended[0].failure
    assert failure is not None and (failure.code, failure.message) == ("engine_refused", "no")


@pytest.mark.parametrize(
    ("warm", "step"),
    [
        *((False, step) for step in ("session.begin", "session.prepare", "instance.start")),
        *((True, step) for step in ("session.begin", "session.join", "instance.start")),
    ],
)
async def test_cancelled_anywhere_both_go(play: Theatre, warm: bool, step: str) -> None:
    play.stage.warm = warm
    gate = Gate()
    play.stage.script[step].append(gate)
    handle = await play.start("InitSession")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls[-6:] == [*BACK, "session.settle cancelled"]


async def test_files_go_after_the_sandbox_whoever_cancels(play: Theatre) -> None:
    gate = Gate(swallow=True)
    play.stage.script["session.discard"].append(gate)
    handle = await play.start("DeprovisionSession")
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await handle.result()
    assert play.stage.calls == ["session.remove", *DELETE, "session.discard", "session.settle completed"]


async def test_forced_a_host_that_refuses_is_not_waited_for(play: Theatre) -> None:
    play.stage.script["session.discard"] += [fails(EngineRefused("no")), fails(EngineRefused("no"))]
    await (await play.start("DeprovisionSession", force=True)).result()
    assert play.stage.calls[-2:] == ["session.discard", "session.settle completed"]
    with pytest.raises(WorkflowFailureError):
        await (await play.start("DeprovisionSession")).result()


COMMIT = ["commit.begin", "commit.write"]


async def test_a_commit_is_written_then_the_workspace_s_then_its_branch_s(play: Theatre) -> None:
    await (await play.start("CommitSession")).result()
    done = [*COMMIT, "commit.advance", "commit.publish", "session.settle completed"]
    assert play.stage.calls == done
    # Once it is the workspace's it stays that, whatever becomes of the branch, and whoever calls off.
    play.stage.calls.clear()
    play.stage.script["commit.publish"].append(fails(EngineRefused("no")))
    gate = Gate(swallow=True)
    play.stage.script["commit.advance"].append(gate)
    handle = await play.start("CommitSession")
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await handle.result()
    assert play.stage.calls == done


@pytest.mark.parametrize("step", ["commit.write", "commit.advance"])
async def test_a_commit_that_fails_leaves_nothing_and_says_why(play: Theatre, step: str) -> None:
    play.stage.script[step].append(fails(WorkspaceMoved("at another")))
    with pytest.raises(WorkflowFailureError):
        await (await play.start("CommitSession")).result()
    assert play.stage.calls[-2:] == ["undo commit.discard", "session.settle failed"]
    failure = play.stage.sessions_ended[0].failure
    assert failure is not None and (failure.code, failure.message) == ("workspace_moved", "at another")


async def test_a_commit_that_is_cancelled_or_of_nothing_makes_none(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["commit.write"].append(gate)
    handle = await play.start("CommitSession")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == [*COMMIT, "undo commit.discard", "session.settle cancelled"]
    play.stage.calls.clear()
    play.stage.placed = False
    await (await play.start("CommitSession")).result()
    assert play.stage.calls == [*COMMIT, "session.settle completed"]


async def test_a_sandbox_that_is_so_already_is_left_alone(play: Theatre) -> None:
    play.stage.placed = False
    await (await play.start("StopSession")).result()
    assert play.stage.calls == ["session.change", "session.settle completed"]
