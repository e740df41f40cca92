"""The plan of a turn, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from model.errors import AgentFailed, AgentUnavailable
from tests.workflows.stage import Gate, Theatre, fails


async def test_a_turn_is_delivered_until_it_is_answered(play: Theatre) -> None:
    play.stage.script["chat.deliver"] += [fails(AgentUnavailable("it broke off"))] * 2
    await (await play.start("ChatTurn")).result()
    assert play.stage.calls == ["chat.begin", *["chat.deliver"] * 3, "session.settle completed"]


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_an_agent_is_told_that_nobody_waits_any_more_and_need_not_hear_it(play: Theatre, how: str) -> None:
    gate = Gate()
    play.stage.script["chat.deliver"].append(gate if how == "cancelled" else fails(AgentFailed("no")))
    play.stage.always["undo chat.cancel"] = fails(AgentFailed("it has gone"))
    handle = await play.start("ChatTurn")
    if how == "cancelled":
        await gate.reached.wait()
        await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == ["chat.begin", "chat.deliver", "undo chat.cancel", f"session.settle {how}"]
    failure = play.stage.sessions_ended[0].failure
    assert failure is not None and (failure.code, failure.message) == (
        ("agent_failed", "no") if how == "failed" else ("cancelled", "the workflow was cancelled")
    )
