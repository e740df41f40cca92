"""The plans of instances."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from workflows.options import REMOVE, RESTORE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, Undo, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.instances import (
        InstanceEngine,
        InstanceRecords,
        Placement,
        PlaceRequest,
        Settlement,
        StopRequest,
    )
    from model.errors import PortTaken
    from model.instances import MachineState
    from model.workflows import Failure, Order, Outcome

#: How many automatic ports a launch tries, when the engine finds them taken.
PORT_TRIES = 20
#: How long a forced delete waits for the engine.
FORCE = timedelta(seconds=10)


def settling(order: Order) -> Settle:
    """How runs on an instance end."""

    async def settle(outcome: Outcome, failure: Failure | None, facts: MachineState | None, undone: bool) -> None:
        settlement = Settlement(order=order, outcome=outcome, failure=failure, facts=facts, undone=undone)
        await call(InstanceRecords.settle, settlement, "settle", on_control())

    return settle


def removal(placement: Placement) -> Undo:
    return (InstanceEngine.delete, placement.spec, on_host(_host(placement), REMOVE))


@workflow.defn
class ProvisionInstance:
    """Place, find the image, create, start; a port that the engine finds taken is replaced."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            avoid: list[int] = []
            while True:
                request = PlaceRequest(order=order, avoid_ports=avoid)
                placement = await saga.step(InstanceRecords.place, request, on_control(remaining(order)))
                try:
                    return await self._launch(saga, order, placement)
                except ActivityError as error:
                    port = taken_port(error)
                    if port is None or len(avoid) >= PORT_TRIES or port in order.fixed_ports:
                        raise
                    avoid.append(port)

        await carry_out(order, plan, settling(order))

    async def _launch(self, saga: Saga, order: Order, placement: Placement) -> MachineState:
        spec, host = placement.spec, _host(placement)
        await saga.step(InstanceEngine.ensure_image, spec, on_host(host, remaining(order)))
        await saga.step(InstanceEngine.create, spec, on_host(host, remaining(order)), undo=[removal(placement)])
        return await saga.step(InstanceEngine.start, spec, on_host(host, remaining(order)))


@workflow.defn
class StartInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, _host(placement)
            grace = timedelta(seconds=order.grace_seconds)
            request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
            undo = (InstanceEngine.stop, request, on_host(host, RESTORE + grace))
            return await saga.step(InstanceEngine.start, spec, on_host(host, remaining(order)), undo=[undo])

        await carry_out(order, plan, settling(order))


@workflow.defn
class StopInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, _host(placement)
            request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
            # It may have been asked to end already, and be about to: that is seen through before it is started.
            undo: list[Undo] = [
                (InstanceEngine.stop, StopRequest(spec=spec, grace_seconds=0), on_host(host, RESTORE)),
                (InstanceEngine.start, spec, on_host(host, RESTORE)),
            ]
            await saga.step(InstanceEngine.stop, request, on_host(host, remaining(order)), undo=undo)

        await carry_out(order, plan, settling(order))


@workflow.defn
class DeprovisionInstance:
    """Wait until the run in the way has ended, then remove. What is half removed has no way back:
    a cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            if placement.host is None:
                return
            within = FORCE if order.force else remaining(order)
            try:
                await saga.step(InstanceEngine.delete, placement.spec, on_host(placement.host, within))
            except ActivityError:
                # Forced: the row goes, and the host's next inventory shows what is left of it.
                if not order.force:
                    raise

        await carry_out(order, plan, settling(order), cancellable=False)


def taken_port(error: ActivityError) -> int | None:
    """The host port that the engine found taken, where that is why a step failed."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type == PortTaken.code and cause.details:
        port = cause.details[0].get("port")
        return port if isinstance(port, int) else None
    return None


def _host(placement: Placement) -> str:
    if placement.host is None:
        raise ApplicationError("the instance is on no host", type="not_placed", non_retryable=True)
    return placement.host


PLANS = [ProvisionInstance, StartInstance, StopInstance, DeprovisionInstance]
