"""The plans of cache volumes, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from model.errors import EngineRefused, NotReady
from tests.workflows.stage import HOST, Gate, Theatre, fails

CLAIM, SETTLE = "cache_volume.claim", "cache_volume.settle"


@pytest.mark.parametrize(
    ("kind", "step"), [("ClearCacheVolume", "cache_volume.clear"), ("DeprovisionCacheVolume", "cache_volume.remove")]
)
async def test_it_is_done_on_each_host_where_it_is(play: Theatre, kind: str, step: str) -> None:
    play.stage.script[CLAIM].append(fails(NotReady("another works on it")))
    await (await play.start(kind)).result()
    assert play.stage.calls == [CLAIM, CLAIM, step, f"{SETTLE} completed"]
    play.stage.calls.clear()
    play.stage.cached = [HOST] * 3
    await (await play.start(kind)).result()
    assert play.stage.calls == [CLAIM, *[step] * 3, f"{SETTLE} completed"]
    play.stage.calls.clear()
    play.stage.placed = False
    await (await play.start(kind)).result()
    assert play.stage.calls == [CLAIM, f"{SETTLE} completed"]


async def test_hosts_that_did_not_clear_it_are_named_and_the_others_have(play: Theatre) -> None:
    play.stage.cached = [HOST, HOST, "nobody"]
    play.stage.script["cache_volume.clear"].append(fails(EngineRefused("no")))
    handle = await play.start("ClearCacheVolume", deadline_seconds=3)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls == [CLAIM, *["cache_volume.clear"] * 2, f"{SETTLE} failed"]
    (ended,) = play.stage.cleared
    assert ended.failure is not None and ended.failure.step == "cache_volume.clear"
    assert ended.failure.code == "engine_refused"
    assert f"host {HOST}: no; host nobody: cache_volume.clear did not finish in time" in ended.failure.message


async def test_a_clear_that_is_called_off_ends_once_all_hosts_have(play: Theatre) -> None:
    play.stage.cached = [HOST, HOST]
    gate = Gate()
    play.stage.script["cache_volume.clear"].append(gate)
    handle = await play.start("ClearCacheVolume")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls[-1] == f"{SETTLE} cancelled"
    (ended,) = play.stage.cleared
    assert (ended.outcome, ended.failure.code if ended.failure else None) == ("cancelled", "cancelled")


async def test_a_delete_hears_no_cancel(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["cache_volume.remove"].append(gate)
    handle = await play.start("DeprovisionCacheVolume")
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await handle.result()
    assert play.stage.calls[-1] == f"{SETTLE} completed"


@pytest.mark.parametrize("force", [False, True])
async def test_delete_whose_host_does_not_do_it_ends_only_where_it_is_forced(play: Theatre, force: bool) -> None:
    play.stage.script["cache_volume.remove"].append(fails(EngineRefused("no")))
    handle = await play.start("DeprovisionCacheVolume", force=force)
    if force:
        await handle.result()
    else:
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert play.stage.calls[-1] == f"{SETTLE} {'completed' if force else 'failed'}"
