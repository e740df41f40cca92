"""Workspaces of an agent: which driver its hosts have, and what becomes of files that nobody needs any more, those of
sessions and of cache volumes too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import httpx
import structlog

from drivers.cache_trees import CacheTrees
from drivers.images import Images
from drivers.secret_files import SecretFiles, default_folder
from drivers.session_trees import SessionTrees
from drivers.workspaces import Held, Workspaces
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

    def __init__(
        self,
        membership: Membership,
        holders: Sequence[tuple[Workspaces, SessionTrees, CacheTrees]],
        every_seconds: float,
    ) -> None:
        self._membership = membership
        self._holders = holders
        self._every = every_seconds
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="workspaces")

    async def run(self) -> None:
        async with api_client(self._membership, PATIENCE) as http:
            try:
                while True:
                    for workspaces, sessions, caches in self._holders:
                        # Sessions lie over the files of workspaces.
                        await self._sweep(http, "session", sessions.tidy, sessions.held, sessions.remove)
                        remove = partial(workspaces.remove, cancelled=lambda: False)
                        await self._sweep(http, "workspace", workspaces.tidy, workspaces.held, remove)
                        await self._sweep(http, "cache", caches.tidy, caches.held, caches.forget)
                    await asyncio.sleep(self._every)
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _sweep(
        self,
        http: httpx.AsyncClient,
        what: str,
        tidy: Callable[[], None],
        held: Callable[[], list[Held]],
        remove: Callable[[UUID], None],
    ) -> None:
        blocking = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        answered = "gone" if what == "workspace" else f"gone_{what}s"
        try:
            await blocking(tidy)
            there = await blocking(held)
            for first in range(0, len(there), MOST_TREES):
                told = [{"id": str(one.id), "project_id": str(one.project_id)} for one in there[first:][:MOST_TREES]]
                answer = await http.post("/hosts/workspaces", json={f"{what}s": told})
                # A platform that was rolled back knows of no sessions or caches, and refuses to hear of them.
                for gone in answer.raise_for_status().json()["data"][answered]:
                    log.warning(f"{what}.leftover_removed", id=gone)
                    try:
                        await blocking(remove, UUID(gone))
                    except Exception:  # one that cannot be removed keeps no other
                        log.exception(f"{what}.leftover_not_removed", id=gone)
        except (CairnError, httpx.HTTPError, ValueError, LookupError, RuntimeError, OSError) as error:
            log.info(f"{what}s.not_swept", error=str(error) or type(error).__name__)
        except Exception:  # an odd answer ends nothing here
            log.exception(f"{what}s.not_swept")
