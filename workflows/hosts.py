"""The plans of hosts."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError, ChildWorkflowError

from workflows.options import LEAST, continued, on_control, on_host, remaining
from workflows.saga import Saga, Settle, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.drains import DrainEnd, HostDrains
    from activities.hosts import HostEngine, HostRecords
    from activities.runs import CONTROL, NAME, PROJECT, RESOURCE
    from model.workflows import Failure, Order, Outcome

#: A pass that takes longer has been overtaken by the next.
PASS = timedelta(seconds=60)
ROUNDS = 3
#: Between two looks at instances that something else works on: doubled until it is the longest.
LOOK_AGAIN, LOOK_AGAIN_AT_MOST = timedelta(seconds=2), timedelta(seconds=30)


@workflow.defn
class ReconcileHost:
    """Compare what a host holds with what it should hold; remove leftovers, and see that they are gone."""

    @workflow.run
    async def run(self, host: str) -> None:
        asked_at = workflow.now()
        inventory = await workflow.execute_activity_method(HostEngine.inventory, [], **on_host(host, PASS))
        for _ in range(ROUNDS):
            inventory = inventory.model_copy(update={"asked_at": asked_at})
            leftovers = await workflow.execute_activity_method(HostRecords.reconcile, inventory, **on_control(PASS))
            if not leftovers:
                return
            asked_at = workflow.now()
            inventory = await workflow.execute_activity_method(HostEngine.inventory, leftovers, **on_host(host, PASS))


@workflow.defn
class DrainHost:
    """Move everything that is on a host elsewhere, a few at a time. Cancelled, the moves under way are undone.

    A long one goes on in a new run before its history is too long.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            pause = LOOK_AGAIN
            while True:
                step = await saga.step(HostDrains.next, order, on_control(remaining(order)))
                if step.moves:
                    pause = LOOK_AGAIN
                    # All of them are seen to their end, also when the drain is called off.
                    ended = await asyncio.gather(*(move(child) for child in step.moves), return_exceptions=True)
                    for problem in ended:
                        if isinstance(problem, BaseException):
                            raise problem
                elif step.busy and remaining(order) > LEAST:
                    await workflow.sleep(pause)
                    pause = min(2 * pause, LOOK_AGAIN_AT_MOST)
                elif step.busy:
                    raise ApplicationError(
                        f"{step.busy} instances are still worked on, and the time for the drain is over",
                        type="deadline_exceeded",
                        non_retryable=True,
                    )
                elif step.stuck:
                    names = ", ".join(step.stuck[:10])
                    raise ApplicationError(
                        f"{len(step.stuck)} instances could not be moved and are still there: {names}",
                        type="not_drained",
                        non_retryable=True,
                    )
                else:
                    return
                if workflow.info().is_continue_as_new_suggested():
                    # Between two rounds nothing is open: no child, no undo.
                    workflow.continue_as_new(continued(order))

        await carry_out(order, plan, _settling(order))


async def move(order: Order) -> None:
    """One move, or deletion, as a child. Its failure is in its own row, and shows in the next round."""
    try:
        await as_child(order)
    except ChildWorkflowError as error:
        if workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError from error
        workflow.logger.warning("move failed: %s", error.cause)


async def as_child(order: Order) -> None:
    """Run this as a part of the plan at hand, to its end."""
    await workflow.execute_child_workflow(
        order.kind,
        order,
        id=str(order.workflow_id),
        task_queue=CONTROL,
        cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
        parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
        static_summary=f"{order.kind} {order.name}",
        search_attributes=attributes_of(order),
    )


def attributes_of(order: Order) -> TypedSearchAttributes:
    """What the run of a child is found by."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(PROJECT, str(order.project_id)),
            SearchAttributePair(RESOURCE, str(order.resource_id)),
            SearchAttributePair(NAME, order.name),
        ]
    )


def _settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        await call(HostDrains.settle, DrainEnd(order=order, outcome=outcome, failure=failure), "settle", on_control())

    return settle


PLANS = [ReconcileHost, DrainHost]
