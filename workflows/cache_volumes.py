"""The plans of cache volumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

from workflows.options import REMOVE, on_control, on_host, remaining
from workflows.saga import Saga, Settle, call, carry_out, failure_of

with workflow.unsafe.imports_passed_through():
    from activities.cache_volume_ends import CacheVolumeEnd
    from activities.cache_volumes import CacheVolumeEngine, CacheVolumeRecords
    from model.cache_volumes import CacheHosts
    from model.workflows import Failure, Order, Outcome

#: Hosts that an error names.
NAMED = 5


def settling(order: Order, step: str) -> Settle:
    """``step``: what failed where several hosts say why."""

    async def settle(outcome: Outcome, failure: Failure | None, facts: Any, undone: bool) -> None:
        if failure is not None and failure.step is None and outcome == "failed":
            failure = failure.model_copy(update={"step": step})
        ended = CacheVolumeEnd(order=order, outcome=outcome, failure=failure)
        await call(CacheVolumeRecords.settle, ended, "settle", on_control())

    return settle


@workflow.defn
class ClearCacheVolume:
    """Empty it on every host where it is. Where one does not do it, that one is named; the others are empty."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            found = await saga.step(CacheVolumeRecords.claim, order, on_control(remaining(order), poll=True))
            failures = await _everywhere(saga, CacheVolumeEngine.clear, found, remaining(order))
            _check(failures)

        await carry_out(order, plan, settling(order, "cache_volume.clear"))


@workflow.defn
class DeprovisionCacheVolume:
    """Wait until the run in the way has ended, then remove it from every host. A cancel does not stop it.

    Forced, a host that does not answer is not waited for: its agent removes what is left.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            found = await saga.step(CacheVolumeRecords.claim, order, on_control(remaining(order), poll=True))
            within = REMOVE if order.force else remaining(order)
            failures = await _everywhere(saga, CacheVolumeEngine.remove, found, within)
            if not order.force:
                _check(failures)

        await carry_out(order, plan, settling(order, "cache_volume.remove"), cancellable=False)


async def _everywhere(
    saga: Saga, step: Callable[[Any, Any], None], found: CacheHosts, within: timedelta
) -> list[tuple[str, Failure]]:
    """The step on all hosts beside each other; those that did not do it, and why."""

    async def there(host: str) -> tuple[str, Failure] | None:
        try:
            await saga.step(step, found.spec, on_host(host, within))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return host, failure_of(error)
        return None

    # Every one is seen to its end, also where the run is called off meanwhile.
    ended = await asyncio.gather(*(there(host) for host in found.hosts), return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return [one for one in ended if isinstance(one, tuple)]


def _check(failures: list[tuple[str, Failure]]) -> None:
    """Raises ApplicationError, with the name of each host."""
    if failures:
        said = "; ".join(f"host {host}: {failure.message}" for host, failure in failures[:NAMED])
        more = f"; and {len(failures) - NAMED} more hosts" if len(failures) > NAMED else ""
        raise ApplicationError(f"{said}{more}", type=failures[0][1].code, non_retryable=True)


PLANS = [ClearCacheVolume, DeprovisionCacheVolume]
