"""The plans of load balancers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ChildWorkflowError, FailureError

from workflows.hosts import as_child, move
from workflows.options import RESTORE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, call, carry_out, shielded

with workflow.unsafe.imports_passed_through():
    from activities.balancer_ends import BalancerEnd, BalancerFacts
    from activities.balancers import BalancerEngine, BalancerRecords, Configuration
    from model.balancers import DrainRequest
    from model.workflows import Failure, Order, Outcome

#: How long a drain may take to be asked, beside the time that it has.
ASK = timedelta(seconds=30)


def settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        ended = BalancerEnd(order=order, outcome=outcome, failure=failure, facts=facts)
        await call(BalancerRecords.settle, ended, "settle", on_control())

    return settle


@workflow.defn
class ProvisionLoadBalancer:
    """Launch its proxy, and tell that what it is to do. Where one of both fails, the proxy goes again."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> BalancerFacts | None:
            launch = await saga.step(BalancerRecords.claim, order, on_control(remaining(order)))
            try:
                if launch is not None:
                    await carried_out(launch)
                return (await configured(saga, order))[1]
            except (asyncio.CancelledError, FailureError):
                await shielded(self._take_back(order))
                raise

        await carry_out(order, plan, settling(order))

    async def _take_back(self, order: Order) -> None:
        try:
            doomed = await call(BalancerRecords.remove, order, "undo-proxy", on_control(RESTORE, poll=True))
            if doomed is not None:
                await move(doomed)
        except FailureError as error:
            # The balancer is in error then, and its delete removes what is left.
            workflow.logger.error("not taken back: %s", error.cause)


@workflow.defn
class UpdateLoadBalancer:
    """Tell its proxy what has changed. Targets that leave take nothing new first, and are out when they have ended what
    they had begun, or had their time for it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> BalancerFacts | None:
            told, facts = await configured(saga, order)
            if not told.draining:
                return facts
            if told.spec is not None:
                time = timedelta(seconds=told.settings.drain_seconds)
                request = DrainRequest(machine=told.spec.machine, servers=told.draining, until=workflow.now() + time)
                await saga.step(BalancerEngine.drain, request, on_host(told.host, time + ASK))
            await saga.step(BalancerRecords.drained, order, on_control(remaining(order)))
            return (await configured(saga, order))[1] or facts

        await carry_out(order, plan, settling(order))


@workflow.defn
class DeprovisionLoadBalancer:
    """Wait until the runs in the way have ended, then delete its proxy. A cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            doomed = await saga.step(BalancerRecords.remove, order, on_control(remaining(order), poll=True))
            if doomed is not None:
                await carried_out(doomed)

        await carry_out(order, plan, settling(order), cancellable=False)


async def configured(saga: Saga, order: Order) -> tuple[Configuration, BalancerFacts | None]:
    """Have the proxy run with what is wanted by now; what it was told, and what it has made of that."""
    told = await saga.step(BalancerRecords.configure, order, on_control(remaining(order), poll=True))
    if told.spec is None:
        return told, None
    applied = await saga.step(BalancerEngine.apply, told.spec, on_host(told.host, remaining(order)))
    facts = BalancerFacts(applied=applied, revision=told.spec.revision, digest=told.digest, settings=told.settings)
    return told, facts


async def carried_out(child: Order) -> None:
    """A part of the plan, as a child; its failure is the plan's."""
    try:
        await as_child(child)
    except ChildWorkflowError as error:
        if isinstance(error.cause, ApplicationError):
            cause = error.cause
            raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from error
        raise


PLANS = [ProvisionLoadBalancer, UpdateLoadBalancer, DeprovisionLoadBalancer]
