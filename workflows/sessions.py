"""The plans of work sessions. Their sandboxes are launched, stopped and deleted by children of theirs."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

from workflows.balancers import carried_out
from workflows.hosts import move
from workflows.options import REMOVE, RESTORE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, Undo, call, carry_out, shielded

with workflow.unsafe.imports_passed_through():
    from activities.commits import CommitEngine, CommitRecords, Committed
    from activities.instances import InstanceEngine
    from activities.session_ends import SessionEnd
    from activities.sessions import Sandbox, SessionEngine, SessionRecords
    from model.pools import Join
    from model.workflows import Failure, Order, Outcome


def settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        ended = SessionEnd(order=order, outcome=outcome, failure=failure)
        await call(SessionRecords.settle, ended, "settle", on_control())

    return settle


@workflow.defn
class InitSession:
    """Make its files, then launch its sandbox on them; or bring them into the sandbox that it has claimed, and see that
    this runs. Where one of both fails, both go again."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            begun: Sandbox | None = None
            try:
                begun = await saga.step(SessionRecords.begin, order, on_control(remaining(order)))
                if begun.host is not None and begun.warm is not None:
                    join = Join(tree=begun.tree, spec=begun.warm)
                    await saga.step(SessionEngine.join, join, on_host(begun.host, remaining(order)))
                    await saga.step(InstanceEngine.start, begun.warm, on_host(begun.host, remaining(order)))
                    return
                if begun.host is not None:
                    await saga.step(SessionEngine.prepare, begun.tree, on_host(begun.host, remaining(order)))
                launch = await saga.step(SessionRecords.launch, order, on_control(remaining(order)))
                if launch is not None:
                    await carried_out(launch)
            except (asyncio.CancelledError, FailureError):
                # A cancel may come before the first step has answered: what was claimed for the session is its own.
                if begun is not None or workflow.patched("taken-back-from-the-first-step"):
                    await shielded(self._take_back(order))
                raise

        await carry_out(order, plan, settling(order))

    async def _take_back(self, order: Order) -> None:
        try:
            doomed = await call(SessionRecords.remove, order, "undo-sandbox", on_control(RESTORE, poll=True))
            if doomed is None:
                return
            if doomed.change is not None:
                await move(doomed.change)
            if doomed.host is not None:
                await call(SessionEngine.discard, doomed.tree, "undo-files", on_host(doomed.host, REMOVE))
        except FailureError as error:
            # The session is in error then, and its delete removes what is left.
            workflow.logger.error("not taken back: %s", error.cause)


@workflow.defn
class StopSession:
    @workflow.run
    async def run(self, order: Order) -> None:
        await changed(order)


@workflow.defn
class StartSession:
    @workflow.run
    async def run(self, order: Order) -> None:
        await changed(order)


@workflow.defn
class CommitSession:
    """Write its files as a commit, then let the workspace be at that: from there on there is no way back."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            begun = await saga.step(CommitRecords.begin, order, on_control(remaining(order), poll=True))
            there = on_host(begun.host, remaining(order))
            undo = [Undo(CommitEngine.discard, begun.spec, on_host(begun.host, REMOVE), may_fail=True)]
            commit = await saga.step(CommitEngine.write, begun.spec, there, undo=undo)
            if commit is not None:
                committed = Committed(order=order, spec=begun.spec, commit=commit)
                await shielded(self._advance(saga, begun.host, committed))

        await carry_out(order, plan, settling(order))

    async def _advance(self, saga: Saga, host: str, committed: Committed) -> None:
        # Without a deadline: one whose answer is late has happened all the same.
        await saga.commit(CommitRecords.advance, committed, on_control())
        try:
            await saga.step(CommitEngine.publish, committed, on_host(host, RESTORE))
        except ActivityError as error:
            # The next commit moves the branch to where it is then.
            workflow.logger.error("branch not moved: %s", error.cause)


@workflow.defn
class DeprovisionSession:
    """Wait until the runs in the way have ended, delete its sandbox, then its files. A cancel does not stop it.

    Forced, a host that does not answer is not waited for: its agent removes what is left.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            doomed = await saga.step(SessionRecords.remove, order, on_control(remaining(order), poll=True))
            if doomed is None:
                raise RuntimeError("nobody takes a delete over")
            if doomed.change is not None:
                await carried_out(doomed.change)
            if doomed.host is None:
                return
            within = REMOVE if order.force else remaining(order)
            try:
                await saga.step(SessionEngine.discard, doomed.tree, on_host(doomed.host, within))
            except ActivityError:
                if not order.force:
                    raise

        await carry_out(order, plan, settling(order), cancellable=False)


async def changed(order: Order) -> None:
    """Stop or start its sandbox; a part that is called off is as it was before."""

    async def plan(saga: Saga) -> None:
        part = await saga.step(SessionRecords.change, order, on_control(remaining(order), poll=True))
        if part is not None:
            await carried_out(part)

    await carry_out(order, plan, settling(order))


PLANS = [InitSession, StopSession, StartSession, CommitSession, DeprovisionSession]
