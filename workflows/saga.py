"""How every plan runs: steps that can be undone, and one end.

``carry_out`` runs a plan and settles its row, whatever happens. ``Saga.step`` runs one step of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    TimeoutError,
    is_cancelled_exception,
)
from temporalio.workflow import ActivityConfig

with workflow.unsafe.imports_passed_through():
    from model.workflows import Failure, Order, Outcome

R = TypeVar("R")


class Undo(NamedTuple):
    """What takes a step back. ``may_fail``: what is left of it is removed later, by its generation."""

    method: Callable[..., Any]
    arg: Any
    config: ActivityConfig
    may_fail: bool = False
    #: Where it fails: what leads to a known state all the same, another than before.
    otherwise: Undo | None = None


#: ``settle(outcome, failure, facts, undone)``: ``facts`` is what the plan answered, or its undos; ``undone`` False: an
#: ``otherwise`` was carried out instead of an undo.
Settle = Callable[[Outcome, Failure | None, Any, bool], Awaitable[None]]
CANCELLED = Failure(code="cancelled", message="the workflow was cancelled")


class Saga:
    """The undos of one run, newest last."""

    def __init__(self, *, cancellable: bool = True) -> None:
        self.cancellable = cancellable
        self._undos: list[Undo] = []
        self._count = 0

    async def step(
        self, method: Callable[[Any, Any], R], arg: Any, config: ActivityConfig, *, undo: Sequence[Undo] = ()
    ) -> R:
        """Run one step. Its undo (in the order it runs) is registered before it: a step that failed may have
        done something.

        An activity that ends normally swallows a cancel that came meanwhile; it is raised here.
        """
        self._undos.extend(reversed(undo))
        self._count += 1
        result = await call(method, arg, f"step-{self._count}", config)
        if self.cancellable and workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError
        return result

    async def commit(self, method: Callable[[Any, Any], R], arg: Any, config: ActivityConfig) -> R:
        """A step after which there is no way back: nothing before it is undone, and no cancel is heard any more.

        The caller shields it, and what follows. One that was refused has not happened: all is as before it.
        """
        before, self.cancellable = self.cancellable, False
        try:
            result = await self.step(method, arg, config)
        except FailureError:
            self.cancellable = before
            raise
        self._undos.clear()
        return result

    async def unwind(self) -> tuple[str | None, Any, bool]:
        """Undo what was done, newest first. One that fails does not stop the others.

        Why the first of them failed, the last answer that said anything (what there is now), and whether no
        ``otherwise`` was carried out.
        """
        failed, facts, undone = None, None, True
        for number, undo in enumerate(reversed(self._undos), 1):
            try:
                answered = await call(undo.method, undo.arg, f"undo-{number}", undo.config)
                facts = facts if answered is None else answered
            except ActivityError as error:
                workflow.logger.error("undo failed: %s", error.cause)
                if not undo.may_fail:
                    failed = failed or failure_of(error).message
                if undo.otherwise is not None:
                    undone = undone and not await self._instead(undo.otherwise, f"undo-{number}-otherwise")
        self._undos.clear()
        return failed, facts, undone

    async def _instead(self, otherwise: Undo, id: str) -> bool:
        if not workflow.patched("undo-otherwise"):
            return True  # runs of before counted on it
        try:
            await call(otherwise.method, otherwise.arg, id, otherwise.config)
            return True
        except ActivityError as error:
            workflow.logger.error("undo failed: %s", error.cause)
            return False


async def call(method: Callable[[Any, Any], R], arg: Any, id: str, config: ActivityConfig) -> R:
    """Run an activity under an id that says what it is in the run: step-N, undo-N, settle."""
    result: R = await workflow.execute_activity(method, arg, activity_id=id, **config)  # type: ignore[call-overload]
    return result


async def carry_out(
    order: Order, plan: Callable[[Saga], Coroutine[Any, Any, Any]], settle: Settle, *, cancellable: bool = True
) -> None:
    """Run the plan, then settle it as completed; on failure or cancel undo it, settle that, and raise.

    The end is shielded from cancels; so is the plan where it is not ``cancellable``. Once a cancel is asked
    for, nothing is tried again, so whatever ends the plan then (a lost answer, a worker's death) is that cancel.
    """
    saga = Saga(cancellable=cancellable)
    try:
        facts = await (plan(saga) if cancellable else shielded(plan(saga)))
    except (asyncio.CancelledError, FailureError) as error:
        failure = failure_of(error)
        if failure.code == "run_ended":
            raise
        cancelled = is_cancelled_exception(error) or (saga.cancellable and workflow.cancellation_reason() is not None)
        if cancelled:
            failure = CANCELLED

        async def give_up() -> None:
            left, facts, undone = await saga.unwind()
            said = f"{failure.message}; it could not be undone: {left}" if left else failure.message
            outcome: Outcome = "cancelled" if cancelled else "failed"
            await settle(outcome, failure.model_copy(update={"message": said}), facts, undone)

        await shielded(give_up())
        if cancelled:
            raise asyncio.CancelledError from error
        raise ApplicationError(failure.message, type=failure.code, non_retryable=True) from error
    await shielded(settle("completed", None, facts, True))


async def shielded(work: Awaitable[R]) -> R:
    """Finish ``work`` though the workflow is cancelled meanwhile. (It is cancelled at most once.)"""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        return await task


def failure_of(error: BaseException) -> Failure:
    """What a user is told: the root cause, and the step that it stopped."""
    if is_cancelled_exception(error):
        return CANCELLED
    step = error.activity_type if isinstance(error, ActivityError) else None
    cause: BaseException | None = error.cause if isinstance(error, ActivityError) else error
    late = False
    while isinstance(cause, TimeoutError) and cause.cause is not None:
        late, cause = True, cause.cause
    if isinstance(cause, TimeoutError):
        return Failure(
            code="deadline_exceeded",
            message=f"{step} did not finish in time ({cause.type.name.lower() if cause.type else 'time-out'})",
            step=step,
        )
    late = late or (
        isinstance(error, ActivityError) and isinstance(cause, ApplicationError) and not cause.non_retryable
    )
    code = cause.type if isinstance(cause, ApplicationError) and cause.type else "internal"
    message = cause.message if isinstance(cause, FailureError) else str(cause)
    if late:
        message = f"gave up at the deadline; last error: {message}"
    return Failure(code=code, message=message, step=step)
