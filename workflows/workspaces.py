"""The plans of workspaces."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.options import REMOVE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, Undo, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.workspace_ends import WorkspaceEnd
    from activities.workspaces import Placed, WorkspaceEngine, WorkspaceRecords
    from model.workflows import Failure, Order, Outcome
    from model.workspaces import WorkspaceFacts

#: In which an agent that starts again takes a fetch up; one that does not is away. There is no other host to go to.
BACK = timedelta(minutes=2)


def settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        ended = WorkspaceEnd(order=order, outcome=outcome, failure=failure, facts=facts)
        await call(WorkspaceRecords.settle, ended, "settle", on_control())

    return settle


@workflow.defn
class InitWorkspace:
    """Choose a host, and bring the source there. Where that fails, nothing of it is left."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> WorkspaceFacts:
            host, placed = await _placed(saga, order)
            there = on_host(host, remaining(order), taken_up_within=BACK)
            undo = [Undo(WorkspaceEngine.remove, placed.spec, on_host(host, REMOVE), may_fail=True)]
            return await saga.step(WorkspaceEngine.bring, placed.spec, there, undo=undo)

        await carry_out(order, plan, settling(order))


@workflow.defn
class SyncWorkspace:
    """Bring the source anew, beside what is there. Where that fails, all is as it was before."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> WorkspaceFacts:
            host, placed = await _placed(saga, order)
            there = on_host(host, remaining(order), taken_up_within=BACK)
            return await saga.step(WorkspaceEngine.bring, placed.spec, there)

        await carry_out(order, plan, settling(order))


@workflow.defn
class DeprovisionWorkspace:
    """Wait until the run in the way has ended, then remove the files. A cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await saga.step(WorkspaceRecords.claim, order, on_control(remaining(order), poll=True))
            placed = await saga.step(WorkspaceRecords.place, order, on_control(remaining(order)))
            if placed.host is None:
                return
            try:
                within = REMOVE if order.force else remaining(order)
                await saga.step(WorkspaceEngine.remove, placed.spec, on_host(placed.host, within))
            except ActivityError:
                # The host's agent finds what is left when it is back: no row names it any more.
                if not order.force:
                    raise

        await carry_out(order, plan, settling(order), cancellable=False)


async def _placed(saga: Saga, order: Order) -> tuple[str, Placed]:
    await saga.step(WorkspaceRecords.claim, order, on_control(remaining(order), poll=True))
    placed = await saga.step(WorkspaceRecords.place, order, on_control(remaining(order), poll=True))
    if placed.host is None:
        raise RuntimeError("a workspace that is fetched has a host")
    return placed.host, placed


PLANS = [InitWorkspace, SyncWorkspace, DeprovisionWorkspace]
