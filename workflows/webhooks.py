"""The plan of webhooks."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

from temporalio import workflow

from workflows.options import on_control, on_webhooks

with workflow.unsafe.imports_passed_through():
    from activities.webhooks import WebhookCalls, WebhookRecords
    from model.webhooks import WebhookRef

#: Rounds of one history: some events each.
ROUNDS = 200


@workflow.defn
class DeliverWebhook:
    """Deliver to one webhook what is pending, in order, until nothing is. Started by the tick where there is
    something; what it needs is in rows, so one that is lost costs a tick."""

    def __init__(self) -> None:
        self._called = False

    @workflow.signal
    def look(self) -> None:
        """Something may be due sooner than it was."""
        self._called = True

    @workflow.run
    async def run(self, webhook: WebhookRef) -> None:
        for _ in range(ROUNDS):
            self._called = False
            batch = await workflow.execute_activity_method(WebhookRecords.take, webhook, **on_control())
            if not batch.deliveries:
                return
            wait = batch.wait
            if not wait:
                wait = await workflow.execute_activity_method(WebhookCalls.deliver, batch, **on_webhooks())
            if wait:
                with contextlib.suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(lambda: self._called, timeout=timedelta(seconds=wait))
        workflow.continue_as_new(webhook)


PLANS = [DeliverWebhook]
