"""The host agent: the steps on this machine's engines. Program ``cairn-agent``.

It holds no database credentials: what it may do, it may with its own credential. One process may serve several
hosts (the simulated ones).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

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
from drivers.balancers import Balancers
from drivers.blob_source import ApiBlobs
from drivers.brought import Brought, brought_folder
from drivers.cache_trees import CacheTrees
from drivers.calls import Calls
from drivers.commits import Commits
from drivers.egress import Egress
from drivers.images import Images
from drivers.machines import Fence, Machines
from drivers.measured import measured
from drivers.mounts import may_keep_files
from drivers.session_trees import SessionTrees
from drivers.streams import Streams
from drivers.warm_trees import WarmTrees
from drivers.workspaces import Workspaces
from model import cache_volumes, logs, pools
from model.hosts import AgentHost
from model.metrics import STEPS_LIMIT
from model.networks import capability
from model.settings import Settings, of_process
from model.tickets import Gate
from model.workspaces import CAPABILITY
from worker import agent_server, fence, identity, joining, metrics, tracing
from worker.agent_server import AgentServer
from worker.balancers import BalancerReadings
from worker.egress import EgressThread
from worker.health import HealthLooks
from worker.identity import Keys, Membership
from worker.leases import Leases, Refused
from worker.samples import Samples
from worker.sealed import Sealed
from worker.temporal_link import TemporalLink
from worker.workspaces import TREES, WorkspaceSweep, workspace_driver

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


def identity_file(settings: Settings) -> Path:
    if settings.agent_identity is None:
        raise SystemExit("CAIRN_AGENT_IDENTITY is not set: an agent is started with 'cairn host join'")
    return settings.agent_identity


def read_identity(settings: Settings) -> tuple[Keys, Membership]:
    """Who this agent is, and what it was told when it joined; ends the process where it has not."""
    known = identity.read(identity_file(settings))
    if known is None or known.membership is None:
        raise SystemExit(f"{settings.agent_identity}: this host has not joined a platform: run 'cairn host join'")
    return known.keys, known.membership


def streams(host: AgentHost, installation: UUID, settings: Settings) -> Streams | None:
    """What it can do beside steps; None: nothing."""
    if host.backend != "docker":
        return None
    from drivers.docker_streams import DockerStreams

    return DockerStreams(settings.docker_host, installation=installation, host_id=host.id)


def calls(host: AgentHost, installation: UUID, settings: Settings) -> Calls:
    """How the agents of its sessions are reached."""
    if host.backend == "simulated":
        from drivers.simulated_calls import SimulatedCalls

        return SimulatedCalls((identity_file(settings).parent / "agents" / str(host.id)).absolute())
    from drivers.docker_calls import DockerCalls

    return DockerCalls(settings.docker_host, installation=installation, host_id=host.id)


def egress_driver(host: AgentHost, installation: UUID, settings: Settings) -> Egress | None:
    """What lets its instances out that reach only what a list names; None: nothing has to."""
    if host.backend != "docker":
        return None
    from drivers.docker_egress import DockerEgress

    return DockerEgress(settings.docker_host, installation=installation, host_id=host.id, allow=settings.outbound_allow)


def capabilities(egress: Egress | None, warm: WarmTrees) -> list[str]:
    """What a host's agent can do beyond what every agent can."""
    if egress is not None and not egress.able():
        return [capability("none")]
    # Repositories are fetched through a proxy like that of an instance; sandboxes write files as anybody.
    files = [CAPABILITY, cache_volumes.CAPABILITY] if egress is None or may_keep_files() else []
    if files and warm.able:
        files.append(pools.CAPABILITY)
    return [capability("none"), capability("allow-list"), *files]


def driver(
    host: AgentHost,
    installation: UUID,
    settings: Settings,
    egress: Egress | None = None,
    trees: SessionTrees | None = None,
    warm: WarmTrees | None = None,
    caches: CacheTrees | None = None,
) -> Machines:
    """The driver of a host's backend; only what is used is imported."""
    if host.backend == "simulated":
        from drivers.simulated import SimulatedMachines

        return SimulatedMachines(
            settings.simulator_url, installation=installation, host_id=host.id, host_name=host.name
        )
    from drivers.docker import DockerMachines

    return DockerMachines(
        settings.docker_host,
        installation=installation,
        host_id=host.id,
        publish_address=settings.publish_address,
        secrets_dir=settings.secrets_dir,
        trees=trees,
        warm=warm,
        caches=caches,
        egress=egress,
    )


def image_driver(host: AgentHost, membership: Membership, settings: Settings) -> Images:
    """The same, of its images."""
    brought = Brought(brought_folder(identity_file(settings).parent, host.id))
    if host.backend == "simulated":
        from drivers.simulated_images import SimulatedImages

        return SimulatedImages(settings.simulator_url, host_name=host.name, brought=brought)
    from drivers.docker_images import DockerImages

    blobs = ApiBlobs(membership.api_url, membership.credential)
    return DockerImages(settings.docker_host, brought=brought, fetch=blobs.fetch, allow=settings.outbound_allow)


def session_trees(host: AgentHost, settings: Settings) -> SessionTrees:
    """Where sessions of a host have their files. What is simulated mounts nothing."""
    folder = (identity_file(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return SessionTrees(folder / str(host.id), overlay=False)
    return SessionTrees(folder)


def warm_trees(host: AgentHost, settings: Settings, trees: SessionTrees) -> WarmTrees:
    """Where sandboxes that run already have them."""
    folder = (identity_file(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return WarmTrees(folder / str(host.id), trees, really=False)
    return WarmTrees(folder, trees)


def cache_trees(host: AgentHost, settings: Settings) -> CacheTrees:
    """Where its cache volumes are."""
    folder = (identity_file(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return CacheTrees(folder / str(host.id), own=False)
    return CacheTrees(folder)


def balancer_driver(host: AgentHost, installation: UUID, settings: Settings) -> Balancers:
    """The same, of its load balancers."""
    if host.backend == "simulated":
        from drivers.simulated_balancers import SimulatedBalancers

        return SimulatedBalancers(
            settings.simulator_url, installation=installation, host_id=host.id, host_name=host.name
        )
    from drivers.docker_balancers import DockerBalancers

    return DockerBalancers(settings.docker_host, installation=installation, host_id=host.id)


async def run(settings: Settings) -> None:
    keys, membership = read_identity(settings)
    path = identity_file(settings)
    told = {"temporal_address": membership.temporal_address, "temporal_namespace": membership.temporal_namespace}
    unset = {name: value for name, value in told.items() if name not in settings.model_fields_set}
    settings = settings.model_copy(update=unset)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    trees = {host.id: session_trees(host, settings) for host in membership.hosts}
    warm = {host.id: warm_trees(host, settings, trees[host.id]) for host in membership.hosts}
    caches = {host.id: cache_trees(host, settings) for host in membership.hosts}
    egresses = {host.id: egress_driver(host, membership.installation, settings) for host in membership.hosts}
    machines = {
        host.id: measured(
            driver(
                *(host, membership.installation, settings, egresses[host.id]),
                *(trees[host.id], warm[host.id], caches[host.id]),
            ),
            host.backend,
        )
        for host in membership.hosts
    }
    for kept in trees.values():
        # Before a sandbox that runs is asked for its files.
        await asyncio.to_thread(kept.mount_all)
    images = {
        host.id: measured(image_driver(host, membership, settings), f"{host.backend}.images")
        for host in membership.hosts
    }
    balancers = {
        host.id: measured(balancer_driver(host, membership.installation, settings), f"{host.backend}.balancers")
        for host in membership.hosts
    }
    drivers = {
        host.id: workspace_driver(host, membership.installation, settings, path.parent, images[host.id])
        for host in membership.hosts
    }
    workspaces: dict[UUID, Workspaces] = {
        host.id: measured(drivers[host.id], f"{host.backend}.workspaces") for host in membership.hosts
    }
    commits: dict[UUID, Commits] = {
        host.id: measured(drivers[host.id].commits(trees[host.id]), f"{host.backend}.commits")
        for host in membership.hosts
    }
    gate = Gate(membership.ticket_keys)
    listener = agent_server.listen(settings, membership.api_url)
    served = {host.id: streams(host, membership.installation, settings) for host in membership.hosts}
    called = {host.id: calls(host, membership.installation, settings) for host in membership.hosts}
    serves = AgentServer(served, gate, trees, settings.session_file_max_bytes, commits, called, warm)
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
        capabilities={id: partial(capabilities, egress, warm[id]) for id, egress in egresses.items()},
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
    if proxies := [egress for egress in egresses.values() if egress is not None]:
        beside.add(asyncio.create_task(EgressThread(proxies).run()))
    serving: asyncio.Task[None] | None = None
    await asyncio.wait({leasing, granted, stopped}, return_when=asyncio.FIRST_COMPLETED)
    async with AsyncExitStack() as workers:
        if granted.done():
            temporal.workers = step_workers(
                temporal.client,
                membership.hosts,
                machines,
                images,
                balancers,
                trees,
                warm,
                caches,
                workspaces,
                commits,
                fence.AgentFence(settings),
                Sealed(membership, keys),
            )
            for worker in temporal.workers:
                await workers.enter_async_context(worker)
            log.info("agent.ready", hosts=[host.name for host in membership.hosts])
            serving = asyncio.create_task(serves.run(keys, listener, stopping))
            loops = (
                Samples(membership, machines).run(),
                HealthLooks(membership, machines).run(),
                BalancerReadings(membership, balancers).run(),
                WorkspaceSweep(membership, workspaces, trees, caches, 6 * settings.reconcile_interval).run(),
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


def step_workers(
    client: Client,
    hosts: list[AgentHost],
    machines: Mapping[UUID, Machines],
    images: Mapping[UUID, Images],
    balancers: Mapping[UUID, Balancers],
    trees: Mapping[UUID, SessionTrees],
    warm: Mapping[UUID, WarmTrees],
    caches: Mapping[UUID, CacheTrees],
    workspaces: Mapping[UUID, Workspaces],
    commits: Mapping[UUID, Commits],
    fence: Fence,
    given: Sealed | None = None,
) -> list[Worker]:
    """A Temporal worker for each host's queue."""
    threads = ThreadPoolExecutor(max(STEPS, 4 * len(hosts)), thread_name_prefix="step")
    STEPS_LIMIT.labels("host").set(STEPS * len(hosts))
    workers, long = [], long_work()
    for host in hosts:
        engines = [
            InstanceEngine(machines[host.id], fence, given, warm[host.id], caches[host.id]),
            HostEngine(host.name, machines[host.id], fence),
            ImageEngine(host.name, images[host.id], given),
            MachineSurvey(host.name, machines[host.id]),
            BalancerEngine(balancers[host.id], machines[host.id], given.secrets if given else None),
            SessionEngine(trees[host.id], warm[host.id]),
            CommitEngine(commits[host.id], long),
            CacheVolumeEngine(caches[host.id]),
            WorkspaceEngine(workspaces[host.id], given, long),
        ]
        workers.append(
            Worker(
                client,
                task_queue=host_queue(host.name),
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
