"""System work: what nobody asked for, and everybody relies on."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.options import on_control, on_host

with workflow.unsafe.imports_passed_through():
    from activities.hosts import HostEngine, HostRecords
    from activities.sweeper import Sweeper

#: A pass that takes longer has been overtaken by the next.
PASS = timedelta(seconds=60)
ROUNDS = 3


@workflow.defn
class Tick:
    """The cheap checks, every few seconds."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(Sweeper.sweep, **on_control(PASS))


@workflow.defn
class ReconcileHost:
    """Compare what a host holds with what it should hold; remove leftovers, and see that they are gone."""

    @workflow.run
    async def run(self, host: str) -> None:
        inventory = await workflow.execute_activity_method(HostEngine.inventory, [], **on_host(host, PASS))
        for _ in range(ROUNDS):
            leftovers = await workflow.execute_activity_method(HostRecords.reconcile, inventory, **on_control(PASS))
            if not leftovers:
                return
            inventory = await workflow.execute_activity_method(HostEngine.inventory, leftovers, **on_host(host, PASS))


PLANS = [Tick, ReconcileHost]
