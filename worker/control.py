"""The control worker: plans, steps on the database, the sweeper. Program ``cairn-control``."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import structlog
import uvloop
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.database import transaction
from activities.hosts import HostRecords
from activities.instances import InstanceRecords
from activities.interceptor import ActivityInterceptor
from activities.placement import Capacity
from activities.registry import methods
from activities.runs import CONTROL, Histories
from activities.sweeper import LOST_AFTER, Sweeper
from model import logs
from model.hosts import Host
from model.settings import Settings
from worker.database import connect as connect_database
from worker.temporal_client import connect
from workflows import instances, system

THREADS = 16
log = structlog.get_logger()


def main() -> None:
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, "control")
    uvloop.run(run(settings))


async def run(settings: Settings) -> None:
    client = await connect(settings)
    engine = connect_database(settings.database_url.get_secret_value(), THREADS)
    sweeper = Sweeper(engine, client)
    capacity = Capacity(
        port_range=settings.port_range,
        overcommit_cpu=settings.overcommit_cpu,
        overcommit_memory=settings.overcommit_memory,
    )
    records = [
        InstanceRecords(engine, capacity, Histories(client, asyncio.get_running_loop())),
        HostRecords(engine),
        sweeper,
    ]
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    worker = Worker(
        client,
        task_queue=CONTROL,
        workflows=[*instances.PLANS, *system.PLANS],
        # The sandbox finds mistakes in plans: the tests and the replay of histories run in it. Here it would cost
        # more than a quarter of this process's CPU for each run.
        workflow_runner=UnsandboxedWorkflowRunner(),
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
    async with worker:
        log.info("control.ready", temporal=settings.temporal_address)
        beside = [
            asyncio.create_task(declare_schedules(client, engine, settings)),
            asyncio.create_task(sweep_when_called(sweeper, settings.database_url.get_secret_value())),
        ]
        await stopping.wait()
        for task in beside:
            task.cancel()
    engine.dispose()


async def declare_schedules(client: Client, engine: Engine, settings: Settings) -> None:
    """Create or update every schedule of the system work. Tried until Temporal and the database are there."""
    while True:
        try:
            hosts = await asyncio.to_thread(_hosts, engine)
            tick = ScheduleActionStartWorkflow("Tick", id="tick", task_queue=CONTROL)
            await _declare(client, "tick", tick, timedelta(seconds=settings.tick_seconds))
            for host in hosts:
                reconcile = ScheduleActionStartWorkflow(
                    "ReconcileHost", host, id=f"reconcile-{host}", task_queue=CONTROL
                )
                await _declare(client, f"reconcile-{host}", reconcile, timedelta(seconds=settings.reconcile_seconds))
            return
        except Exception as error:
            log.warning("schedules.retrying", error=str(error))
            await asyncio.sleep(1)


def _hosts(engine: Engine) -> list[str]:
    with transaction(engine) as session:
        return list(session.scalars(select(Host.name).where(Host.state == "ready")))


async def _declare(client: Client, id: str, action: ScheduleActionStartWorkflow, every: timedelta) -> None:
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        # A pass that was missed is not made up for, and two never run at once.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=10)),
    )
    try:
        await client.create_schedule(id, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(id).update(lambda _: ScheduleUpdate(schedule=schedule))


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
        await asyncio.sleep(1)


if __name__ == "__main__":
    main()
