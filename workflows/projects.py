"""The plans of a project's end, and of a user's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from workflows.hosts import LOOK_AGAIN, LOOK_AGAIN_AT_MOST, move
from workflows.options import LEAST, continued, on_control, remaining
from workflows.saga import Saga, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.project_ends import ProjectEnd, ProjectEnds
    from activities.rounds import Emptying
    from activities.user_ends import UserEnd, UserEnds
    from model.workflows import Failure, Order, Outcome


@workflow.defn
class DeprovisionProject:
    """Delete everything in a project, a few at a time, and then the project. A cancel does not stop it.

    A long one goes on in a new run before its history is too long.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await _empty(saga, order, ProjectEnds.next, "the project is not empty")
            while not await saga.step(ProjectEnds.forget, order, on_control(remaining(order))):
                await _empty(saga, order, ProjectEnds.next, "the project is not empty")

        async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
            ended = ProjectEnd(order=order, outcome=outcome, failure=failure)
            await call(ProjectEnds.settle, ended, "settle", on_control())

        await carry_out(order, plan, settle, cancellable=False)


@workflow.defn
class DeprovisionUser:
    """Delete the projects that nobody else owns, and then the user. A cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await _empty(saga, order, UserEnds.next, "the user has projects still")
            if not await saga.step(UserEnds.forget, order, on_control(remaining(order))):
                raise _not_emptied("the user was activated again, or owns another project since")

        async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
            ended = UserEnd(order=order, outcome=outcome, failure=failure)
            await call(UserEnds.settle, ended, "settle", on_control())

        await carry_out(order, plan, settle, cancellable=False)


async def _empty(saga: Saga, order: Order, next_round: Callable[..., Emptying], what: str) -> None:
    """Round by round, until nothing is left."""
    pause = LOOK_AGAIN
    while True:
        step = await saga.step(next_round, order, on_control(remaining(order)))
        if step.deletions:
            pause = LOOK_AGAIN
            await asyncio.gather(*(move(child) for child in step.deletions))
        elif step.busy:
            if remaining(order) <= LEAST:
                raise _not_emptied(f"{what}: {step.busy} things are still worked on, and the time is over")
            await workflow.sleep(pause)
            pause = min(2 * pause, LOOK_AGAIN_AT_MOST)
        elif step.stuck:
            raise _not_emptied(f"{what}: {step.left} could not be deleted: {', '.join(step.stuck)}")
        else:
            return
        if workflow.info().is_continue_as_new_suggested():
            # Between two rounds no child is open.
            workflow.continue_as_new(continued(order))


def _not_emptied(why: str) -> ApplicationError:
    return ApplicationError(why, type="not_emptied", non_retryable=True)


PLANS = [DeprovisionProject, DeprovisionUser]
