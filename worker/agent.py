"""The host agent: the steps on this machine's engines. Program ``cairn-agent``.

It holds no database credentials. One process may serve several hosts (the simulated ones).
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
import uvloop
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.hosts import HostEngine
from activities.instances import InstanceEngine
from activities.interceptor import ActivityInterceptor
from activities.registry import methods
from activities.runs import host_queue
from drivers.machines import Machines
from model import logs
from model.hosts import AgentHost
from model.settings import Settings
from worker.temporal_client import connect

#: Steps of one host at once. Most wait for the engine, or for an instance to become ready.
STEPS = 32
log = structlog.get_logger()


def main() -> None:
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, "agent")
    uvloop.run(run(settings))


def driver(host: AgentHost, settings: Settings) -> Machines:
    """The driver of a host's backend; only what is used is imported."""
    if settings.installation is None:
        raise SystemExit("CAIRN_INSTALLATION is not set: the agent must know whose objects it may touch")
    if host.backend == "simulated":
        from drivers.simulated import SimulatedMachines

        return SimulatedMachines(
            settings.simulator_url, installation=settings.installation, host_id=host.id, host_name=host.name
        )
    from drivers.docker import DockerMachines

    return DockerMachines(
        settings.docker_host,
        installation=settings.installation,
        host_id=host.id,
        publish_address=settings.publish_address,
    )


async def run(settings: Settings) -> None:
    client = await connect(settings)
    threads = ThreadPoolExecutor(max(STEPS, 4 * len(settings.agent_hosts)), thread_name_prefix="step")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as workers:
        for host in settings.agent_hosts:
            machines = driver(host, settings)
            engines = [InstanceEngine(machines), HostEngine(host.name, machines)]
            worker = Worker(
                client,
                task_queue=host_queue(host.name),
                activities=[method for engine in engines for method in methods(engine)],  # type: ignore[misc]
                activity_executor=threads,
                max_concurrent_activities=STEPS,
                interceptors=[ActivityInterceptor()],
                max_heartbeat_throttle_interval=timedelta(seconds=1),
                graceful_shutdown_timeout=timedelta(seconds=5),
            )
            await workers.enter_async_context(worker)
        log.info("agent.ready", hosts=[host.name for host in settings.agent_hosts])
        reconciling = asyncio.create_task(reconcile_now(client, settings.agent_hosts))
        await stopping.wait()
        reconciling.cancel()


async def reconcile_now(client: Client, hosts: list[AgentHost]) -> None:
    """Ask for an inventory of what was left while this agent was away."""
    for host in hosts:
        for _ in range(30):
            try:
                await client.get_schedule_handle(f"reconcile-{host.name}").trigger()
                break
            except RPCError:
                # At the very first start, the control worker has not declared it yet.
                await asyncio.sleep(1)


if __name__ == "__main__":
    main()
