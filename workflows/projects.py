"""The plan of a project's end."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from workflows.hosts import LOOK_AGAIN, LOOK_AGAIN_AT_MOST, move
from workflows.options import LEAST, continued, on_control, remaining
from workflows.saga import Saga, Settle, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.project_ends import ProjectEnd, ProjectEnds
    from model.workflows import Failure, Order, Outcome


@workflow.defn
class DeprovisionProject:
    """Delete everything in a project, a few at a time, and then the project. A cancel does not stop it.

    A long one goes on in a new run before its history is too long.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            pause = LOOK_AGAIN
            while True:
                step = await saga.step(ProjectEnds.next, order, on_control(remaining(order)))
                if step.deletions:
                    pause = LOOK_AGAIN
                    await asyncio.gather(*(move(child) for child in step.deletions))
                elif step.busy:
                    if remaining(order) <= LEAST:
                        raise _not_emptied(f"{step.busy} things are still worked on, and the time is over")
                    await workflow.sleep(pause)
                    pause = min(2 * pause, LOOK_AGAIN_AT_MOST)
                elif step.stuck:
                    raise _not_emptied(f"{step.left} could not be deleted: {', '.join(step.stuck)}")
                elif await saga.step(ProjectEnds.forget, order, on_control(remaining(order))):
                    return
                if workflow.info().is_continue_as_new_suggested():
                    # Between two rounds no child is open.
                    workflow.continue_as_new(continued(order))

        await carry_out(order, plan, _settling(order), cancellable=False)


def _not_emptied(why: str) -> ApplicationError:
    return ApplicationError(f"the project is not empty: {why}", type="not_emptied", non_retryable=True)


def _settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        ended = ProjectEnd(order=order, outcome=outcome, failure=failure)
        await call(ProjectEnds.settle, ended, "settle", on_control())

    return settle


PLANS = [DeprovisionProject]
