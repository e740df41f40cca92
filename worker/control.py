"""The control worker: plans, steps on the database, the sweeper. Program ``cairn-control``."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta

import psycopg
import structlog
import uvloop
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.audit import AuditRecords
from activities.balancers import BalancerRecords
from activities.cache_volumes import CacheVolumeRecords
from activities.chats import ChatRecords
from activities.commits import CommitRecords
from activities.cron import CronRecords
from activities.cron_schedules import CronSchedules
from activities.drains import HostDrains
from activities.figures import Platform
from activities.fleet import Limits
from activities.groups import GroupRecords
from activities.hosts import HostRecords
from activities.image_records import ImageLimits, ImageRecords
from activities.instances import InstanceRecords
from activities.interceptor import ActivityInterceptor
from activities.placement import Capacity
from activities.project_ends import ProjectEnds
from activities.purge import PurgeRecords, Retention
from activities.quotas import QuotaRecords
from activities.reencryption import SecretRecords
from activities.registry import methods
from activities.restores import RestoreRecords
from activities.runs import CONTROL, Histories
from activities.samples import SampleRecords
from activities.sessions import SessionRecords
from activities.sweeper import LOST_AFTER, Sweeper
from activities.user_ends import UserEnds
from activities.webhooks import WebhookRecords
from activities.workspaces import WorkspaceRecords
from model import logs
from model.keyring import Keyring
from model.metrics import STEPS_LIMIT
from model.settings import Settings, of_process
from worker import blob_store, cron, images, metrics, tracing, webhooks
from worker.database import connect as connect_database
from worker.requirements import show_that_it_works, wait_for_namespace, wait_for_schema
from worker.schedules import declare
from worker.temporal_client import connect
from workflows.plans import PLANS

THREADS = 16
CLOCK_SECONDS = 2.0
log = structlog.get_logger()


def main() -> None:
    settings = of_process()
    logs.configure(settings.log_level, settings.log_format, "control", settings.log_limit)
    tracing.start(settings, "control")
    # On a connection of its own: steps use all of the others.
    figures = connect_database(settings.database, 1)
    stop_metrics = metrics.serve(settings, "control", Platform(figures).figures())
    try:
        uvloop.run(run(settings))
    finally:
        stop_metrics()
        figures.dispose()
        tracing.stop()


async def run(settings: Settings) -> None:
    engine = connect_database(settings.database, THREADS)
    await wait_for_schema(engine)
    client = await connect(settings, runtime=metrics.temporal_runtime(settings))
    await wait_for_namespace(client)
    histories = Histories(client, asyncio.get_running_loop())
    blobs = blob_store.connect(settings)
    blobs.sweep()
    image_limits = ImageLimits(
        most_bytes=settings.image_max_bytes,
        most_unpacked_bytes=settings.image_max_unpacked_bytes,
        cache_days=settings.image_cache_days,
    )
    capacity = Capacity(
        port_range=settings.port_range,
        overcommit_cpu=settings.overcommit_cpu,
        overcommit_memory=settings.overcommit_memory,
        fence_after=settings.fence_after,
    )
    keyring = Keyring(settings.master_keys.get_secret_value()) if settings.master_keys else None
    limits = Limits(
        reconcile_interval=settings.reconcile_interval,
        fence_after=settings.fence_after,
        deadline_launch=settings.deadline_launch,
        capacity=capacity,
        stop_grace=settings.stop_grace,
        tick_seconds=settings.tick_seconds,
        deadline_stop=settings.deadline_stop,
        deadline_delete=settings.deadline_delete,
        deadline_balancer=settings.deadline_balancer,
        newest_key=None if keyring is None else keyring.newest,
    )
    sweeper = Sweeper(engine, client, limits, image_limits, keyring)
    cron_schedules = CronSchedules(engine, client)
    image_records = ImageRecords(engine, histories, blobs, image_limits, settings.outbound_allow, keyring)
    records = [
        InstanceRecords(engine, capacity, histories, keyring),
        HostRecords(engine, limits),
        HostDrains(engine, histories, limits),
        ProjectEnds(engine, histories, limits),
        UserEnds(engine, histories),
        GroupRecords(engine, histories, limits),
        BalancerRecords(engine, histories, limits, keyring),
        SessionRecords(engine, histories, limits),
        CommitRecords(engine),
        ChatRecords(engine),
        SampleRecords(engine),
        AuditRecords(engine, keyring),
        PurgeRecords(engine, retention_of(settings)),
        QuotaRecords(engine),
        image_records,
        WorkspaceRecords(engine, histories, keyring),
        CacheVolumeRecords(engine, histories),
        sweeper,
        WebhookRecords(engine),
        RestoreRecords(engine, client, asyncio.get_running_loop()),
        SecretRecords(engine, keyring),
        CronRecords(engine),
        cron_schedules,
    ]
    STEPS_LIMIT.labels(CONTROL).set(THREADS)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    worker = Worker(
        client,
        task_queue=CONTROL,
        workflows=PLANS,
        # The sandbox finds mistakes in plans: the tests and the replay of histories run in it. Here it would cost
        # more than a quarter of this process's CPU for each run.
        workflow_runner=UnsandboxedWorkflowRunner(),
        # All of image_records too: runs that began before there was a queue of images have their steps here.
        activities=[method for record in records for method in methods(record)],  # type: ignore[misc]
        activity_executor=ThreadPoolExecutor(THREADS, thread_name_prefix="activity"),
        max_concurrent_activities=THREADS,
        interceptors=[ActivityInterceptor()],
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        # A run that is evicted is replayed from its history; each that is kept costs some 100 KB.
        max_cached_workflows=200,
        # A workflow held by a worker that died goes on elsewhere after this.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        graceful_shutdown_timeout=timedelta(seconds=5),
    )
    workers = [
        worker,
        images.importer(client, image_records),
        webhooks.caller(client, engine, settings, keyring),
        cron.caller(client, engine, keyring, settings),
    ]
    async with AsyncExitStack() as running:
        for one in workers:
            await running.enter_async_context(one)
        log.info("control.ready", temporal=settings.temporal_address)
        beside = [
            asyncio.create_task(declare_schedules(client, settings)),
            asyncio.create_task(sweep_when_called(sweeper, settings.database)),
            asyncio.create_task(webhooks.deliver_when_called(engine, client, settings.database)),
            asyncio.create_task(cron.look_when_called(cron_schedules, settings.database)),
            asyncio.create_task(look_at_the_clock(sweeper)),
            asyncio.create_task(show_that_it_works(settings.health_file, client, engine)),
        ]
        await stopping.wait()
        for task in beside:
            task.cancel()
        # At once: each may wait for its steps for as long as it gives them.
        await asyncio.gather(*(one.shutdown() for one in workers))
    engine.dispose()


def retention_of(settings: Settings) -> Retention:
    return Retention(
        deleted=timedelta(days=settings.retain_deleted),
        events=timedelta(days=settings.retain_events),
        workflows=timedelta(days=settings.retain_workflows),
    )


async def declare_schedules(client: Client, settings: Settings) -> None:
    """Tried until Temporal is there."""
    while True:
        try:
            await declare(client, settings)
            return
        except Exception as error:
            log.warning("schedules.retrying", error=str(error))
            await asyncio.sleep(1)


async def sweep_when_called(sweeper: Sweeper, database_url: str) -> None:
    """Sweep on NOTIFY cairn_sweep, until nothing fails any more; the tick covers what is missed here."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                await connection.execute("LISTEN cairn_sweep")
                async for _ in connection.notifies():
                    swept = None
                    while swept is None or swept.failed:
                        # What was accepted a moment ago becomes "lost" only after a while.
                        await asyncio.sleep(LOST_AFTER.total_seconds())
                        swept = await sweeper.sweep()
        except (psycopg.OperationalError, SQLAlchemyError) as error:
            log.info("sweep.reconnecting", error=str(error).partition("\n")[0])
        except Exception:  # one row that is odd does not end it for all
            log.exception("sweep.broken")
        await asyncio.sleep(1)


async def look_at_the_clock(sweeper: Sweeper) -> None:
    """Order what is due, sooner than the tick would, which sees to it too."""
    while True:
        await asyncio.sleep(CLOCK_SECONDS)
        try:
            await sweeper.order_due()
        except Exception:  # the clock goes on
            log.exception("clock.broken")


if __name__ == "__main__":
    main()
