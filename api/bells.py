"""Wake-ups: who waits for a workflow, or for events, is called when something was committed.

A bell may be missed (a dropped connection), so whoever waits also looks by itself now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

import psycopg
import structlog

log = structlog.get_logger()


class Bells:
    """One LISTEN connection per API process, however many wait."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    @contextlib.contextmanager
    def listening(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set by each ring for ``topic``: a workflow's id, or "" for anything."""
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            yield event
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def ring(self, topic: str) -> None:
        for name in {topic, ""}:
            for event in self._waiting.get(name, ()):
                event.set()

    async def run(self) -> None:
        """Pass on what the workers and other API processes notify."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._database_url, autocommit=True) as connection:
                    await connection.execute("LISTEN cairn")
                    async for notice in connection.notifies():
                        self.ring(notice.payload)
            except psycopg.OperationalError as error:
                log.info("bells.reconnecting", error=str(error).partition("\n")[0])
            await asyncio.sleep(0.5)


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Until the next ring, at most ``seconds``; whether there was one."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    rung = event.is_set()
    event.clear()
    return rung
