"""An agent's way to Temporal: found, and found again where the platform has moved it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Worker

from model.settings import Settings
from worker.temporal_client import connect_once

log = structlog.get_logger()
#: For one try.
PATIENCE = 3.0


class TemporalLink:
    """One connection, used by all workers of an agent."""

    def __init__(
        self,
        settings: Settings,
        *,
        follows: bool,
        remember: Callable[[str], None],
        runtime: Runtime | None = None,
    ) -> None:
        """``follows``: goes where the platform says. ``remember``: blocks until the next start of the agent knows."""
        self._runtime = runtime
        self._settings = settings
        self._follows = follows
        self._remember = remember
        self._client: Client | None = None
        self.workers: list[Worker] = []
        self._absent: str | None = None

    @property
    def client(self) -> Client:
        """Once ``check`` has succeeded."""
        if self._client is None:
            raise RuntimeError("Temporal has not answered yet")
        return self._client

    async def check(self) -> None:
        """Raises RuntimeError, RPCError or TimeoutError where Temporal does not answer."""
        async with asyncio.timeout(PATIENCE):
            if self._client is None:
                self._client = await connect_once(self._settings, runtime=self._runtime)
            await self._client.service_client.check_health()

    async def told(self, address: str) -> None:
        """The platform says that Temporal is there: gone to where it answers there, else tried when told again."""
        if not self._follows or address == self._settings.temporal_address:
            return
        settings = self._settings.model_copy(update={"temporal_address": address})
        try:
            async with asyncio.timeout(PATIENCE):
                client = await connect_once(settings, runtime=self._runtime)
                await client.service_client.check_health()
        except (RuntimeError, RPCError, TimeoutError) as error:
            if address != self._absent:
                log.warning("temporal.not_there", address=address, error=str(error) or type(error).__name__)
            self._absent = address
            return
        await asyncio.to_thread(self._remember, address)
        self._settings, self._client = settings, client
        for worker in self.workers:
            worker.client = client
        log.info("temporal.moved", address=address)
