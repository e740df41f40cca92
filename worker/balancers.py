"""What the proxies of an agent's load balancers do, and how their targets are: read every few seconds, and told to the
API; in a thread of its own. What targets did in an interval of which the API was not told, it never learns: with the
next, it would look like that much more in ten seconds, and groups would grow by it."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import structlog

from drivers.balancers import Balancers
from model import haproxy
from model.balancers import READ_SECONDS, SAMPLE_SECONDS, BalancerReading
from model.errors import CairnError
from model.metrics import LB_ERRORS, LB_REQUESTS
from worker.identity import Membership, api_client

log = structlog.get_logger()
#: Hosts of one agent that are read at once; balancers that one request tells of.
AT_ONCE, MOST = 4, 50
PATIENCE = 5.0
#: Of what is told, what this process shows too.
_SHOWN = {"requests": LB_REQUESTS, "errors": LB_ERRORS}
COUNTERS = ("requests", "bytes_in", "bytes_out", "errors")


class Counted:
    """What one balancer has done since it was last told, whatever processes of its proxy did it."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, int]] = {}
        self._pid = 0
        self.sums: dict[str, dict[str, int]] = {}

    def take(self, reading: BalancerReading) -> None:
        """Add what came since the reading before. A process that is new counts from nothing: what the one before it did
        after its last reading is not known."""
        now: dict[str, Any] = {"": reading, **{server.name: server for server in reading.servers}}
        first = not self._before
        anew = reading.pid != self._pid
        figures = {name: {what: getattr(one, what) for what in COUNTERS} for name, one in now.items()}
        for name, counted in figures.items():
            before = {} if anew else self._before.get(name, {})
            sums = self.sums.setdefault(name, dict.fromkeys(COUNTERS, 0))
            for what in COUNTERS:
                # Of the very first reading nothing is known of when it was.
                more = 0 if first else max(0, counted[what] - before.get(what, 0))
                sums[what] += more
                if not name and what in _SHOWN:
                    _SHOWN[what].inc(more)
        self._before, self._pid = figures, reading.pid

    def told(self, reading: BalancerReading) -> dict[str, Any]:
        """As the API takes it."""
        nothing = dict.fromkeys(COUNTERS, 0)
        targets = []
        for server in reading.servers:
            instance, generation = haproxy.instance_of(server.name), server.name.rpartition("-")[2]
            who = {"instance_id": str(UUID(instance)), "generation": int(generation)}
            about = {"health": server.health, "check": server.check, "sessions": server.sessions}
            targets.append(who | about | self.sums.get(server.name, nothing))
        who = reading.model_dump(mode="json", include={"id", "project_id", "generation", "sessions"})
        return who | self.sums.get("", nothing) | {"targets": targets}


class BalancerReadings:
    """One loop for each host that has balancers."""

    def __init__(self, membership: Membership, balancers: Mapping[UUID, Balancers]) -> None:
        self._membership = membership
        self._balancers = balancers
        self._threads = ThreadPoolExecutor(min(AT_ONCE, len(balancers)), thread_name_prefix="balancers")

    async def run(self) -> None:
        async with api_client(self._membership, PATIENCE) as http:
            try:
                await asyncio.gather(*(self._follow(http, one) for one in self._balancers.values()))
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _follow(self, http: httpx.AsyncClient, balancers: Balancers) -> None:
        counted: dict[UUID, Counted] = {}
        begun = time.time() // SAMPLE_SECONDS * SAMPLE_SECONDS
        read_at = time.monotonic()
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                readings = await asyncio.get_running_loop().run_in_executor(self._threads, balancers.read)
            except CairnError as error:
                log.info("balancers.unknown", error=error.message)
                continue
            except Exception:  # an odd answer of a proxy ends nothing here
                log.exception("balancers.unknown")
                continue
            now = time.monotonic()
            if now - read_at > SAMPLE_SECONDS:  # what came since is of more than one interval
                counted.clear()
            read_at = now
            for reading in readings:
                counted.setdefault(reading.id, Counted()).take(reading)
            for gone in counted.keys() - {reading.id for reading in readings}:
                del counted[gone]
            interval = time.time() // SAMPLE_SECONDS * SAMPLE_SECONDS
            # How the targets are is told at once, what they did when the interval has ended.
            ended = interval - SAMPLE_SECONDS if interval > begun else None
            await self._tell(http, ended, [counted[one.id].told(one) for one in readings])
            if ended is not None:
                begun = interval
                for one in counted.values():
                    one.sums.clear()

    async def _tell(self, http: httpx.AsyncClient, at: float | None, balancers: list[dict[str, Any]]) -> None:
        when = {} if at is None else {"at": dt.datetime.fromtimestamp(at, dt.UTC).isoformat()}
        for first in range(0, len(balancers), MOST):
            body = {**when, "balancers": balancers[first : first + MOST]}
            try:
                answer = await http.post("/hosts/balancers", json=body)
            except (httpx.HTTPError, RuntimeError, OSError) as error:
                log.info("balancers.not_told", error=str(error) or type(error).__name__)
                return
            if not answer.is_success:
                log.warning("balancers.not_told", status=answer.status_code, answer=answer.text[:500])
