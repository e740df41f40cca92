"""What the machines of an agent use: measured every ten seconds, and told to the API.

In threads of its own, beside the steps. What the API does not take while it is away waits here for two minutes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import structlog

from drivers.machines import Machines
from model.errors import CairnError
from model.samples import BUFFERED, FINEST, Reading
from worker.identity import Membership, api_client

log = structlog.get_logger()
#: Machines that one request tells of; the API takes no more.
MOST = 200
#: Hosts of one agent that are measured at once.
AT_ONCE = 8
PATIENCE, RETRY_SECONDS = 5.0, 2.0
#: Hosts of one agent are measured one after another within this part of an interval.
SPREAD = 0.8


class Batch(NamedTuple):
    """A request that is to be made."""

    #: Monotonic.
    taken_at: float
    body: dict[str, Any]


class Samples:
    """One loop for each host that measures, one that tells the API."""

    def __init__(self, membership: Membership, machines: Mapping[UUID, Machines]) -> None:
        self._membership = membership
        self._machines = machines
        self._threads = ThreadPoolExecutor(min(AT_ONCE, len(machines)), thread_name_prefix="sample")
        self._waiting: deque[Batch] = deque()
        self._news = asyncio.Event()

    async def run(self) -> None:
        async with api_client(self._membership, PATIENCE) as http:
            measuring = [
                self._measure(host, machines, n / len(self._machines) * FINEST * SPREAD)
                for n, (host, machines) in enumerate(self._machines.items())
            ]
            try:
                await asyncio.gather(self._tell(http), *measuring)
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _measure(self, host: UUID, machines: Machines, offset: float) -> None:
        """``offset``: seconds after the end of each interval, so that not all hosts are measured at the same time."""
        before: dict[str, Reading] = {}
        working = True
        while True:
            end = (time.time() - offset) // FINEST * FINEST + FINEST
            await asyncio.sleep(end + offset - time.time())
            try:
                readings = await asyncio.get_running_loop().run_in_executor(self._threads, machines.sample)
            except CairnError as error:
                if working:
                    log.warning("samples.failed", host_id=str(host), error=error.message)
                working = False
                continue
            except Exception:
                # An engine that says what was never seen: whatever is wrong with measuring, the steps go on.
                log.exception("samples.failed", host_id=str(host))
                continue
            working = True
            self._keep(dt.datetime.fromtimestamp(end - FINEST, dt.UTC), measured(before, readings))
            before = {reading.engine_id: reading for reading in readings}

    def _keep(self, at: dt.datetime, machines: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        for first in range(0, len(machines), MOST):
            body = {"at": at.isoformat(), "machines": machines[first : first + MOST]}
            self._waiting.append(Batch(now, body))
        while self._waiting and self._waiting[0].taken_at < now - BUFFERED.total_seconds():
            self._waiting.popleft()
        if self._waiting:
            self._news.set()

    async def _tell(self, http: httpx.AsyncClient) -> None:
        """Oldest first; again after a failure: a batch that the API knows already changes nothing."""
        working = True
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch = self._waiting[0]
                failure = await self._tell_one(http, batch)
                if failure is None:
                    if self._waiting and self._waiting[0] is batch:  # not dropped meanwhile, as too old
                        self._waiting.popleft()
                elif working:
                    log.warning("samples.not_told", error=failure)
                working = failure is None
                if not working:
                    await asyncio.sleep(RETRY_SECONDS)

    async def _tell_one(self, http: httpx.AsyncClient, batch: Batch) -> str | None:
        """Why it is to be tried again. What the API refuses is not."""
        try:
            answer = await http.post("/hosts/samples", json=batch.body)
        except (httpx.HTTPError, RuntimeError, OSError) as error:
            return str(error) or type(error).__name__
        if answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            log.warning("samples.refused", status=answer.status_code, answer=answer.text[:500])
            return None
        return None if answer.is_success else f"the API answered {answer.status_code}"


def measured(before: Mapping[str, Reading], readings: list[Reading]) -> list[dict[str, Any]]:
    """What each machine used between two readings, as the API takes it.

    Nothing of a machine that is new, or was started anew meanwhile: its CPU time began somewhere in between.
    """
    found = []
    for now in readings:
        then = before.get(now.engine_id)
        if then is None or now.at <= then.at or now.cpu_seconds < then.cpu_seconds:
            continue
        percent = 100 * (now.cpu_seconds - then.cpu_seconds) / (now.at - then.at)
        figures = now.model_dump(mode="json", exclude={"engine_id", "at", "cpu_seconds"})
        found.append(figures | {"cpu_percent": round(percent, 3)})
    return found
