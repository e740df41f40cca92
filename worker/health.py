"""Whether an agent's machines are well: looked at as their health checks ask, and told to the API when it changes.

What to look at is read from the machines themselves, so that an agent that starts knows. Looks run in a few threads
of their own: many at once wait for each other, and for nothing else. A project gets a share of them, so that the others
do not wait for it where none of its machines answers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import httpx
import structlog

from drivers.machines import Machines
from model.errors import CairnError
from model.health import MOST, Checked, Health, HealthCheck, Look
from worker.identity import Membership

log = structlog.get_logger()
#: Looks of one agent at once, and those of one project. A look takes a minute at most, and mostly waits.
AT_ONCE, SHARE = 32, 4
#: How often it is seen which machines there are.
SEE_SECONDS = 5.0
#: How often all is told, changed or not: the API may know otherwise, as after a start.
REFRESH_SECONDS = 30.0
PATIENCE, RETRY_SECONDS = 5.0, 2.0
#: So that machines launched together are not looked at together.
JITTER = 0.1


class Standing:
    """What is known of one machine."""

    def __init__(self) -> None:
        self.health: Health | None = None
        self.failure: str | None = None
        self._failures = 0
        self._looked_at = 0.0

    def take(self, look: Look, check: HealthCheck, now: float) -> None:
        """After a look that ended ``now``, Unix time."""
        if look.failure is not None and look.started_at is None:
            return  # it has ended, which others see
        before, self._looked_at = self._looked_at, now
        self.failure = look.failure
        if look.failure is None or look.started_at is None:
            self.health, self._failures = "healthy", 0
            return
        anew = look.started_at > before  # also of the first look of all
        if now - look.started_at < check.start_period_seconds:
            self.health = "starting" if anew else self.health
            return
        # Only a look that goes well takes failures back: what ends and is started again and again is not well.
        self._failures += 1
        if self._failures >= check.retries:
            self.health = "unhealthy"
        elif anew and self.health is not None:
            self.health = "starting"


class HealthLooks:
    """One loop for each host that sees which machines there are, one for each machine, one that tells the API."""

    def __init__(self, membership: Membership, machines: Mapping[UUID, Machines]) -> None:
        self._membership = membership
        self._machines = machines
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="health")
        #: By project, as long as it has machines here.
        self._shares: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()
        self._news = asyncio.Event()
        #: By the engine's ids.
        self._seen: dict[str, Checked] = {}
        self._standings: dict[str, Standing] = {}

    async def run(self) -> None:
        async with httpx.AsyncClient(
            base_url=self._membership.api_url,
            headers={"Authorization": f"Bearer {self._membership.credential}"},
            timeout=PATIENCE,
            trust_env=False,
        ) as http:
            try:
                await asyncio.gather(self._tell(http), *(self._see(machines) for machines in self._machines.values()))
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _see(self, machines: Machines) -> None:
        """Follow each machine of a host that has a check, from when it is seen until it is not."""
        followed: dict[str, asyncio.Task[None]] = {}
        try:
            await asyncio.sleep(random.uniform(0, 1))  # noqa: S311 - not all hosts at the same time
            while True:
                # In another thread than looks: those may all be waiting.
                found = await self._asked(None, machines.checked)
                if found is not None:
                    there = {machine.engine_id: machine for machine in found}
                    self._seen |= there
                    for engine_id in followed.keys() - there.keys():
                        followed.pop(engine_id).cancel()
                        self._seen.pop(engine_id, None)
                        self._standings.pop(engine_id, None)
                    for engine_id in there.keys() - followed.keys():
                        followed[engine_id] = asyncio.create_task(self._follow(machines, engine_id))
                await asyncio.sleep(SEE_SECONDS)
        finally:
            for task in followed.values():
                task.cancel()

    async def _follow(self, machines: Machines, engine_id: str) -> None:
        standing = self._standings[engine_id] = Standing()
        check, project_id = self._seen[engine_id].check, self._seen[engine_id].project_id
        share = self._shares.get(project_id) or asyncio.Semaphore(SHARE)
        self._shares[project_id] = share
        await asyncio.sleep(random.uniform(0, min(check.interval_seconds, SEE_SECONDS)))  # noqa: S311 - spread, not secret
        while True:
            async with share:
                look = await self._asked(self._threads, machines.look, self._seen[engine_id])
            if look is not None:
                before = standing.health
                standing.take(look, check, time.time())
                if standing.health != before:
                    log.info("health.changed", instance=str(self._seen[engine_id].id), health=standing.health)
                    self._news.set()
            await asyncio.sleep(check.interval_seconds * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - the same

    @staticmethod
    async def _asked(threads: ThreadPoolExecutor | None, call: Any, *arguments: Any) -> Any:
        """None: the engine does not say, and nothing is known. ``threads`` None: those of the process."""
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)
        except CairnError as error:
            log.info("health.unknown", error=error.message)
        except Exception:  # an odd answer of an engine ends nothing here
            log.exception("health.unknown")
        return None

    async def _tell(self, http: httpx.AsyncClient) -> None:
        working = True
        while True:
            try:
                async with asyncio.timeout(REFRESH_SECONDS if working else 0):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            told, failure = self._told(), None
            for first in range(0, len(told), MOST):
                failure = await self._tell_some(http, told[first : first + MOST]) or failure
            if failure is not None:
                if working:
                    log.warning("health.not_told", error=failure)
                await asyncio.sleep(RETRY_SECONDS)  # also where there is news
            working = failure is None

    def _told(self) -> list[dict[str, Any]]:
        found = []
        for engine_id, standing in self._standings.items():
            machine = self._seen.get(engine_id)
            if machine is not None and standing.health is not None:
                who = machine.model_dump(mode="json", include={"id", "project_id", "generation"})
                failure = standing.failure[:1000] if standing.failure else None
                found.append(who | {"health": standing.health, "failure": failure})
        return found

    @staticmethod
    async def _tell_some(http: httpx.AsyncClient, machines: list[dict[str, Any]]) -> str | None:
        """Why it is to be tried again."""
        try:
            answer = await http.post("/hosts/health", json={"machines": machines})
        except (httpx.HTTPError, RuntimeError, OSError) as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else f"the API answered {answer.status_code}"
