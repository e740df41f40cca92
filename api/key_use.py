"""When API keys were last used: gathered here, and written now and then, so that no request waits for it."""

from __future__ import annotations

import asyncio
import datetime as dt
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

FLUSH_SECONDS = 30
log = structlog.get_logger()
_WRITE = text("SELECT keys_used(cast(:ids AS uuid[]), cast(:times AS timestamptz[]))")


class KeyUse:
    """Of one process. What it has not written when it dies is lost: up to ``FLUSH_SECONDS`` of it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._used: dict[UUID, dt.datetime] = {}

    def note(self, key_id: UUID) -> None:
        self._used[key_id] = dt.datetime.now(dt.UTC)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            async with self._engine.begin() as connection:
                await connection.execute(_WRITE, {"ids": list(used), "times": list(used.values())})
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            self._used = used | self._used
            log.info("keys.use_not_written", error=str(error).partition("\n")[0])
