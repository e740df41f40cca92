"""The leases of an agent's hosts: renewed while it can work, with what their engines hold.

A lease says "I can be given work": it is renewed through the API, and only while Temporal answers too. So a host
that is cut off from either looks lost, and what happens then is one thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import structlog
from temporalio.service import RPCError

from drivers.machines import Machines
from model.errors import CairnError
from model.hosts import RENEW_SECONDS
from model.instances import digest_of
from model.metrics import LEASE_FAILURES
from worker import fence
from worker.identity import Membership, api_client
from worker.temporal_link import TemporalLink

log = structlog.get_logger()
#: For one question to the API, or to Temporal.
PATIENCE = 3.0
#: After a failure: so that the first chance is taken.
RETRY_SECONDS = 1.0


#: What an API, a proxy in front of it, Temporal or an engine may do to a renewal: it is tried again.
MAY_PASS = (httpx.HTTPError, RPCError, CairnError, RuntimeError, ValueError, LookupError, TypeError, OSError)


class Refused(Exception):
    """The platform does not know the agent's credential (any more): it must not work."""


class Leases:
    """One loop that looks at the engines, one that tells the API."""

    def __init__(
        self,
        membership: Membership,
        machines: Mapping[UUID, Machines],
        temporal: TemporalLink,
        *,
        agent_url: str | None,
        versions: dict[str, str],
        capabilities: Mapping[UUID, Callable[[], list[str]]],
        look_seconds: float,
        identity: Path,
        ensure_fence: Callable[[], None],
        on_ticket_keys: Callable[[list[str]], None],
    ) -> None:
        self._membership = membership
        self._machines = machines
        self._temporal = temporal
        self._agent_url = agent_url
        self._versions = versions
        self._capabilities = capabilities
        self._look_seconds = look_seconds
        self._identity = identity
        self._ensure_fence = ensure_fence
        self._on_ticket_keys = on_ticket_keys
        self._inventories: dict[UUID, str | None] = dict.fromkeys(machines)
        self._news = asyncio.Event()
        self._heard_at = -math.inf
        self._closing: asyncio.Future[None] | None = None
        #: Set with the first lease: before it, an agent is not to take steps. Its host may have been removed, and
        #: another may have the name.
        self.granted = asyncio.Event()

    async def run(self) -> None:
        """Raises Refused where the platform does not know the agent; else it does not end."""
        async with api_client(self._membership, PATIENCE) as http:
            await asyncio.gather(self._look(), self._renew(http))

    async def _look(self) -> None:
        """Keep the digests of what the engines hold."""
        while True:
            for host, machines in self._machines.items():
                digest: str | None = None
                try:
                    found = await asyncio.to_thread(machines.inventory)
                    digest = digest_of(found)
                    if any(machine.fenced for machine in found):
                        await asyncio.to_thread(self._ensure_fence)
                except CairnError as error:
                    log.warning("inventory.failed", host_id=str(host), error=error.message)
                except Exception:  # an odd answer of an engine ends nothing here
                    log.exception("inventory.failed", host_id=str(host))
                if digest != self._inventories[host]:
                    self._inventories[host] = digest
                    self._news.set()
            await asyncio.sleep(self._look_seconds)

    async def _renew(self, http: httpx.AsyncClient) -> None:
        working = True
        while True:
            try:
                async with asyncio.timeout(2 * PATIENCE):
                    await self._temporal.check()
                    await self._renew_once(http)
            except MAY_PASS as error:
                LEASE_FAILURES.inc()
                if working:
                    log.warning("lease.not_renewed", error=str(error) or type(error).__name__)
                working = False
                await self._hear(http)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not working:
                log.info("lease.renewed_again")
            working = True
            await self._until_next()

    async def _until_next(self) -> None:
        """Until the next renewal is due; what changed on an engine is told within a second."""
        try:
            async with asyncio.timeout(RENEW_SECONDS):
                await asyncio.sleep(RETRY_SECONDS)
                await self._news.wait()
        except TimeoutError:
            pass

    async def _renew_once(self, http: httpx.AsyncClient) -> None:
        asked_at = fence.clock()
        await self._close_fence()
        self._news.clear()
        able = await asyncio.to_thread(lambda: {host: able() for host, able in self._capabilities.items()})
        hosts = [
            {"id": str(host), "inventory": digest, "capabilities": able[host]}
            for host, digest in self._inventories.items()
        ]
        lease = fence.read_lease(self._identity)
        goes_by = lease.fence_after if lease is not None else None
        granted = await self._ask(http, hosts=hosts, versions=self._versions, fence_after_seconds=goes_by)
        fence.write_lease(self._identity, asked_at, granted["fence_after_seconds"])
        self._on_ticket_keys(granted["ticket_keys"])
        self.granted.set()
        await self._temporal.told(granted["temporal_address"])

    async def _close_fence(self) -> None:
        """A thread is not given up with who waits for it: one that was left alone could stop what is started under
        the next lease. So the one before is seen to its end first."""
        if self._closing is not None:
            await asyncio.gather(asyncio.shield(self._closing), return_exceptions=True)
        self._closing = asyncio.ensure_future(asyncio.to_thread(fence.close, self._identity, self._machines))
        await asyncio.shield(self._closing)

    async def _hear(self, http: httpx.AsyncClient) -> None:
        """While nothing can be renewed: what the platform says all the same. Its Temporal may have moved."""
        if fence.clock() - self._heard_at < RENEW_SECONDS:
            return
        with contextlib.suppress(*MAY_PASS):
            async with asyncio.timeout(2 * PATIENCE):
                told = await self._ask(http, hosts=[{"id": str(host)} for host in self._machines], working=False)
                await self._temporal.told(told["temporal_address"])

    async def _ask(self, http: httpx.AsyncClient, **more: Any) -> Any:
        self._heard_at = fence.clock()
        body = {"agent_url": self._agent_url} | more
        answer = await http.post("/hosts/lease", json=body)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            # A platform that was rolled back to 0.2 knows no capabilities, and refuses what it does not know.
            hosts = [{name: told for name, told in host.items() if name != "capabilities"} for host in body["hosts"]]
            answer = await http.post("/hosts/lease", json=body | {"hosts": hosts})
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            log.error("lease.refused", advice="the host was removed, or joined anew: join again with a new token")
            await asyncio.to_thread(self._leave)
            raise Refused
        answer.raise_for_status()
        return answer.json()["data"]

    def _leave(self) -> None:
        """What is fenced here ends with the last lease, and not before: a host that joins anew is back by then."""
        if any(machine.fenced for machines in self._machines.values() for machine in machines.inventory()):
            self._ensure_fence()
            fence.close(self._identity, self._machines)
