"""The drivers of each host that an agent serves, by its backend; only what is used is imported."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from drivers.balancers import Balancers
from drivers.blob_source import ApiBlobs
from drivers.brought import Brought, brought_folder
from drivers.cache_trees import CacheTrees
from drivers.calls import Calls
from drivers.commits import Commits
from drivers.egress import Egress
from drivers.images import Images
from drivers.machines import Machines
from drivers.measured import measured
from drivers.mounts import may_keep_files
from drivers.session_trees import SessionTrees
from drivers.streams import Streams
from drivers.warm_trees import WarmTrees
from drivers.workspaces import Workspaces
from model import cache_volumes, pools
from model.hosts import AgentHost
from model.networks import capability
from model.settings import Settings
from model.workspaces import CAPABILITY
from worker import identity
from worker.identity import Membership
from worker.workspaces import TREES, workspace_driver


class HostDrivers(NamedTuple):
    """Of one host. ``egress``, ``streams``: None where it has none."""

    host: AgentHost
    egress: Egress | None
    trees: SessionTrees
    warm: WarmTrees
    caches: CacheTrees
    machines: Machines
    images: Images
    balancers: Balancers
    workspaces: Workspaces
    commits: Commits
    streams: Streams | None
    calls: Calls

    def capabilities(self) -> list[str]:
        """What this agent can do there beyond what every agent can."""
        if self.egress is not None and not self.egress.able():
            return [capability("none")]
        # Repositories are fetched through a proxy like that of an instance; sandboxes write files as anybody.
        files = [CAPABILITY, cache_volumes.CAPABILITY] if self.egress is None or may_keep_files() else []
        if files and self.warm.able:
            files.append(pools.CAPABILITY)
        return [capability("none"), capability("allow-list"), *files]


def host_drivers(host: AgentHost, membership: Membership, settings: Settings) -> HostDrivers:
    """All of them, each measured by its name."""
    name, installation = host.backend, membership.installation
    egress = egress_driver(host, installation, settings)
    trees = session_trees(host, settings)
    warm, caches = warm_trees(host, settings, trees), cache_trees(host, settings)
    images = measured(image_driver(host, membership, settings), f"{name}.images")
    files = workspace_driver(host, installation, settings, identity.file_of(settings).parent, images)
    return HostDrivers(
        host=host,
        egress=egress,
        trees=trees,
        warm=warm,
        caches=caches,
        machines=measured(machine_driver(host, installation, settings, egress, trees, warm, caches), name),
        images=images,
        balancers=measured(balancer_driver(host, installation, settings), f"{name}.balancers"),
        workspaces=measured(files, f"{name}.workspaces"),
        commits=measured(files.commits(trees), f"{name}.commits"),
        streams=stream_driver(host, installation, settings),
        calls=call_driver(host, installation, settings),
    )


def stream_driver(host: AgentHost, installation: UUID, settings: Settings) -> Streams | None:
    """What it can do beside steps; None: nothing."""
    if host.backend != "docker":
        return None
    from drivers.docker_streams import DockerStreams

    return DockerStreams(settings.docker_host, installation=installation, host_id=host.id)


def call_driver(host: AgentHost, installation: UUID, settings: Settings) -> Calls:
    """How the agents of its sessions are reached."""
    if host.backend == "simulated":
        from drivers.simulated_calls import SimulatedCalls

        return SimulatedCalls((identity.file_of(settings).parent / "agents" / str(host.id)).absolute())
    from drivers.docker_calls import DockerCalls

    return DockerCalls(settings.docker_host, installation=installation, host_id=host.id)


def egress_driver(host: AgentHost, installation: UUID, settings: Settings) -> Egress | None:
    """What lets its instances out that reach only what a list names; None: nothing has to."""
    if host.backend != "docker":
        return None
    from drivers.docker_egress import DockerEgress

    return DockerEgress(settings.docker_host, installation=installation, host_id=host.id, allow=settings.outbound_allow)


def machine_driver(
    host: AgentHost,
    installation: UUID,
    settings: Settings,
    egress: Egress | None = None,
    trees: SessionTrees | None = None,
    warm: WarmTrees | None = None,
    caches: CacheTrees | None = None,
) -> Machines:
    """Its instances."""
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
    """Its images."""
    brought = Brought(brought_folder(identity.file_of(settings).parent, host.id))
    if host.backend == "simulated":
        from drivers.simulated_images import SimulatedImages

        return SimulatedImages(settings.simulator_url, host_name=host.name, brought=brought)
    from drivers.docker_images import DockerImages

    blobs = ApiBlobs(membership.api_url, membership.credential)
    return DockerImages(settings.docker_host, brought=brought, fetch=blobs.fetch, allow=settings.outbound_allow)


def session_trees(host: AgentHost, settings: Settings) -> SessionTrees:
    """Where sessions of a host have their files. What is simulated mounts nothing."""
    folder = (identity.file_of(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return SessionTrees(folder / str(host.id), overlay=False)
    return SessionTrees(folder)


def warm_trees(host: AgentHost, settings: Settings, trees: SessionTrees) -> WarmTrees:
    """Where sandboxes that run already have them."""
    folder = (identity.file_of(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return WarmTrees(folder / str(host.id), trees, really=False)
    return WarmTrees(folder, trees)


def cache_trees(host: AgentHost, settings: Settings) -> CacheTrees:
    """Where its cache volumes are."""
    folder = (identity.file_of(settings).parent / TREES).absolute()
    if host.backend == "simulated":
        return CacheTrees(folder / str(host.id), own=False)
    return CacheTrees(folder)


def balancer_driver(host: AgentHost, installation: UUID, settings: Settings) -> Balancers:
    """Its load balancers."""
    if host.backend == "simulated":
        from drivers.simulated_balancers import SimulatedBalancers

        return SimulatedBalancers(
            settings.simulator_url, installation=installation, host_id=host.id, host_name=host.name
        )
    from drivers.docker_balancers import DockerBalancers

    return DockerBalancers(settings.docker_host, installation=installation, host_id=host.id)
