"""Proxies of containers on a Docker engine: found by their labels, opened in their network namespaces.

Those that run are looked at every few seconds, and as soon as one that was known is in another namespace than it was:
however it was started again, by us, its engine or somebody else, its proxy listens again within a second.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass
from uuid import UUID

import structlog
from pydantic import ValidationError

from drivers import namespaces
from drivers.docker_engine import DockerEngine, calling, pause
from drivers.docker_places import entered
from drivers.egress_proxy import MOST_CONNECTIONS, EgressProxy
from drivers.machines import Check
from drivers.outbound import Networks
from drivers.ownership import NETWORK, Owner
from model.base import Frozen
from model.errors import CairnError
from model.networks import PROXY_ADDRESS, PROXY_PORT, Network

#: Between two looks at the engine, and at the namespaces of what is known.
LOOK_SECONDS, GLANCE_SECONDS = 5.0, 0.5
#: What has ended may be on its way up again: so long the engine is looked at more often.
EAGER_SECONDS = 10.0
#: How long a start waits for its proxy.
FOLLOW_SECONDS = 3.0
_PEER = struct.Struct("3i")
log = structlog.get_logger()


class _Running(Frozen):
    """A container that is to have a proxy."""

    id: UUID
    engine_id: str
    network: Network


@dataclass
class _Served:
    """One that has it."""

    engine_id: str
    pid: int
    inode: int
    task: asyncio.Task[None]


class DockerEgress:
    """The egress port on one Docker engine, for one owner."""

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID, allow: Networks) -> None:
        """``allow``: networks that may be reached although they are not global."""
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))
        self._allow = allow
        self._able = False
        self._served: dict[UUID, _Served] = {}
        self._complained: dict[UUID, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        #: Looks that were begun, and the last of those that came to their end.
        self._begun = self._done = 0
        self._eager_until = 0.0

    def able(self) -> bool:
        if not self._able:
            self._able = is_able(self._engine.base_url)
        return self._able

    def follow(self, machine: UUID, cancelled: Check) -> None:
        if self._loop is None:
            return
        before, until = self._begun, time.monotonic() + FOLLOW_SECONDS
        self._loop.call_soon_threadsafe(self._woken.set)
        while self._done <= before and time.monotonic() < until:
            pause(cancelled)

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        working = True
        try:
            while True:
                self._begun += 1
                turn = self._begun
                self._woken.clear()
                try:
                    await self._look()
                    working = True
                except CairnError as error:
                    if working:
                        log.warning("egress.unknown", error=error.message)
                    working = False
                except Exception:  # an odd answer of an engine ends nothing here
                    log.exception("egress.unknown")
                    working = False
                self._done = turn
                if not working:  # else a network that went with its engine would be looked at without a pause
                    await asyncio.sleep(GLANCE_SECONDS)
                await self._until_next()
        finally:
            self._loop = None
            await self._close(list(self._served))

    async def _until_next(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + (GLANCE_SECONDS if loop.time() < self._eager_until else LOOK_SECONDS)
        while loop.time() < until and all(map(_is_there, self._served.values())):
            try:
                async with asyncio.timeout(GLANCE_SECONDS):
                    await self._woken.wait()
                return
            except TimeoutError:
                pass

    async def _look(self) -> None:
        found = {one.id: one for one in await asyncio.to_thread(self._running)}
        gone = [
            id
            for id, served in self._served.items()
            if id not in found or found[id].engine_id != served.engine_id or not _is_there(served)
        ]
        if gone:
            self._eager_until = asyncio.get_running_loop().time() + EAGER_SECONDS
        await self._close(gone)
        for id in self._complained.keys() - found.keys():
            del self._complained[id]
        for id in found.keys() - self._served.keys():
            try:
                pid, inode, listener = await asyncio.to_thread(self._open, found[id])
            except (OSError, CairnError) as error:
                if self._complained.get(id) != str(error):
                    log.warning("egress.not_opened", instance_id=str(id), error=str(error))
                self._complained[id] = str(error)
                continue
            proxy = EgressProxy(id, found[id].network.allow, self._allow)
            task = asyncio.create_task(proxy.serve(listener))
            self._served[id] = _Served(found[id].engine_id, pid, inode, task)
            self._complained.pop(id, None)
            log.info("egress.opened", instance_id=str(id), allow=found[id].network.allow)

    async def _close(self, machines: list[UUID]) -> None:
        ending = [self._served.pop(id).task for id in machines]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _running(self) -> list[_Running]:
        owner, running = self._engine.owner, []
        filters = {"label": [*owner.filters(), NETWORK], "status": ["running", "paused"]}
        with calling():
            listed = self._engine.client.containers(filters=filters)
        for found in listed:
            ours = owner.owned(found["Names"][0].removeprefix("/"), found["Labels"] or {})
            if ours is None:
                continue
            try:
                network = Network.model_validate_json(found["Labels"][NETWORK])
            except ValidationError:
                continue  # of a later version: nothing that we know is let out
            if network.mode == "allow-list":
                running.append(_Running(id=ours[0], engine_id=found["Id"], network=network))
        return running

    def _open(self, machine: _Running) -> tuple[int, int, socket.socket]:
        """Its first process, which namespace that is in, and what listens there. Raises OSError, CairnError."""
        with entered(self._engine, machine.engine_id) as place:
            address = (PROXY_ADDRESS, PROXY_PORT)
            return place.pid, place.inode, namespaces.listen(place.namespace, address, MOST_CONNECTIONS)


def is_able(base_url: str) -> bool:
    """Whether this process may enter the networks of the containers of the engine there."""
    pid = _pid_behind(base_url)
    return pid is not None and namespaces.can_enter(pid)


def _is_there(served: _Served) -> bool:
    # While its listener is held, no other namespace gets that number.
    return not served.task.done() and namespaces.inode(served.pid) == served.inode


def _pid_behind(base_url: str) -> int | None:
    """The engine's process (or that which opened its socket for it); None: it is on another machine, not there, or
    not to be seen from here."""
    if not base_url.startswith("unix://"):
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(1)
            asked.connect(base_url.removeprefix("unix://"))
            pid: int = _PEER.unpack(asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
    except OSError:
        return None
    return pid or None
