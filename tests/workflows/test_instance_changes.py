"""Restart, pause, resume, resize: which steps, in which order, and what undoes them."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowExecutionStatus

from model.errors import (
    EngineRefused,
    EngineUnavailable,
    InstanceExited,
    NeedsRecreate,
    NeedsStop,
    NoCapacity,
    Superseded,
    Unhealthy,
)
from model.health import HealthCheck
from tests.workflows.stage import Gate, Theatre, fails

RESTART = ["instance.claim", "instance.stop", "instance.start"]
RESIZE = ["instance.hold_size", "instance.adjust to 1024"]
REMAKE = ["image.ensure", "instance.stop", "instance.create", "instance.start"]
BACK = ["undo instance.adjust to 512", "undo instance.start"]


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("RestartInstance", RESTART),
        ("PauseInstance", ["instance.claim", "instance.pause"]),
        ("ResumeInstance", ["instance.claim", "instance.resume"]),
        ("ResizeInstance", RESIZE),
    ],
)
async def test_steps(play: Theatre, kind: str, calls: list[str]) -> None:
    assert await play.run(kind) is None
    assert play.stage.calls == [*calls, "instance.settle completed"]
    # Only what was started anew may have another address.
    assert (play.stage.settled[0].facts is not None) == (kind == "RestartInstance")


@pytest.mark.parametrize("kind", ["RestartInstance", "PauseInstance", "ResumeInstance", "ResizeInstance"])
async def test_what_is_nowhere_is_left_alone(play: Theatre, kind: str) -> None:
    play.stage.placed = False
    failure = await play.run(kind)
    assert failure is not None
    assert failure.code == "not_placed"
    assert len(play.stage.calls) == 2


ENDS = [
    ("RestartInstance", "instance.stop", RESTART[:2], ["undo instance.stop", "undo instance.start"]),
    ("RestartInstance", "instance.start", RESTART, ["undo instance.stop", "undo instance.start"]),
    ("PauseInstance", "instance.pause", ["instance.claim", "instance.pause"], ["undo instance.resume"]),
    ("ResumeInstance", "instance.resume", ["instance.claim", "instance.resume"], ["undo instance.pause"]),
    ("ResizeInstance", "instance.hold_size", RESIZE[:1], []),
    ("ResizeInstance", "instance.adjust", RESIZE, BACK),
]


@pytest.mark.parametrize(("kind", "step", "calls", "undos"), ENDS)
async def test_failed_step_is_undone(play: Theatre, kind: str, step: str, calls: list[str], undos: list[str]) -> None:
    play.stage.script[step].append(fails(EngineRefused("no")))
    failure = await play.run(kind)
    assert play.stage.calls == [*calls, *undos, "instance.settle failed"]
    assert failure is not None
    assert (failure.code, failure.step) == ("engine_refused", step)
    assert play.stage.settled[0].undone


@pytest.mark.parametrize("answer", ["heard", "swallowed", "lost"])
@pytest.mark.parametrize(("kind", "step", "calls", "undos"), ENDS)
async def test_cancel_in_any_step_undoes_and_goes_no_further(
    play: Theatre, kind: str, step: str, calls: list[str], undos: list[str], answer: str
) -> None:
    gate = Gate(swallow=answer == "swallowed", error=EngineUnavailable("away") if answer == "lost" else None)
    play.stage.script[step].append(gate)
    handle = await play.start(kind)
    await gate.reached.wait()
    await handle.cancel()
    await play.end(handle)
    assert play.stage.calls == [*calls, *undos, "instance.settle cancelled"]
    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED


async def test_what_an_undo_started_anew_has_the_address_that_it_got(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(InstanceExited("gone")))
    await play.run("RestartInstance")
    facts = play.stage.settled[0].facts
    assert facts is not None
    assert facts.private_ip == "10.0.0.9"


async def test_what_an_undo_made_anew_and_left_stopped_is_known_by_its_id(play: Theatre) -> None:
    play.stage.was_running = False
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    play.stage.script["instance.create"].append(fails(EngineRefused("no")))
    await play.run("ResizeInstance", recreate=True)
    facts = play.stage.settled[0].facts
    assert facts is not None
    assert (facts.engine_id, facts.private_ip) == ("e-1", None)


async def test_restart_that_can_be_neither_done_nor_taken_back_says_so(play: Theatre) -> None:
    play.stage.script["instance.start"].append(fails(InstanceExited("it ends at once")))
    play.stage.always["undo instance.start"] = fails(InstanceExited("it ends at once"))
    failure = await play.run("RestartInstance")
    assert failure is not None
    assert failure.code == "instance_exited"
    assert "could not be undone" in failure.message
    # Its engine may go on trying to start it.
    assert play.stage.calls[-4:-1] == ["undo instance.stop", "undo instance.start", "undo instance.stop"]
    assert not play.stage.settled[0].undone


async def test_restart_on_a_silent_host_is_not_said_to_have_stopped_it(play: Theatre) -> None:
    for call in ("instance.stop", "undo instance.stop", "undo instance.start"):
        play.stage.always[call] = fails(EngineRefused("away"))
    assert await play.run("RestartInstance") is not None
    assert play.stage.calls[-4:-1] == ["undo instance.stop", "undo instance.start", "undo instance.stop"]
    assert play.stage.settled[0].undone


@pytest.mark.parametrize("kind", ["StopInstance", "RestartInstance", "MoveInstance", "ResizeInstance"])
async def test_what_is_started_again_need_not_be_healthy(play: Theatre, kind: str) -> None:
    """It may have been unhealthy before."""
    play.stage.health_check = HealthCheck(type="tcp", port=80)
    play.stage.script["instance.adjust"].append(fails(NeedsStop("it uses more")))
    last = "instance.stop" if kind == "StopInstance" else "instance.start"
    play.stage.script[last].append(fails(Unhealthy("it did not pass")))
    failure = await play.run(kind)
    assert failure is not None
    assert "could not be undone" not in failure.message
    starts = [call for call in play.stage.calls if "instance.start" in call]
    expected = ["undo instance.start"] * (2 if kind == "ResizeInstance" else 1)
    assert starts == ([] if kind == "StopInstance" else ["instance.start until healthy"]) + expected


async def test_stop_of_what_was_paused_is_undone_to_paused(play: Theatre) -> None:
    play.stage.was_running, play.stage.was_paused = False, True
    play.stage.script["instance.stop"].append(fails(EngineRefused("no")))
    await play.run("StopInstance")
    assert play.stage.calls == [
        *("instance.claim", "instance.stop"),
        *("undo instance.stop", "undo instance.start", "undo instance.pause"),
        "instance.settle failed",
    ]


async def test_heal_of_what_was_paused_holds_what_runs(play: Theatre) -> None:
    play.stage.was_running, play.stage.was_paused = False, True
    assert await play.run("HealInstance") is None
    assert play.stage.calls[-3:] == ["instance.adjust to 512", "instance.pause", "instance.settle completed"]


async def test_heal_of_what_was_paused_and_ended_starts_it_to_pause_it(play: Theatre) -> None:
    play.stage.was_running, play.stage.was_paused = False, True
    play.stage.script["instance.pause"].append(fails(InstanceExited("it does not run")))
    assert await play.run("HealInstance") is None
    assert play.stage.calls[-4:] == [
        *("instance.pause", "instance.start", "instance.pause"),
        "instance.settle completed",
    ]
    assert play.stage.settled[0].facts is not None


async def test_resize_without_room_touches_no_engine(play: Theatre) -> None:
    play.stage.script["instance.hold_size"].append(fails(NoCapacity("full")))
    failure = await play.run("ResizeInstance")
    assert failure is not None
    assert failure.code == "no_capacity"
    assert play.stage.calls == ["instance.hold_size", "instance.settle failed"]


@pytest.mark.parametrize("state", ["stopped", "paused"])
async def test_resize_of_what_does_not_run_starts_nothing(play: Theatre, state: str) -> None:
    play.stage.was_running, play.stage.was_paused = False, state == "paused"
    play.stage.script["instance.adjust"].append(fails(EngineRefused("no")))
    await play.run("ResizeInstance")
    assert play.stage.calls == [*RESIZE, "undo instance.adjust to 512", "instance.settle failed"]


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
async def test_engine_is_told_what_is_to_survive_a_resize(play: Theatre, state: str) -> None:
    """A repeated step finds the new size either way."""
    play.stage.was_running, play.stage.was_paused = state == "running", state == "paused"
    assert await play.run("ResizeInstance") is None
    assert [spec.lives for spec in play.stage.adjusted] == [state != "stopped"]


async def test_resize_that_needs_a_stop_stops_and_starts_it(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsStop("it uses more")))
    assert await play.run("ResizeInstance") is None
    assert play.stage.calls == [
        *(*RESIZE, "instance.stop", "instance.adjust to 1024", "instance.start"),
        "instance.settle completed",
    ]
    assert play.stage.settled[0].facts is not None


async def test_resize_that_does_not_start_again_gets_its_old_size_before_it_is_started(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsStop("it uses more")))
    play.stage.script["instance.start"].append(fails(InstanceExited("too little memory")))
    await play.run("ResizeInstance")
    undos = play.stage.calls[5:-1]
    assert undos == ["undo instance.stop", *BACK, *BACK]
    assert play.stage.settled[0].undone


async def test_paused_instance_is_not_stopped_to_be_resized(play: Theatre) -> None:
    play.stage.was_running, play.stage.was_paused = False, True
    for needs in (NeedsStop("it uses more"), NeedsRecreate("never")):
        play.stage.calls.clear()
        play.stage.script["instance.adjust"].append(fails(needs))
        failure = await play.run("ResizeInstance", recreate=True)
        assert failure is not None
        assert failure.code == needs.code
        assert play.stage.calls == [*RESIZE, "undo instance.adjust to 512", "instance.settle failed"]


async def test_resize_makes_another_machine_only_where_that_was_allowed(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    failure = await play.run("ResizeInstance")
    assert failure is not None
    assert failure.code == "needs_recreate"
    assert play.stage.calls == [*RESIZE, *BACK, "instance.settle failed"]
    play.stage.calls.clear()
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    assert await play.run("ResizeInstance", recreate=True) is None
    assert play.stage.calls == [*RESIZE, *REMAKE, "instance.switch", "instance.settle completed"]


async def test_other_machine_that_does_not_start_gives_way_to_the_old_one(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    play.stage.script["instance.start"].append(fails(InstanceExited("gone")))
    await play.run("ResizeInstance", recreate=True)
    assert play.stage.calls == [
        *(*RESIZE, *REMAKE),
        *("undo instance.delete generation 2", "undo instance.create", "undo instance.stop", "undo instance.start"),
        *BACK,
        "instance.settle failed",
    ]


async def test_switch_that_a_delete_came_before_is_undone_as_a_cancel(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    gate = Gate()

    async def superseded() -> None:
        await gate()
        raise Superseded("deleted")

    play.stage.script["instance.switch"].append(superseded)
    handle = await play.start("ResizeInstance", recreate=True)
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    await play.end(handle)
    assert play.stage.calls[7] == "undo instance.delete generation 2"
    assert play.stage.calls[-1] == "instance.settle cancelled"


async def test_cancel_of_a_resize_that_switches_comes_too_late(play: Theatre) -> None:
    play.stage.script["instance.adjust"].append(fails(NeedsRecreate("never")))
    gate = Gate()
    play.stage.script["instance.switch"].append(gate)
    handle = await play.start("ResizeInstance", recreate=True)
    await gate.reached.wait()
    await handle.cancel()
    gate.opened.set()
    assert await play.end(handle) is None
    assert play.stage.calls[-1] == "instance.settle completed"
