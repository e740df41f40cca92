"""The plans of workspaces, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from model.errors import EngineRefused, FetchFailed, NoCapacity, NotReady
from tests.workflows.stage import Gate, Theatre, fails

BRING = ["workspace.claim", "workspace.place", "workspace.bring"]


@pytest.mark.parametrize("kind", ["InitWorkspace", "SyncWorkspace"])
async def test_it_is_placed_and_brought_and_what_came_is_settled(play: Theatre, kind: str) -> None:
    await (await play.start(kind)).result()
    assert play.stage.calls == [*BRING, "workspace.settle completed"]
    facts = play.stage.fetched[0].facts
    assert facts is not None
    assert (facts.ref, facts.size_bytes) == ("main", 7)


async def test_first_fetch_that_fails_leaves_nothing_and_says_why(play: Theatre) -> None:
    play.stage.script["workspace.bring"].append(fails(FetchFailed("no such repository")))
    handle = await play.start("InitWorkspace")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == [*BRING, "undo workspace.remove", "workspace.settle failed"]
    failure = play.stage.fetched[0].failure
    assert failure is not None
    assert (failure.code, failure.message) == ("fetch_failed", "no such repository")
    assert play.stage.fetched[0].facts is None


async def test_sync_that_fails_removes_nothing(play: Theatre) -> None:
    play.stage.script["workspace.bring"].append(fails(FetchFailed("no such repository")))
    handle = await play.start("SyncWorkspace")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == [*BRING, "workspace.settle failed"]


async def test_cancelled_while_it_fetches_nothing_is_left(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["workspace.bring"].append(gate)
    handle = await play.start("InitWorkspace")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == [*BRING, "undo workspace.remove", "workspace.settle cancelled"]


async def test_where_no_host_can_hold_it_none_is_asked(play: Theatre) -> None:
    play.stage.script["workspace.place"] += [fails(NotReady("silent")), fails(NoCapacity("none"))]
    handle = await play.start("InitWorkspace")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == ["workspace.claim", *["workspace.place"] * 2, "workspace.settle failed"]


async def test_delete_removes_what_is_somewhere(play: Theatre) -> None:
    await (await play.start("DeprovisionWorkspace")).result()
    assert play.stage.calls == ["workspace.claim", "workspace.place", "workspace.remove", "workspace.settle completed"]
    play.stage.calls.clear()
    play.stage.placed = False
    await (await play.start("DeprovisionWorkspace")).result()
    assert play.stage.calls == ["workspace.claim", "workspace.place", "workspace.settle completed"]


@pytest.mark.parametrize("force", [False, True])
async def test_delete_whose_host_does_not_do_it_ends_only_where_it_is_forced(play: Theatre, force: bool) -> None:
    play.stage.script["workspace.remove"].append(fails(EngineRefused("no")))
    handle = await play.start("DeprovisionWorkspace", force=force)
    if force:
        await handle.result()
    else:
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert play.stage.calls[-1] == f"workspace.settle {'completed' if force else 'failed'}"
