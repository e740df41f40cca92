"""Where the proxies of an agent's instances run: an event loop of their own, in a thread of its own. However much goes
through them, the agent's steps and leases have theirs for themselves."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
import uvloop

from drivers.egress import Egress

log = structlog.get_logger()
END_SECONDS = 5.0


class EgressThread:
    """``run`` serves until it is cancelled, and leaves nothing then."""

    def __init__(self, egresses: Sequence[Egress]) -> None:
        self._egresses = egresses
        self._serving: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    async def run(self) -> None:
        _take_all_files()
        threads = ThreadPoolExecutor(1, thread_name_prefix="egress")
        thread = asyncio.get_running_loop().run_in_executor(threads, self._work)
        try:
            await asyncio.shield(thread)
        finally:
            self._stopped = True
            if self._loop is not None and self._serving is not None and not thread.done():
                self._loop.call_soon_threadsafe(self._serving.cancel)
                await asyncio.wait([thread], timeout=END_SECONDS)
            threads.shutdown(wait=False)

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = asyncio.create_task(self._together())
        if self._stopped:
            self._serving.cancel()
        await asyncio.wait([self._serving])
        if not self._serving.cancelled():
            self._serving.result()

    async def _together(self) -> None:
        await asyncio.gather(*(one.run() for one in self._egresses))


def _take_all_files() -> None:
    """Each connection takes two file descriptors: as many as this process may have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:
        log.info("egress.few_files", error=str(error))
