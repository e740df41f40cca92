"""Workspaces of an agent: which driver its hosts have, and what becomes of files that nobody needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import httpx
import structlog

from drivers.images import Images
from drivers.secret_files import SecretFiles, default_folder
from drivers.workspaces import Workspaces
from model.errors import CairnError
from model.hosts import AgentHost
from model.settings import Settings
from model.workspaces import MOST_TREES
from worker.identity import Membership, api_client

if TYPE_CHECKING:
    from drivers.docker_workspaces import DockerWorkspaces
    from drivers.simulated_workspaces import SimulatedWorkspaces

log = structlog.get_logger()
PATIENCE = 10.0
#: Beside what an agent is: its identity, what it brought.
TREES = "trees"
#: What the system trusts, where it is one of the usual ones.
AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def workspace_driver(
    host: AgentHost, installation: UUID, settings: Settings, agents: Path, images: Images
) -> DockerWorkspaces | SimulatedWorkspaces:
    """The driver of a host's backend, which makes that of its commits. ``agents``: the folder of its identity."""
    root = (agents / TREES).absolute()
    if host.backend == "simulated":
        from drivers.simulated_workspaces import SimulatedWorkspaces

        return SimulatedWorkspaces(root / str(host.id))
    from drivers.docker_workspaces import DockerWorkspaces

    return DockerWorkspaces(
        settings.docker_host,
        installation=installation,
        host_id=host.id,
        root=root,
        images=images,
        image=settings.git_image,
        # Of their own: instances' files are swept by who has instances.
        secrets=SecretFiles(settings.secrets_dir or default_folder(), uuid5(host.id, "git")),
        most_bytes=settings.workspace_max_bytes,
        seconds=settings.deadline_workspace,
        networks=settings.outbound_allow,
        paths=settings.workspace_paths,
        authorities=authorities(settings.git_ca_file),
    )


def authorities(further: Path | None) -> bytes | None:
    """What git trusts where there are further ones; None: what its image has."""
    if further is None:
        return None
    usual = next((Path(path).read_bytes() for path in AUTHORITIES if Path(path).is_file()), b"")
    return usual + b"\n" + further.read_bytes()


class WorkspaceSweep:
    """Asks now and then whether the files that an agent's hosts hold are needed yet, and removes those that are not:
    what a run left that could not undo what it did, or whose row was deleted while the host was away."""

    def __init__(self, membership: Membership, workspaces: Mapping[UUID, Workspaces], every_seconds: float) -> None:
        self._membership = membership
        self._workspaces = workspaces
        self._every = every_seconds
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="workspaces")

    async def run(self) -> None:
        async with api_client(self._membership, PATIENCE) as http:
            try:
                while True:
                    await asyncio.gather(*(self._sweep(http, one) for one in self._workspaces.values()))
                    await asyncio.sleep(self._every)
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _sweep(self, http: httpx.AsyncClient, workspaces: Workspaces) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, workspaces.tidy)
            held = await loop.run_in_executor(self._threads, workspaces.held)
            for first in range(0, len(held), MOST_TREES):
                told = [{"id": str(one.id), "project_id": str(one.project_id)} for one in held[first:][:MOST_TREES]]
                answer = await http.post("/hosts/workspaces", json={"workspaces": told})
                for gone in answer.raise_for_status().json()["data"]["gone"]:
                    log.warning("workspace.leftover_removed", workspace=gone)
                    await loop.run_in_executor(self._threads, workspaces.remove, UUID(gone), lambda: False)
        except (CairnError, httpx.HTTPError, ValueError, LookupError, RuntimeError, OSError) as error:
            log.info("workspaces.not_swept", error=str(error) or type(error).__name__)
        except Exception:  # an odd answer ends nothing here
            log.exception("workspaces.not_swept")
