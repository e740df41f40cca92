"""The plans that change an instance where it is: restart, pause, resume, resize."""

from __future__ import annotations

from collections.abc import Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.instances import code_of, ending, host_of, make_beside, settling, starting_again
from workflows.options import RESTORE, on_control, on_host, remaining
from workflows.saga import Saga, Undo, carry_out, shielded

with workflow.unsafe.imports_passed_through():
    from activities.instances import InstanceEngine, InstanceRecords, Placement, StopRequest
    from model.errors import NeedsRecreate, NeedsStop
    from model.instances import MachineSpec, MachineState
    from model.workflows import Order


@workflow.defn
class RestartInstance:
    """Stop it, giving it its grace, and start it again."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, host_of(placement)
            request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
            # It may be about to end: that is seen through before it is started. Where it does not start, it is stopped:
            # its engine may go on trying.
            undo = [ending(spec, host), starting_again(spec, host)._replace(otherwise=ending(spec, host))]
            await saga.step(InstanceEngine.stop, request, on_host(host, remaining(order)), undo=undo)
            return await saga.step(InstanceEngine.start, spec, on_host(host, remaining(order)))

        await carry_out(order, plan, settling(order))


@workflow.defn
class PauseInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        await _switch(order, InstanceEngine.pause, back=InstanceEngine.resume)


@workflow.defn
class ResumeInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        await _switch(order, InstanceEngine.resume, back=InstanceEngine.pause)


_Change = Callable[[InstanceEngine, MachineSpec], None]


async def _switch(order: Order, there: _Change, *, back: _Change) -> None:
    """One step that another takes back."""

    async def plan(saga: Saga) -> None:
        placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
        spec, host = placement.spec, host_of(placement)
        undo = [Undo(back, spec, on_host(host, RESTORE))]
        await saga.step(there, spec, on_host(host, remaining(order)), undo=undo)

    await carry_out(order, plan, settling(order))


@workflow.defn
class ResizeInstance:
    """Give the machine other limits: as it is; where the engine cannot, while it is stopped for that; and only where
    the user allowed it and no other way is left, as another machine, without what this one wrote."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState | None:
            there = on_control(remaining(order), poll=True)
            placement = await saga.step(InstanceRecords.hold_size, order, there)
            try:
                await self._adjust(saga, order, placement)
                return None
            except ActivityError as error:
                needs = code_of(error)
                if needs == NeedsStop.code and placement.was_running:
                    return await self._adjust_stopped(saga, order, placement)
                # What is paused would lose its processes, which nobody has allowed.
                if needs == NeedsRecreate.code and order.recreate and not placement.was_paused:
                    return await self._recreate(saga, order, placement)
                raise

        await carry_out(order, plan, settling(order))

    async def _adjust(self, saga: Saga, order: Order, placement: Placement) -> None:
        spec, host = placement.spec, host_of(placement)
        old = placement.old_spec or spec
        undo = [Undo(InstanceEngine.adjust, old, on_host(host, RESTORE))]
        if placement.was_running:
            undo.append(starting_again(old, host))  # a program that cannot live with less memory has ended
        lives = placement.was_running or placement.was_paused
        as_it_is = spec.model_copy(update={"lives": lives})
        await saga.step(InstanceEngine.adjust, as_it_is, on_host(host, remaining(order)), undo=undo)

    async def _adjust_stopped(self, saga: Saga, order: Order, placement: Placement) -> MachineState:
        spec, host = placement.spec, host_of(placement)
        old = placement.old_spec or spec
        request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
        undo = [ending(spec, host), Undo(InstanceEngine.adjust, old, on_host(host, RESTORE)), starting_again(old, host)]
        await saga.step(InstanceEngine.stop, request, on_host(host, remaining(order)), undo=undo)
        await saga.step(InstanceEngine.adjust, spec, on_host(host, remaining(order)))
        return await saga.step(InstanceEngine.start, spec, on_host(host, remaining(order)))

    async def _recreate(self, saga: Saga, order: Order, placement: Placement) -> MachineState:
        facts = await make_beside(saga, order, placement)
        # Without a deadline: a switch whose answer is late has happened all the same.
        await shielded(saga.commit(InstanceRecords.switch, order, on_control()))
        return facts


PLANS = [RestartInstance, PauseInstance, ResumeInstance, ResizeInstance]
