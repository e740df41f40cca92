"""The API's pulse: hosts renew their leases through it, so their silence counts only while it works."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from activities import fleet

BEAT_SECONDS = 5
log = structlog.get_logger()


async def beat(engine: AsyncEngine) -> None:
    """Say so every few seconds, while the process lives."""
    while True:
        try:
            async with engine.begin() as connection:
                await connection.execute(fleet.BEAT, fleet.beat(fleet.API))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.info("pulse.missed", error=str(error).partition("\n")[0])
        await asyncio.sleep(BEAT_SECONDS)
