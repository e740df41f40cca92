"""The plans of a restore: looking at hosts, and what an operator decides about what was found there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from workflows.options import on_control, on_host, remaining
from workflows.saga import Saga, Settle, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.restores import Adoption, MachineSurvey, RestoreEnd, RestoreRecords
    from model.workflows import Failure, Order, Outcome

#: A look at a host that takes longer is given up; the next sweep asks for another.
PASS = timedelta(seconds=120)


def settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        await call(
            RestoreRecords.settle, RestoreEnd(order=order, outcome=outcome, failure=failure), "settle", on_control()
        )

    return settle


def gone(order: Order) -> ApplicationError:
    return ApplicationError(f"no host has a machine {order.resource_id}", type="not_found", non_retryable=True)


@workflow.defn
class SurveyHost:
    """Write down all that a host holds of ours."""

    @workflow.run
    async def run(self, host: str) -> None:
        asked_at = workflow.now()
        survey = await workflow.execute_activity_method(MachineSurvey.survey, None, **on_host(host, PASS))
        noted = survey.model_copy(update={"asked_at": asked_at})
        await workflow.execute_activity_method(RestoreRecords.note, noted, **on_control(PASS))


@workflow.defn
class AdoptInstance:
    """Look at the machine once more, and make its row of what it is now. It is not touched."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            about = await saga.step(RestoreRecords.claim, order, on_control(remaining(order)))
            if about.host is None:
                raise gone(order)
            survey = await saga.step(MachineSurvey.survey, order.resource_id, on_host(about.host, remaining(order)))
            adoption = Adoption(order=order, host=about.host, machines=survey.machines)
            await saga.step(RestoreRecords.adopt, adoption, on_control(remaining(order)))

        await carry_out(order, plan, settling(order))


@workflow.defn
class DiscardMachine:
    """Remove the machine that the operator has named, and look at its host again."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            about = await saga.step(RestoreRecords.claim, order, on_control(remaining(order)))
            if about.host is None or about.machine is None:
                raise gone(order)
            await saga.step(MachineSurvey.discard, about.machine, on_host(about.host, remaining(order)))
            asked_at = workflow.now()
            survey = await saga.step(MachineSurvey.survey, None, on_host(about.host, remaining(order)))
            noted = survey.model_copy(update={"asked_at": asked_at})
            await saga.step(RestoreRecords.note, noted, on_control(remaining(order)))

        await carry_out(order, plan, settling(order))


@workflow.defn
class ForgetDifference:
    """End an instance, a row or a run that is no more."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await saga.step(RestoreRecords.claim, order, on_control(remaining(order)))
            await saga.step(RestoreRecords.forget, order, on_control(remaining(order)))

        await carry_out(order, plan, settling(order))


@workflow.defn
class FinishRestore:
    """The platform works as before, if nothing is undecided."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await saga.step(RestoreRecords.claim, order, on_control(remaining(order)))
            await saga.step(RestoreRecords.finish, order, on_control(remaining(order)))

        await carry_out(order, plan, settling(order))


PLANS = [SurveyHost, AdoptInstance, DiscardMachine, ForgetDifference, FinishRestore]
