"""The plans of load balancers, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from model.errors import EngineRefused, InstanceExited
from tests.workflows.stage import Gate, Theatre, fails

LAUNCH = ["instance.place", "image.ensure", "instance.create", "instance.start", "instance.settle completed"]
DELETE = ["undo lb.remove", "instance.claim", "instance.delete generation 1", "instance.settle completed"]


async def test_a_new_balancer_is_a_launch_and_a_configuration(play: Theatre) -> None:
    handle = await play.start("ProvisionLoadBalancer")
    await handle.result()
    assert play.stage.calls == ["lb.claim", *LAUNCH, "lb.configure", "lb.apply", "lb.settle completed"]
    facts = play.stage.balanced[0].facts
    assert facts is not None
    assert (facts.revision, facts.applied.engine_id) == (1, "e-1")


@pytest.mark.parametrize("step", ["instance.create", "lb.apply"])
async def test_what_fails_leaves_no_proxy(play: Theatre, step: str) -> None:
    play.stage.script[step].append(fails(EngineRefused("no")))
    handle = await play.start("ProvisionLoadBalancer")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls[-5:] == [*DELETE, "lb.settle failed"]
    failure = play.stage.balanced[0].failure
    assert failure is not None
    assert (failure.code, failure.message) == ("engine_refused", "no")


async def test_cancelled_while_its_proxy_is_told_it_goes(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["lb.apply"].append(gate)
    handle = await play.start("ProvisionLoadBalancer")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls[-5:] == [*DELETE, "lb.settle cancelled"]


async def test_cancelled_while_its_proxy_is_launched_both_are_undone(play: Theatre) -> None:
    gate = Gate()
    play.stage.script["instance.start"].append(gate)
    handle = await play.start("ProvisionLoadBalancer")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    calls = play.stage.calls
    assert calls.index("undo instance.delete generation 1") < calls.index("instance.settle cancelled")
    assert calls.index("instance.settle cancelled") < calls.index("undo lb.remove")
    assert calls[-1] == "lb.settle cancelled"


async def test_targets_drain_between_two_configurations(play: Theatre) -> None:
    play.stage.draining = [["t-1", "t-2"]]
    await (await play.start("UpdateLoadBalancer")).result()
    told = ["lb.configure", "lb.apply"]
    assert play.stage.calls == [*told, "lb.drain 2", "lb.drained", *told, "lb.settle completed"]


async def test_nothing_to_do_asks_no_host(play: Theatre) -> None:
    play.stage.placed = False
    await (await play.start("UpdateLoadBalancer")).result()
    assert play.stage.calls == ["lb.configure", "lb.settle completed"]


async def test_delete_that_fails_says_why(play: Theatre) -> None:
    play.stage.script["instance.delete"].append(fails(InstanceExited("gone wrong")))
    handle = await play.start("DeprovisionLoadBalancer")
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    failure = play.stage.balanced[0].failure
    assert failure is not None
    assert (failure.code, failure.message) == ("instance_exited", "gone wrong")
