"""The plans of instances."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType
from temporalio.workflow import ActivityConfig

from workflows.options import LEAST, REMOVE, RESTORE, SILENCE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, Undo, call, carry_out, shielded

with workflow.unsafe.imports_passed_through():
    from activities.images import ImageEngine
    from activities.instances import (
        InstanceEngine,
        InstanceRecords,
        Placement,
        PlaceRequest,
        Settlement,
        StopRequest,
    )
    from model.errors import InstanceExited, LeaseLapsed, NeedsStop, PortTaken
    from model.instances import MachineSpec, MachineState, Ready
    from model.workflows import Failure, Order, Outcome

#: How many automatic ports a launch tries, when the engine finds them taken.
PORT_TRIES = 20
#: How long a forced delete waits for the engine.
FORCE = timedelta(seconds=10)


def settling(order: Order) -> Settle:
    """How runs on an instance end."""

    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        if isinstance(facts, str):  # a machine that an undo made, and did not start
            facts = MachineState(engine_id=facts, private_ip=None)
        settlement = Settlement(order=order, outcome=outcome, failure=failure, facts=facts, undone=undone)
        await call(InstanceRecords.settle, settlement, "settle", on_control())

    return settle


def ending(spec: MachineSpec, host: str) -> Undo:
    """Stops it at once."""
    return Undo(InstanceEngine.stop, StopRequest(spec=spec, grace_seconds=0), on_host(host, RESTORE))


def starting_again(spec: MachineSpec, host: str) -> Undo:
    """Starts what ran before. Whether it is healthy is not waited for: it need not have been."""
    return Undo(InstanceEngine.start, spec.model_copy(update={"health_check": None}), on_host(host, RESTORE))


def removal(placement: Placement) -> Undo:
    return Undo(InstanceEngine.delete, placement.spec, on_host(host_of(placement), REMOVE))


async def ensure_image(saga: Saga, spec: MachineSpec, config: ActivityConfig) -> MachineSpec:
    """Make the image usable; the spec, from here on of just what it was found to be."""
    found = await saga.step(ImageEngine.ensure, spec, config)
    if found is None or spec.image_digest is not None:
        return spec
    return spec.model_copy(update={"image_digest": found.digest})


def ready(state: MachineState, spec: MachineSpec) -> Ready:
    return Ready(engine_id=state.engine_id, private_ip=state.private_ip, image_digest=spec.image_digest)


@workflow.defn
class ProvisionInstance:
    """Place, find the image, create, start; a port that the engine finds taken is replaced."""

    def __init__(self) -> None:
        #: What the image was found to be, whatever its tag means by the time of another placement.
        self._digest: str | None = None

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            facts, _ = await placed(saga, order, InstanceRecords.place, self._launch)
            return facts

        await carry_out(order, plan, settling(order))

    async def _launch(self, saga: Saga, order: Order, placement: Placement) -> MachineState:
        spec, host = placement.spec, host_of(placement)

        def there() -> ActivityConfig:
            return on_host(host, remaining(order), taken_up_within=SILENCE)

        spec = spec.model_copy(update={"image_digest": spec.image_digest or self._digest})
        spec = await ensure_image(saga, spec, there())
        self._digest = spec.image_digest
        await saga.step(InstanceEngine.create, spec, there(), undo=[removal(placement)])
        return ready(await saga.step(InstanceEngine.start, spec, there()), spec)


@workflow.defn
class StartInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, host_of(placement)
            grace = timedelta(seconds=order.grace_seconds)
            request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
            undo = Undo(InstanceEngine.stop, request, on_host(host, RESTORE + grace))
            return await saga.step(InstanceEngine.start, spec, on_host(host, remaining(order)), undo=[undo])

        await carry_out(order, plan, settling(order))


@workflow.defn
class StopInstance:
    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, host_of(placement)
            request = StopRequest(spec=spec, grace_seconds=order.grace_seconds)
            # It may have been asked to end already, and be about to: that is seen through before it is started.
            undo = [ending(spec, host), starting_again(spec, host)]
            if placement.was_paused:
                undo.append(Undo(InstanceEngine.pause, spec, on_host(host, RESTORE)))
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


@workflow.defn
class HealInstance:
    """Make an instance's machine what it should be. What it changes has no way back: it was wrong."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState | None:
            placement = await saga.step(InstanceRecords.claim, order, on_control(remaining(order), poll=True))
            spec, host = placement.spec, host_of(placement)

            def there() -> ActivityConfig:
                return on_host(host, remaining(order), taken_up_within=SILENCE)

            if order.recreate:
                await saga.step(InstanceEngine.delete, spec, there())
            spec = await ensure_image(saga, spec, there())
            made = await saga.step(InstanceEngine.create, spec, there())
            await self._adjust(saga, order, placement.model_copy(update={"spec": spec}), there)
            if placement.was_paused:
                return await self._pause(saga, placement, there)
            if not placement.was_running:
                await saga.step(InstanceEngine.stop, StopRequest(spec=spec, grace_seconds=order.grace_seconds), there())
                return ready(MachineState(engine_id=made, private_ip=None), spec)
            return ready(await saga.step(InstanceEngine.start, spec, there()), spec)

        await carry_out(order, plan, settling(order))

    async def _adjust(
        self, saga: Saga, order: Order, placement: Placement, there: Callable[[], ActivityConfig]
    ) -> None:
        """Where it must be stopped for that, it is: it is about to be started again, or is to be stopped anyway."""
        spec = placement.spec
        try:
            await saga.step(InstanceEngine.adjust, spec, there())
        except ActivityError as error:
            needs_stop = code_of(error) == NeedsStop.code
            if not needs_stop or placement.was_paused or not workflow.patched("heal-stops"):
                raise
            await saga.step(InstanceEngine.stop, StopRequest(spec=spec, grace_seconds=order.grace_seconds), there())
            await saga.step(InstanceEngine.adjust, spec, there())

    async def _pause(
        self, saga: Saga, placement: Placement, there: Callable[[], ActivityConfig]
    ) -> MachineState | None:
        """What lost its processes is paused with new ones."""
        spec = placement.spec
        try:
            await saga.step(InstanceEngine.pause, spec, there())
            return None
        except ActivityError as error:
            if code_of(error) != InstanceExited.code:
                raise
        facts = await saga.step(InstanceEngine.start, spec, there())
        await saga.step(InstanceEngine.pause, spec, there())
        return facts


@workflow.defn
class MoveInstance:
    """Make an instance's machine anew on another host. It never runs on both: where the old host can be
    reached, the old machine is stopped before the new one is started, and removed when that is ready."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> MachineState:
            undo = [Undo(InstanceRecords.stay, order, on_control())]
            facts, placement = await placed(saga, order, InstanceRecords.place_beside, make_beside, undo)
            await shielded(self._switch(saga, order, placement))
            return facts

        await carry_out(order, plan, settling(order))

    async def _switch(self, saga: Saga, order: Order, placement: Placement) -> None:
        # Without a deadline: a switch whose answer is late has happened all the same.
        await saga.commit(InstanceRecords.switch, order, on_control())
        if placement.leaves is None or placement.old_spec is None:
            return
        try:
            await saga.step(InstanceEngine.delete, placement.old_spec, on_host(placement.leaves, REMOVE))
        except ActivityError as error:
            # A leftover from the switch on: the host's next inventory shows it.
            workflow.logger.warning("left to the host's inventory: %s", error.cause)


async def make_beside(saga: Saga, order: Order, placement: Placement) -> MachineState:
    """Make the machine of ``placement``, and start it where it ran, beside or in place of its old one."""
    spec, host = placement.spec, host_of(placement)

    def there() -> ActivityConfig:
        return on_host(host, remaining(order), taken_up_within=SILENCE)

    spec = await ensure_image(saga, spec, there())
    # Where the new host is silent, what is left there has a generation that no row names; what is fenced is
    # stopped there by then.
    within = REMOVE + timedelta(seconds=placement.fence_seconds if spec.fenced else 0)
    remake = [Undo(InstanceEngine.delete, spec, on_host(host, within), may_fail=True)]
    if placement.leaves is not None and placement.old_spec is not None:
        left, old = placement.leaves, placement.old_spec
        # Where both hosts have one engine, the new machine takes the old one's place.
        remake.append(Undo(InstanceEngine.create, old, on_host(left, RESTORE)))
        if placement.was_running:
            request = StopRequest(spec=old, grace_seconds=order.grace_seconds)
            back = [ending(old, left), starting_again(old, left)]
            await saga.step(InstanceEngine.stop, request, on_host(left, remaining(order)), undo=back)
    made = await saga.step(InstanceEngine.create, spec, there(), undo=remake)
    if not placement.was_running:
        return ready(MachineState(engine_id=made, private_ip=None), spec)
    return ready(await saga.step(InstanceEngine.start, spec, there()), spec)


async def placed(
    saga: Saga,
    order: Order,
    place: Callable[[InstanceRecords, PlaceRequest], Placement],
    make: Callable[[Saga, Order, Placement], Awaitable[MachineState]],
    undo: Sequence[Undo] = (),
) -> tuple[MachineState, Placement]:
    """Place and make, and again where another placement may help. ``undo``: of all placements together."""
    request = PlaceRequest(order=order)
    while True:
        placement = await saga.step(place, request, on_control(remaining(order), poll=True), undo=undo)
        try:
            return await make(saga, order, placement), placement
        except ActivityError as error:
            request, undo = elsewhere(error, request, placement), ()


def elsewhere(error: ActivityError, request: PlaceRequest, placement: Placement) -> PlaceRequest:
    """How to place again after a step that another placement may help. Raises the error where none does."""
    port = taken_port(error)
    if port is not None and len(request.avoid_ports) < PORT_TRIES and port not in request.order.fixed_ports:
        return request.model_copy(update={"avoid_ports": [*request.avoid_ports, port]})
    if (was_silent(error) or is_fenced_off(error)) and remaining(request.order) > LEAST:
        return request.model_copy(update={"silent_host": placement.host})
    raise error


def was_silent(error: ActivityError) -> bool:
    """Whether nobody took the step up."""
    cause = error.cause
    return isinstance(cause, TimeoutError) and cause.type is TimeoutType.SCHEDULE_TO_START


def is_fenced_off(error: ActivityError) -> bool:
    """Whether the host takes steps and has lost its lease. Each try lasts a while: it waits for a new lease."""
    return code_of(error) == LeaseLapsed.code


def code_of(error: ActivityError) -> str | None:
    """The code of the error that stopped a step."""
    return error.cause.type if isinstance(error.cause, ApplicationError) else None


def taken_port(error: ActivityError) -> int | None:
    """The host port that the engine found taken, where that is why a step failed."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type == PortTaken.code and cause.details:
        port = cause.details[0].get("port")
        return port if isinstance(port, int) else None
    return None


def host_of(placement: Placement) -> str:
    if placement.host is None:
        raise ApplicationError("the instance is on no host", type="not_placed", non_retryable=True)
    return placement.host


PLANS = [ProvisionInstance, StartInstance, StopInstance, DeprovisionInstance, HealInstance, MoveInstance]
