"""The plans of instances: which steps, in which order, and what undoes them."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.testing import WorkflowEnvironment

from activities.runs import RunEnded
from model.errors import (
    EngineRefused,
    EngineUnavailable,
    ImageNotFound,
    InstanceExited,
    LeaseLapsed,
    NeedsStop,
    NoCapacity,
    NotReady,
    PortTaken,
    Superseded,
)
from tests.services import eventually
from tests.workflows.stage import Gate, Theatre, fails, theatre

LAUNCH = ["instance.place", "image.ensure", "instance.create", "instance.start"]
REMOVED = "undo instance.delete generation 1"


async def test_launch(play: Theatre) -> None:
    assert await play.run("ProvisionInstance") is None
    assert play.stage.calls == [*LAUNCH, "instance.settle completed"]
    facts = play.stage.settled[0].facts
    assert facts is not None
    assert (facts.engine_id, facts.private_ip) == ("e-1", "10.0.0.9")


async def test_start_stop_delete(play: Theatre) -> None:
    for kind, step in (
        ("StartInstance", "instance.start"),
        ("StopInstance", "instance.stop"),
        ("DeprovisionInstance", "instance.delete generation 1"),
    ):
        play.stage.calls.clear()
        assert await play.run(kind) is None
        assert play.stage.calls == ["instance.claim", step, "instance.settle completed"]


async def test_delete_of_what_is_nowhere_touches_no_engine(play: Theatre) -> None:
    play.stage.placed = False
    assert await play.run("DeprovisionInstance") is None
    assert play.stage.calls == ["instance.claim", "instance.settle completed"]


@pytest.mark.parametrize("kind", ["StartInstance", "StopInstance"])
async def test_what_is_nowhere_cannot_be_started_or_stopped(play: Theatre, kind: str) -> None:
    play.stage.placed = False
    failure = await play.run(kind)
    assert failure is not None
    assert failure.code == "not_placed"
    assert play.stage.calls == ["instance.claim", "instance.settle failed"]


@pytest.mark.parametrize(
    ("kind", "step", "error", "calls"),
    [
        ("ProvisionInstance", "instance.place", NoCapacity("full"), LAUNCH[:1]),
        ("ProvisionInstance", "image.ensure", ImageNotFound("no image"), LAUNCH[:2]),
        ("ProvisionInstance", "instance.create", EngineRefused("no"), [*LAUNCH[:3], REMOVED]),
        ("ProvisionInstance", "instance.start", InstanceExited("gone"), [*LAUNCH, REMOVED]),
        ("ProvisionInstance", "instance.start", Superseded("deleted"), [*LAUNCH, REMOVED]),
        (
            "StartInstance",
            "instance.start",
            InstanceExited("gone"),
            ["instance.claim", "instance.start", "undo instance.stop"],
        ),
        (
            "StopInstance",
            "instance.stop",
            EngineRefused("no"),
            ["instance.claim", "instance.stop", "undo instance.stop", "undo instance.start"],
        ),
        (
            "DeprovisionInstance",
            "instance.delete",
            EngineRefused("no"),
            ["instance.claim", "instance.delete generation 1"],
        ),
    ],
)
async def test_failed_step_is_undone_with_those_before_it(
    play: Theatre, kind: str, step: str, error: Exception, calls: list[str]
) -> None:
    play.stage.script[step].append(fails(error))
    failure = await play.run(kind)
    assert play.stage.calls == [*calls, "instance.settle failed"]
    assert failure is not None
    assert (failure.code, failure.message, failure.step) == (error.code, str(error), step)  # type: ignore[attr-defined]


async def test_passing_errors_are_tried_again(play: Theatre) -> None:
    for name in LAUNCH:
        play.stage.script[name] += [fails(EngineUnavailable("away")), fails(ValueError("a bug that passes"))]
    assert await play.run("ProvisionInstance") is None
    assert play.stage.calls == [name for name in LAUNCH for _ in range(3)] + ["instance.settle completed"]


async def test_settle_is_tried_until_it_succeeds(play: Theatre) -> None:
    play.stage.script["instance.settle"] += [fails(ConnectionError("database away"))] * 3
    assert await play.run("StopInstance") is None
    assert play.stage.calls.count("instance.settle completed") == 4


async def test_undo_that_fails_does_not_stop_the_end(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(InstanceExited("gone")))
    play.stage.always["undo instance.delete"] = fails(EngineRefused("no"))
    failure = await play.run("ProvisionInstance")
    assert failure is not None
    assert failure.code == "instance_exited", "the cause, not what went wrong afterwards"
    assert play.stage.calls[-2:] == [REMOVED, "instance.settle failed"]


async def test_port_that_the_engine_finds_taken_is_replaced(play: Theatre) -> None:
    play.stage.script["instance.start"] += [
        fails(PortTaken("taken", port=20000)),
        fails(PortTaken("taken", port=20001)),
    ]
    assert await play.run("ProvisionInstance") is None
    assert play.stage.calls == [
        *LAUNCH,
        *("instance.place avoiding 1", *LAUNCH[1:]),
        *("instance.place avoiding 2", *LAUNCH[1:]),
        "instance.settle completed",
    ]
    assert [spec.generation for spec in play.stage.specs] == [1, 2, 3]


async def test_replaced_placements_are_all_undone_newest_first(play: Theatre) -> None:
    play.stage.script["instance.start"] += [fails(PortTaken("taken", port=20000)), fails(InstanceExited("gone"))]
    failure = await play.run("ProvisionInstance")
    assert failure is not None
    assert failure.code == "instance_exited"
    assert play.stage.calls[-3:] == ["undo instance.delete generation 2", REMOVED, "instance.settle failed"]


async def test_port_that_the_user_named_is_not_replaced(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(PortTaken("taken", port=8080)))
    failure = await play.run("ProvisionInstance", fixed_ports=[8080])
    assert failure is not None
    assert failure.code == "port_taken"
    assert play.stage.calls == [*LAUNCH, REMOVED, "instance.settle failed"]


async def test_ports_are_not_replaced_for_ever(play: Theatre) -> None:
    async def taken() -> None:
        raise PortTaken("taken", port=play.stage.specs[-1].ports[0].host_port)

    play.stage.always["instance.start"] = taken
    failure = await play.run("ProvisionInstance")
    assert failure is not None
    assert failure.code == "port_taken"
    assert play.stage.calls.count("instance.start") == 21


CANCELS = [
    ("ProvisionInstance", "instance.place", []),
    ("ProvisionInstance", "image.ensure", []),
    ("ProvisionInstance", "instance.create", [REMOVED]),
    ("ProvisionInstance", "instance.start", [REMOVED]),
    ("StartInstance", "instance.claim", []),
    ("StartInstance", "instance.start", ["undo instance.stop"]),
    ("StopInstance", "instance.claim", []),
    ("StopInstance", "instance.stop", ["undo instance.stop", "undo instance.start"]),
]


@pytest.mark.parametrize("answer", ["heard", "swallowed", "lost"])
@pytest.mark.parametrize(("kind", "step", "undos"), CANCELS)
async def test_cancel_in_any_step_undoes_and_goes_no_further(
    play: Theatre, kind: str, step: str, undos: list[str], answer: str
) -> None:
    """Swallowed: the step ends normally though it was cancelled, and the plan must not go on all the same.

    Lost: it fails instead, and is not tried again; that is a cancel, and no failure of the user's.
    """
    gate = Gate(swallow=answer == "swallowed", error=EngineUnavailable("away") if answer == "lost" else None)
    play.stage.script[step].append(gate)
    handle = await play.start(kind)
    await gate.reached.wait()
    done = list(play.stage.calls)
    assert done[-1] == step
    await handle.cancel()
    failure = await play.end(handle)
    assert play.stage.calls == [*done, *undos, "instance.settle cancelled"]
    assert failure is not None
    assert failure.code == "cancelled"
    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED


async def test_cancel_while_a_step_waits_for_its_next_attempt(play: Theatre) -> None:
    play.stage.always["instance.create"] = fails(EngineUnavailable("away"))
    handle = await play.start("ProvisionInstance")
    assert await eventually(lambda: "instance.create" in play.stage.calls)
    await handle.cancel()
    await play.end(handle)
    assert play.stage.calls[-2:] == [REMOVED, "instance.settle cancelled"]


async def test_cancel_during_undo_or_settle_changes_nothing(play: Theatre) -> None:
    undoing = Gate()
    play.stage.script["instance.start"].append(fails(InstanceExited("gone")))
    play.stage.always["undo instance.delete"] = undoing
    handle = await play.start("ProvisionInstance")
    await undoing.reached.wait()
    await handle.cancel()
    await asyncio.sleep(0.5)
    assert play.stage.calls[-1] == REMOVED
    undoing.opened.set()
    failure = await play.end(handle)
    assert failure is not None
    assert failure.code == "instance_exited"
    assert play.stage.calls[-2:] == [REMOVED, "instance.settle failed"]


async def test_cancel_while_settling_a_success_completes(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["instance.settle"].append(gate)
    handle = await play.start("StopInstance")
    await gate.reached.wait()
    await handle.cancel()
    await asyncio.sleep(0.5)
    gate.opened.set()
    assert await play.end(handle) is None
    assert play.stage.calls == ["instance.claim", "instance.stop", "instance.settle completed"]


@pytest.mark.parametrize("step", ["instance.claim", "instance.delete"])
async def test_delete_is_not_cancellable(play: Theatre, step: str) -> None:
    gate = Gate()
    play.stage.script[step].append(gate)
    handle = await play.start("DeprovisionInstance")
    await gate.reached.wait()
    await handle.cancel()
    await asyncio.sleep(0.5)
    gate.opened.set()
    assert await play.end(handle) is None
    assert play.stage.calls == ["instance.claim", "instance.delete generation 1", "instance.settle completed"]
    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED


async def test_delete_waits_for_the_run_in_the_way(play: Theatre) -> None:
    play.stage.script["instance.claim"] += [fails(NotReady("another works on it"))] * 3
    assert await play.run("DeprovisionInstance") is None
    assert play.stage.calls == ["instance.claim"] * 4 + ["instance.delete generation 1", "instance.settle completed"]


async def test_forced_delete_ends_though_the_engine_refuses(play: Theatre) -> None:
    play.stage.always["instance.delete"] = fails(EngineRefused("no"))
    assert await play.run("DeprovisionInstance", force=True) is None
    assert play.stage.calls[-1] == "instance.settle completed"


@pytest.mark.parametrize("kind", ["ProvisionInstance", "StartInstance", "DeprovisionInstance"])
async def test_run_of_an_ended_row_settles_nothing(play: Theatre, kind: str) -> None:
    for name in ("instance.place", "instance.claim"):
        play.stage.always[name] = fails(RunEnded("it ended"))
    handle = await play.start(kind)
    await asyncio.wait([asyncio.ensure_future(handle.result())], timeout=10)
    assert (await handle.describe()).status is WorkflowExecutionStatus.FAILED
    assert len(play.stage.calls) == 1


async def test_eviction_undoes_nothing(temporal: WorkflowEnvironment) -> None:
    """A run is thrown out of a worker's memory after each of its tasks: that is no end of it."""
    async with theatre(temporal.client, cached=0) as play:
        gate = Gate()
        play.stage.script["instance.start"].append(gate)
        handle = await play.start("ProvisionInstance")
        await gate.reached.wait()
        await asyncio.sleep(0.3)
        gate.opened.set()
        assert await play.end(handle) is None
        assert play.stage.calls == [*LAUNCH, "instance.settle completed"]


async def test_worker_that_stops_undoes_nothing_and_another_goes_on(temporal: WorkflowEnvironment) -> None:
    async with theatre(temporal.client) as first:
        first.stage.script["image.ensure"].append(fails(EngineUnavailable("away")))
        handle = await first.start("ProvisionInstance")
        assert await eventually(lambda: "image.ensure" in first.stage.calls)
    assert set(first.stage.calls) == set(LAUNCH[:2]), "the second of them again and again"
    async with theatre(temporal.client) as second:
        assert await second.end(handle) is None
        assert second.stage.calls[-3:] == [*LAUNCH[2:], "instance.settle completed"]
        assert "instance.place" not in second.stage.calls


async def test_engine_that_is_away_until_the_deadline(play: Theatre) -> None:
    play.stage.always["instance.create"] = fails(EngineUnavailable("the engine is away"))
    failure = await play.run("ProvisionInstance", deadline_seconds=0.5)
    assert failure is not None
    assert (failure.code, failure.step) == ("engine_unavailable", "instance.create")
    assert failure.message == "gave up at the deadline; last error: the engine is away"
    assert play.stage.calls[-2:] == [REMOVED, "instance.settle failed"]


async def test_host_that_is_silent_until_the_deadline(temporal: WorkflowEnvironment) -> None:
    async with theatre(temporal.client, agent=False) as play:
        failure = await play.run("ProvisionInstance", deadline_seconds=0.5)
        assert failure is not None
        assert (failure.code, failure.step) == ("deadline_exceeded", "image.ensure")
        assert play.stage.calls == ["instance.place", "instance.settle failed"]


@pytest.mark.parametrize(
    ("kind", "placed"), [("ProvisionInstance", "instance.place"), ("MoveInstance", "instance.place_beside")]
)
async def test_host_that_has_lost_its_lease_is_left_by_what_is_fenced(play: Theatre, kind: str, placed: str) -> None:
    play.stage.script["instance.start"].append(fails(LeaseLapsed("the host's lease has lapsed")))
    assert await play.run(kind) is None
    assert play.stage.calls.count(placed) == 2


async def test_heal_does_not_wait_for_a_lease(play: Theatre) -> None:
    """While a run works on it, nothing else moves it."""
    play.stage.script["instance.start"].append(fails(LeaseLapsed("the host's lease has lapsed")))
    failure = await play.run("HealInstance")
    assert failure is not None
    assert failure.code == "lease_lapsed"


async def test_deadline_cuts_a_step_that_hangs(play: Theatre) -> None:
    play.stage.script["instance.start"].append(Gate())
    failure = await play.run("StartInstance", deadline_seconds=0.5)
    assert failure is not None
    assert (failure.code, failure.step) == ("deadline_exceeded", "instance.start")
    assert play.stage.calls[-2:] == ["undo instance.stop", "instance.settle failed"]


async def test_change_that_cannot_be_taken_back_says_so(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["instance.stop"].append(gate)
    handle = await play.start("StopInstance")
    await gate.reached.wait()
    play.stage.always["undo instance.start"] = fails(EngineRefused("no such container"))
    await handle.cancel()
    failure = await play.end(handle)
    assert failure is not None
    assert failure.code == "cancelled"
    (settled,) = play.stage.settled
    assert settled.undone  # nothing was brought about instead
    assert settled.failure is not None
    assert "could not be undone: no such container" in settled.failure.message


HEAL = ["instance.claim", "image.ensure", "instance.create", "instance.adjust to 512"]
MOVE = [
    "instance.place_beside",
    "image.ensure",
    "instance.stop",
    "instance.create",
    "instance.start",
    "instance.switch",
    "instance.delete generation 1",
]


async def test_heal_makes_what_is_missing_and_starts_what_ran(play: Theatre) -> None:
    assert await play.run("HealInstance") is None
    assert play.stage.calls == [*HEAL, "instance.start", "instance.settle completed"]
    play.stage.calls.clear()
    play.stage.was_running = False
    assert await play.run("HealInstance") is None
    assert play.stage.calls == [*HEAL, "instance.stop", "instance.settle completed"]


@pytest.mark.parametrize("was_running", [True, False])
async def test_heal_that_needs_a_stop_stops_it(play: Theatre, was_running: bool) -> None:
    play.stage.was_running = was_running
    play.stage.script["instance.adjust"].append(fails(NeedsStop("it uses more")))
    assert await play.run("HealInstance") is None
    last = "instance.start" if was_running else "instance.stop"
    assert play.stage.calls == [
        *(*HEAL, "instance.stop", "instance.adjust to 512", last),
        "instance.settle completed",
    ]


async def test_heal_stops_nothing_that_was_paused(play: Theatre) -> None:
    play.stage.was_running, play.stage.was_paused = False, True
    play.stage.script["instance.adjust"].append(fails(NeedsStop("it uses more")))
    failure = await play.run("HealInstance")
    assert failure is not None
    assert failure.code == "needs_stop"
    assert play.stage.calls == [*HEAL, "instance.settle failed"]


async def test_heal_of_what_cannot_be_changed_makes_it_anew(play: Theatre) -> None:
    assert await play.run("HealInstance", recreate=True) is None
    assert play.stage.calls[:3] == ["instance.claim", "instance.delete generation 1", "image.ensure"]


async def test_move_stops_the_old_before_it_starts_the_new(play: Theatre) -> None:
    assert await play.run("MoveInstance") is None
    assert play.stage.calls == [*MOVE, "instance.settle completed"]
    assert play.stage.settled[0].facts is not None


async def test_move_from_a_lost_host_does_not_touch_it(play: Theatre) -> None:
    play.stage.leaves = None
    assert await play.run("MoveInstance", host_lost=True) is None
    touched = [step for step in MOVE if step not in ("instance.stop", "instance.delete generation 1")]
    assert play.stage.calls == [*touched, "instance.settle completed"]


async def test_move_of_what_is_stopped_starts_nothing(play: Theatre) -> None:
    play.stage.was_running = False
    assert await play.run("MoveInstance") is None
    assert not {"instance.start", "instance.stop"} & set(play.stage.calls)


@pytest.mark.parametrize(("how", "outcome"), [("fails", "failed"), ("cancel", "cancelled")])
async def test_move_that_does_not_start_is_undone_new_one_first(play: Theatre, how: str, outcome: str) -> None:
    gate = Gate()
    play.stage.script["instance.start"].append(fails(InstanceExited("gone")) if how == "fails" else gate)
    handle = await play.start("MoveInstance")
    if how == "cancel":
        await gate.reached.wait()
        await handle.cancel()
    await play.end(handle)
    assert play.stage.calls == [
        *MOVE[:5],
        "undo instance.delete generation 2",
        "undo instance.create",
        "undo instance.stop",
        "undo instance.start",
        "undo instance.stay",
        f"instance.settle {outcome}",
    ]


@pytest.mark.parametrize("step", ["instance.switch", "instance.delete"])
async def test_cancel_of_a_move_that_switches_comes_too_late(play: Theatre, step: str) -> None:
    gate = Gate(swallow=True)
    play.stage.script[step].append(gate)
    handle = await play.start("MoveInstance")
    await gate.reached.wait()
    await handle.cancel()
    await asyncio.sleep(0.3)
    gate.opened.set()
    assert await play.end(handle) is None
    assert play.stage.calls == [*MOVE, "instance.settle completed"]


async def test_move_whose_old_machine_cannot_be_removed_leaves_it_to_the_inventory(play: Theatre) -> None:
    play.stage.always["instance.delete"] = fails(EngineRefused("no"))
    assert await play.run("MoveInstance") is None
    assert play.stage.calls == [*MOVE, "instance.settle completed"]


async def test_move_takes_another_port_where_the_engine_finds_one_taken(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(PortTaken("taken", port=20000)))
    assert await play.run("MoveInstance") is None
    assert play.stage.calls == [*MOVE[:5], "instance.place_beside avoiding 1", *MOVE[1:], "instance.settle completed"]
