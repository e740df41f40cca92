"""The system's own plans."""

from __future__ import annotations

from typing import Any

from activities.audit import Sealed
from activities.purge import Purged
from activities.reencryption import Reencrypted
from activities.runs import CONTROL
from model.base import new_id
from model.errors import EngineUnavailable
from model.instances import OwnedMachine
from tests.workflows.stage import HOST, Theatre, fails


async def run(play: Theatre, name: str, *args: Any) -> None:
    await play.client.execute_workflow(name, args=list(args), id=str(new_id()), task_queue=CONTROL)


def machine() -> OwnedMachine:
    return OwnedMachine(engine_id="e", id=new_id(), generation=1, running=False)


async def test_tick_sweeps(play: Theatre) -> None:
    await run(play, "Tick")
    assert play.stage.calls == ["tick.sweep"]


async def test_samples_are_made_coarser_though_the_database_was_away(play: Theatre) -> None:
    play.stage.script["samples.coarsen"].append(fails(ConnectionError("database away")))
    await run(play, "CoarsenSamples")
    assert play.stage.calls == ["samples.coarsen"] * 2


async def test_a_purge_goes_on_until_it_is_through(play: Theatre) -> None:
    play.stage.purged = [Purged(events=1000, more=True)] * 2
    await run(play, "Purge")
    assert play.stage.calls == ["rows.purge"] * 3


async def test_reencryption_goes_on_until_it_is_through(play: Theatre) -> None:
    play.stage.reencrypted = [Reencrypted(versions=200, more=True)]
    play.stage.script["secrets.reencrypt"].append(fails(ConnectionError("database away")))
    await run(play, "ReencryptSecrets")
    assert play.stage.calls == ["secrets.reencrypt"] * 3


async def test_a_purge_that_has_no_end_is_left_to_the_next(play: Theatre) -> None:
    play.stage.purged = [Purged(more=True)] * 100
    await run(play, "Purge")
    assert play.stage.calls == ["rows.purge"] * 20


async def test_sealing_goes_on_until_all_is_linked(play: Theatre) -> None:
    play.stage.script["audit.seal"].append(fails(ConnectionError("database away")))
    play.stage.sealed = [Sealed(links=20, more=True)] * 2
    await run(play, "SealAudit")
    assert play.stage.calls == ["audit.seal"] * 4


async def test_quotas_are_compared_though_the_database_was_away(play: Theatre) -> None:
    play.stage.script["quota.compare"].append(fails(ConnectionError("database away")))
    await run(play, "CompareQuotas")
    assert play.stage.calls == ["quota.compare"] * 2


async def test_inventory_without_leftovers_is_one_look(play: Theatre) -> None:
    await run(play, "ReconcileHost", HOST)
    assert play.stage.calls == ["host.inventory removing 0", "host.reconcile 0"]


async def test_leftovers_are_removed_and_seen_to_be_gone(play: Theatre) -> None:
    play.stage.leftovers = [[machine(), machine()], [machine()]]
    await run(play, "ReconcileHost", HOST)
    assert play.stage.calls == [
        "host.inventory removing 0",
        "host.reconcile 0",
        "host.inventory removing 2",
        "host.reconcile 0",
        "host.inventory removing 1",
        "host.reconcile 0",
    ]


async def test_what_does_not_go_is_left_to_the_next_pass(play: Theatre) -> None:
    play.stage.leftovers = [[machine()] for _ in range(10)]
    await run(play, "ReconcileHost", HOST)
    assert play.stage.calls.count("host.reconcile 0") == 3


async def test_engine_that_is_away_for_a_moment_is_asked_again(play: Theatre) -> None:
    play.stage.script["host.inventory"] += [fails(EngineUnavailable("away"))] * 2
    await run(play, "ReconcileHost", HOST)
    assert play.stage.calls == ["host.inventory removing 0"] * 3 + ["host.reconcile 0"]
