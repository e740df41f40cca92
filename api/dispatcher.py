"""Starts and cancels runs after the commit, outside the request. What it cannot do, the sweeper does."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.runs import start
from model import metrics
from model.workflows import Order

#: A cancel that Temporal knows no run for is tried again so often, for so long.
AGAIN_SECONDS, OVERTAKEN_SECONDS = 0.02, 1.0
log = structlog.get_logger()
_CALL_SWEEPER = text("SELECT pg_notify('cairn_sweep', '')")


class Dispatcher:
    """A bounded queue and a few tasks, in the API's process."""

    AT_ONCE = 6
    QUEUE = 10_000
    PATIENCE = timedelta(seconds=4)

    def __init__(self, client: Client, engine: AsyncEngine) -> None:
        self._client = client
        self._engine = engine
        self._queue: asyncio.Queue[Order | UUID] = asyncio.Queue(self.QUEUE)

    def start(self, order: Order) -> None:
        """Start the run soon. Never blocks, never fails: the row is written already."""
        self._put(order)

    def cancel(self, workflow_id: UUID) -> None:
        """Deliver a cancel that its row already asks for."""
        self._put(workflow_id)

    def _put(self, job: Order | UUID) -> None:
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            log.warning("dispatcher.full", left_to="sweeper")
            metrics.LEFT_TO_SWEEPER.inc()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(self.AT_ONCE)))

    async def drain(self, seconds: float) -> None:
        """At shutdown: hand over what is queued, while there is time."""
        try:
            async with asyncio.timeout(seconds):
                await self._queue.join()
        except TimeoutError:
            log.warning("dispatcher.left", jobs=self._queue.qsize(), left_to="sweeper")

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            try:
                await asyncio.wait_for(self._do(job), self.PATIENCE.total_seconds())
            except WorkflowAlreadyStartedError:
                pass  # the sweeper was faster, and the run has ended already
            except (RPCError, RuntimeError, TimeoutError) as error:
                metrics.LEFT_TO_SWEEPER.inc()
                log.warning("dispatcher.failed", error=str(error) or type(error).__name__, left_to="sweeper")
                await self._call_sweeper()
            finally:
                self._queue.task_done()

    async def _do(self, job: Order | UUID) -> None:
        if isinstance(job, Order):
            await start(self._client, job)
        else:
            await self._cancel(job)

    async def _cancel(self, workflow_id: UUID) -> None:
        """Its start may be under way still, and come after this."""
        until = time.monotonic() + OVERTAKEN_SECONDS
        while True:
            try:
                return await self._client.get_workflow_handle(str(workflow_id)).cancel()
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND or time.monotonic() > until:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def _call_sweeper(self) -> None:
        try:
            async with self._engine.begin() as connection:
                await connection.execute(_CALL_SWEEPER)
        except (SQLAlchemyError, OSError):
            log.info("dispatcher.sweeper_not_called", covered_by="tick")
