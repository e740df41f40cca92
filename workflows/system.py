"""System work: what nobody asked for, and everybody relies on."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.options import on_control

with workflow.unsafe.imports_passed_through():
    from activities.audit import AuditRecords
    from activities.purge import PurgeRecords
    from activities.quotas import QuotaRecords
    from activities.reencryption import SecretRecords
    from activities.samples import SampleRecords
    from activities.sweeper import Sweeper

#: A pass that takes longer has been overtaken by the next.
PASS = timedelta(seconds=60)
#: A pass of the purge bounds itself; the rest of the time is for those that were interrupted.
PURGE, PURGES = timedelta(minutes=15), 20


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


@workflow.defn
class SealAudit:
    """Started by the tick where there are rows that no chain has. What is left after some passes is the next one's."""

    @workflow.run
    async def run(self) -> None:
        for _ in range(PURGES):
            done = await workflow.execute_activity_method(AuditRecords.seal, **on_control(PASS))
            if not done.more:
                return


@workflow.defn
class Purge:
    """Started by its schedule. What is not through after some passes is left to the next."""

    @workflow.run
    async def run(self) -> None:
        for _ in range(PURGES):
            done = await workflow.execute_activity_method(PurgeRecords.purge, **on_control(PURGE))
            if not done.more:
                return


@workflow.defn
class CompareQuotas:
    """Started by its schedule."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(QuotaRecords.compare, **on_control(PASS))


@workflow.defn
class ReencryptSecrets:
    """Started by the tick where something lies under an older master key. What is not through, a later tick starts."""

    @workflow.run
    async def run(self) -> None:
        for _ in range(PURGES):
            done = await workflow.execute_activity_method(SecretRecords.reencrypt, **on_control(PURGE))
            if not done.more:
                return


PLANS = [Tick, CoarsenSamples, SealAudit, Purge, CompareQuotas, ReencryptSecrets]
