"""The parts of the control worker that run cron jobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client
from temporalio.worker import Worker

from activities.cron_calls import CRON, CronCalls
from activities.cron_schedules import CronSchedules
from activities.interceptor import ActivityInterceptor
from activities.registry import methods
from model.keyring import Keyring
from model.metrics import STEPS_LIMIT
from model.settings import Settings

#: Requests to targets of cron jobs at once, of all projects.
AT_ONCE = 200
#: What the API notifies with.
CALLED = "cron"
#: Between two looks where something failed.
AGAIN_SECONDS = 2.0
log = structlog.get_logger()


def caller(client: Client, engine: Engine, keyring: Keyring | None, settings: Settings) -> Worker:
    """Its own queue, and its own number of slots: slow targets take none of the platform's."""
    STEPS_LIMIT.labels(CRON).set(AT_ONCE)
    return taking_up(client, CRON, CronCalls(engine, keyring, settings.outbound_allow), AT_ONCE)


async def look_when_called(schedules: CronSchedules, database_url: str) -> None:
    """See to what was accepted, at once; the tick covers what is missed here."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                await connection.execute("LISTEN cairn")
                async for notice in connection.notifies():
                    if notice.payload == CALLED:
                        await _look(schedules)
        except (psycopg.OperationalError, SQLAlchemyError) as error:
            log.info("cron.reconnecting", error=str(error).partition("\n")[0])
        await asyncio.sleep(1)


async def _look(schedules: CronSchedules) -> None:
    """Until nothing fails any more."""
    failed = await schedules.look()
    while failed:
        await asyncio.sleep(AGAIN_SECONDS)
        failed = await schedules.look()


def taking_up(client: Client, queue: str, calls: object, at_once: int) -> Worker:
    """A worker of one queue alone, for so many calls at once."""
    return Worker(
        client,
        task_queue=queue,
        activities=methods(calls),  # type: ignore[arg-type]
        max_concurrent_activities=at_once,
        interceptors=[ActivityInterceptor()],
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=5),
    )
