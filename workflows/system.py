"""System work: what nobody asked for, and everybody relies on."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.options import on_control

with workflow.unsafe.imports_passed_through():
    from activities.samples import SampleRecords
    from activities.sweeper import Sweeper

#: A pass that takes longer has been overtaken by the next.
PASS = timedelta(seconds=60)


@workflow.defn
class Tick:
    """The cheap checks, every few seconds."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(Sweeper.sweep, **on_control(PASS))


@workflow.defn
class CoarsenSamples:
    """Started by the tick where it is due."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(SampleRecords.coarsen, **on_control(PASS))


PLANS = [Tick, CoarsenSamples]
