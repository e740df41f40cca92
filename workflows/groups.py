"""The plans of groups."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any
from uuid import UUID

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ChildWorkflowError, WorkflowAlreadyStartedError

from workflows.hosts import LOOK_AGAIN, LOOK_AGAIN_AT_MOST, attributes_of
from workflows.options import LEAST, continued, on_control, remaining
from workflows.saga import Saga, Settle, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.groups import GroupEnd, GroupRecords, Release
    from activities.runs import CONTROL
    from model.workflows import Failure, Order, Outcome

#: So many of those under way end before more are ordered: each round is a step, and reads all members.
REFILL = 4
#: However slow these are (one may drain for an hour), what happens to the others is seen after so long.
LOOK = timedelta(seconds=10)
#: So often members are asked to leave their balancers; where that fails so often, they are deleted all the same.
RELEASES = 3


@workflow.defn
class ScaleGroup:
    """Launch and delete members, some at a time, until the group is as it should be: more, fewer, others in the place
    of those that failed, or of another configuration.

    Called off, it begins nothing more; what is under way goes on by itself. A long one goes on in a new run before its
    history is too long.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        await carry_out(order, _Rounds(order).plan, _settling(order))


@workflow.defn
class DeprovisionGroup:
    """The same, until no member is left. A cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        await carry_out(order, _Rounds(order).plan, _settling(order), cancellable=False)


class _Rounds:
    """What a run has under way, round by round."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._known: set[UUID] = set()
        #: Children that the server does not know yet: one whose parent goes on in a new run by then never begins.
        self._beginning = 0
        self._open: list[asyncio.Task[bool] | asyncio.Task[None]] = []

    async def plan(self, saga: Saga) -> None:
        pause = LOOK_AGAIN
        while True:
            step = await saga.step(GroupRecords.next, self._order, on_control(remaining(self._order), poll=True))
            launches, removals = self._new(step.launches), self._new(step.removals)
            self._open += [asyncio.create_task(self._see_to(child)) for child in launches]
            if removals:
                self._open.append(asyncio.create_task(self._remove(removals)))
            if self._open:
                pause = LOOK_AGAIN
                await self._some_end()
            elif not (step.waits or step.launches or step.removals):
                if step.failure is not None:
                    raise ApplicationError(step.failure.message, type=step.failure.code, non_retryable=True)
                return
            elif remaining(self._order) <= LEAST:
                raise ApplicationError("the time for it is over", type="deadline_exceeded", non_retryable=True)
            else:
                await workflow.sleep(pause)
                pause = min(2 * pause, LOOK_AGAIN_AT_MOST)
            if workflow.info().is_continue_as_new_suggested():
                # What is under way goes on, and the new run sees how it ends: in the rows.
                await workflow.wait_condition(lambda: not self._beginning)
                workflow.continue_as_new(continued(self._order))

    def _new(self, children: list[Order]) -> list[Order]:
        """Those that this run does not have under way already: they come again until they have begun."""
        new = [child for child in children if child.workflow_id not in self._known]
        self._known |= {child.workflow_id for child in new}
        return new

    async def _some_end(self) -> None:
        """Or ``LOOK`` is over."""
        wanted = min(REFILL, len(self._open))
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: sum(task.done() for task in self._open) >= wanted, timeout=LOOK)
        ended = [task for task in self._open if task.done()]
        self._open = [task for task in self._open if task not in ended]
        for task in ended:
            task.result()

    async def _remove(self, removals: list[Order]) -> None:
        """Once nobody sends them anything any more."""
        release = Release(order=self._order, removals=removals)
        looks = tries = 0
        while tries < RELEASES:
            id = f"release-{removals[0].workflow_id}-{looks}"
            leaving = await call(GroupRecords.release, release, id, on_control(remaining(self._order), poll=True))
            looks += 1
            if not leaving:
                break
            if all(await asyncio.gather(*(self._see_to(child) for child in leaving))):
                tries += 1
            elif remaining(self._order) <= LEAST:
                break
            else:
                await workflow.sleep(LOOK_AGAIN)
        await asyncio.gather(*(self._see_to(child) for child in removals))

    async def _see_to(self, child: Order) -> bool:
        """One launch, deletion or change of a balancer, as a child that outlives its parent. How it ends is in its own
        row, and shows in the next round. False where it had begun without this run: it may not have ended."""
        self._beginning += 1
        try:
            handle = await workflow.start_child_workflow(
                child.kind,
                child,
                id=str(child.workflow_id),
                task_queue=CONTROL,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"{child.kind} {child.name}",
                search_attributes=attributes_of(child),
            )
        except WorkflowAlreadyStartedError:
            return False  # by a run before this one, or by the sweeper
        finally:
            self._beginning -= 1
        try:
            await handle
        except ChildWorkflowError as error:
            workflow.logger.warning("%s %s: %s", child.kind, child.name, error.cause)
        return True


def _settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        await call(GroupRecords.settle, GroupEnd(order=order, outcome=outcome, failure=failure), "settle", on_control())

    return settle


PLANS = [ScaleGroup, DeprovisionGroup]
