"""The part of the control worker that delivers events to webhooks."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.due_webhooks import start_due
from activities.interceptor import ActivityInterceptor
from activities.registry import methods
from activities.webhooks import WEBHOOKS, Limits, WebhookCalls
from model.keyring import Keyring
from model.metrics import STEPS_LIMIT
from model.settings import Settings

#: Rounds of deliveries at once, of all projects: each waits for a receiver, and costs a connection.
AT_ONCE = 200
#: Events that come one after the other are looked for together; again when it is quiet, as one may have waited for
#: an older transaction.
TOGETHER_SECONDS, QUIET_SECONDS = 0.2, 1.0
#: What the API notifies with, where a run that waits is to look again.
CALLED = "webhook"
log = structlog.get_logger()


def caller(client: Client, engine: Engine, settings: Settings, keyring: Keyring | None) -> Worker:
    """Its own queue, and its own number of slots: slow receivers take none of the platform's."""
    STEPS_LIMIT.labels(WEBHOOKS).set(AT_ONCE)
    limits = Limits(settings.webhook_attempts, settings.webhook_retry_seconds, settings.outbound_allow)
    return Worker(
        client,
        task_queue=WEBHOOKS,
        activities=methods(WebhookCalls(engine, limits, keyring)),  # type: ignore[arg-type]
        max_concurrent_activities=AT_ONCE,
        interceptors=[ActivityInterceptor()],
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=5),
    )


async def deliver_when_called(engine: Engine, client: Client, database_url: str) -> None:
    """Look for what is due when something was committed; the tick covers what is missed here."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                await connection.execute("LISTEN cairn")
                quiet = True
                while True:
                    heard = [
                        notice.payload
                        async for notice in connection.notifies(timeout=None if quiet else QUIET_SECONDS, stop_after=1)
                    ]
                    if heard:
                        heard += [n.payload async for n in connection.notifies(timeout=TOGETHER_SECONDS)]
                    quiet = not heard
                    await asyncio.wait_for(start_due(engine, client, wake=CALLED in heard), QUIET_SECONDS * 5)
        except (psycopg.OperationalError, SQLAlchemyError, RPCError, TimeoutError) as error:
            log.info("webhooks.reconnecting", error=str(error).partition("\n")[0])
        await asyncio.sleep(1)
