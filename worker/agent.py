"""The host agent: the steps on this machine's engines. Program ``cairn-agent``.

It holds no database credentials: what it may do, it may with its own credential. One process may serve several
hosts (the simulated ones).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from importlib.metadata import version

import structlog
import uvloop
from temporalio.client import Client
from temporalio.worker import Worker

from activities.balancers import BalancerEngine
from activities.cache_volumes import CacheVolumeEngine
from activities.commits import CommitEngine
from activities.hosts import HostEngine
from activities.images import ImageEngine
from activities.instances import InstanceEngine
from activities.interceptor import ActivityInterceptor
from activities.registry import methods
from activities.restores import MachineSurvey
from activities.runs import host_queue
from activities.sessions import SessionEngine
from activities.workspaces import WorkspaceEngine, long_work
from drivers.machines import Fence
from model import logs
from model.metrics import STEPS_LIMIT
from model.settings import Settings, of_process
from model.tickets import Gate
from worker import agent_server, fence, identity, joining, metrics, tracing
from worker.agent_server import AgentServer
from worker.balancers import BalancerReadings
from worker.egress import EgressThread
from worker.health import HealthLooks
from worker.host_drivers import HostDrivers, host_drivers
from worker.leases import Leases, Refused
from worker.samples import Samples
from worker.sealed import Sealed
from worker.temporal_link import TemporalLink
from worker.workspaces import WorkspaceSweep

#: Steps of one host at once. Most wait for the engine, or for an instance to become ready.
STEPS = 32
log = structlog.get_logger()


def main() -> None:
    settings = of_process()
    logs.configure(settings.log_level, settings.log_format, "agent", settings.log_limit)
    tracing.start(settings, "agent")
    stop_metrics = metrics.serve(settings, "agent")
    try:
        uvloop.run(run(settings))
    finally:
        stop_metrics()
        tracing.stop()


async def run(settings: Settings) -> None:
    keys, membership = identity.of_agent(settings)
    path = identity.file_of(settings)
    told = {"temporal_address": membership.temporal_address, "temporal_namespace": membership.temporal_namespace}
    unset = {name: value for name, value in told.items() if name not in settings.model_fields_set}
    settings = settings.model_copy(update=unset)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    hosts = {host.id: host_drivers(host, membership, settings) for host in membership.hosts}
    machines = {id: host.machines for id, host in hosts.items()}
    trees = {id: host.trees for id, host in hosts.items()}
    for kept in trees.values():
        # Before a sandbox that runs is asked for its files.
        await asyncio.to_thread(kept.mount_all)
    gate = Gate(membership.ticket_keys)
    listener = agent_server.listen(settings, membership.api_url)
    serves = AgentServer(
        {id: host.streams for id, host in hosts.items()},
        gate,
        trees,
        settings.session_file_max_bytes,
        {id: host.commits for id, host in hosts.items()},
        {id: host.calls for id, host in hosts.items()},
        {id: host.warm for id, host in hosts.items()},
    )
    temporal = TemporalLink(
        settings,
        follows="temporal_address" in unset,
        remember=partial(joining.remember_temporal, path),
        runtime=metrics.temporal_runtime(settings),
    )
    leases = Leases(
        membership,
        machines,
        temporal,
        agent_url=agent_server.url_of(listener),
        versions={"agent": version("cairn-platform")},
        capabilities={id: host.capabilities for id, host in hosts.items()},
        look_seconds=settings.reconcile_interval,
        identity=path,
        ensure_fence=partial(fence.ensure, settings),
        on_ticket_keys=gate.learn,
    )
    stopped = asyncio.create_task(stopping.wait())
    leasing = asyncio.create_task(leases.run())
    granted = asyncio.create_task(leases.granted.wait())
    beside: set[asyncio.Task[None]] = {leasing}
    # What runs already goes on reaching what it may, also while there is no platform to be seen.
    if proxies := [host.egress for host in hosts.values() if host.egress is not None]:
        beside.add(asyncio.create_task(EgressThread(proxies).run()))
    serving: asyncio.Task[None] | None = None
    await asyncio.wait({leasing, granted, stopped}, return_when=asyncio.FIRST_COMPLETED)
    async with AsyncExitStack() as workers:
        if granted.done():
            temporal.workers = step_workers(
                temporal.client, list(hosts.values()), fence.AgentFence(settings), Sealed(membership, keys)
            )
            for worker in temporal.workers:
                await workers.enter_async_context(worker)
            log.info("agent.ready", hosts=[host.name for host in membership.hosts])
            serving = asyncio.create_task(serves.run(keys, listener, stopping))
            loops = (
                Samples(membership, machines).run(),
                HealthLooks(membership, machines).run(),
                BalancerReadings(membership, {id: host.balancers for id, host in hosts.items()}).run(),
                WorkspaceSweep(
                    membership,
                    [(host.workspaces, host.trees, host.caches) for host in hosts.values()],
                    6 * settings.reconcile_interval,
                ).run(),
            )
            beside |= {serving, *(asyncio.create_task(loop) for loop in loops)}
        await asyncio.wait({*beside, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in beside if task.done()]
        for task in beside - {serving}:
            task.cancel()
        stopping.set()
        if serving is not None:
            await serving
        for task in ended:
            if isinstance(task.exception(), Refused):
                raise SystemExit("the platform does not know this host any more: it takes no steps")
            task.result()


def step_workers(client: Client, hosts: Sequence[HostDrivers], fence: Fence, given: Sealed) -> list[Worker]:
    """A Temporal worker for each host's queue."""
    threads = ThreadPoolExecutor(max(STEPS, 4 * len(hosts)), thread_name_prefix="step")
    STEPS_LIMIT.labels("host").set(STEPS * len(hosts))
    workers, long = [], long_work()
    for host in hosts:
        name = host.host.name
        engines = [
            InstanceEngine(host.machines, fence, given, host.warm, host.caches),
            HostEngine(name, host.machines, fence),
            ImageEngine(name, host.images, given),
            MachineSurvey(name, host.machines),
            BalancerEngine(host.balancers, host.machines, given.secrets),
            SessionEngine(host.trees, host.warm),
            CommitEngine(host.commits, long),
            CacheVolumeEngine(host.caches),
            WorkspaceEngine(host.workspaces, given, long),
        ]
        workers.append(
            Worker(
                client,
                task_queue=host_queue(name),
                activities=[method for engine in engines for method in methods(engine)],  # type: ignore[misc]
                activity_executor=threads,
                max_concurrent_activities=STEPS,
                interceptors=[ActivityInterceptor()],
                max_heartbeat_throttle_interval=timedelta(seconds=1),
                graceful_shutdown_timeout=timedelta(seconds=5),
            )
        )
    return workers


if __name__ == "__main__":
    main()
