"""That an instance does something: what its agent measures of it, and who uses it through Cairn.

Kept only for instances that are stopped when they do nothing. Nobody waits here for a step that holds an
instance's row: what ends such a step begins the time anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from api.caller import Caller
from model.lifetimes import IDLE_BYTES, IDLE_CPU_PERCENT, MARK_SECONDS, UNKNOWN
from model.samples import FINEST

log = structlog.get_logger()
_marking: set[asyncio.Task[None]] = set()

# Traffic is what the counters grew by since the sample before. After a time of which nothing is known it counts as
# active.
_NOTE = text(
    """
    UPDATE instances SET active_at = least(now(), cast(:until AS timestamptz)) WHERE id IN (
        SELECT i.id FROM jsonb_to_recordset(cast(:machines AS jsonb)) AS t(
            id uuid, generation int, cpu_percent float8, rx_bytes int8, tx_bytes int8
        )
        JOIN instances i ON i.id = t.id AND i.generation = t.generation AND i.project_id = :project
        JOIN hosts h ON h.id = i.host_id AND h.credential = :credential
        LEFT JOIN LATERAL (
            SELECT s.at, s.rx_bytes + s.tx_bytes AS bytes FROM samples s
            WHERE s.instance_id = i.id AND s.seconds = :seconds AND s.at < :at ORDER BY s.at DESC LIMIT 1
        ) before ON true
        WHERE i.idle_stop_seconds IS NOT NULL AND i.status = 'running'
          AND (i.active_at IS NULL OR i.active_at < least(now(), cast(:until AS timestamptz)))
          AND (
            t.cpu_percent >= :busy
            OR abs(t.rx_bytes + t.tx_bytes - before.bytes)
               >= :bytes * extract(epoch FROM cast(:at AS timestamptz) - before.at) / :seconds
            OR coalesce(greatest(before.at, i.active_at) < cast(:at AS timestamptz) - cast(:unknown AS interval), true)
          )
        ORDER BY i.id FOR UPDATE OF i SKIP LOCKED
    )
    """
)
_MARK = text(
    """
    UPDATE instances SET active_at = now() WHERE id IN (
        SELECT id FROM instances
        WHERE project_id = :project AND id = :id AND idle_stop_seconds IS NOT NULL AND status = 'running'
        FOR UPDATE SKIP LOCKED
    )
    """
)


async def note(connection: AsyncConnection, told: dict[str, Any]) -> None:
    """After samples were written: which of these machines did something. Told again, nothing changes."""
    limits = {"busy": IDLE_CPU_PERCENT, "bytes": IDLE_BYTES, "unknown": UNKNOWN}
    until = told["at"] + dt.timedelta(seconds=FINEST)
    await connection.execute(_NOTE, told | limits | {"until": until})


@asynccontextmanager
async def going_on(caller: Caller, instance_id: UUID) -> AsyncIterator[None]:
    """While somebody uses the instance through us. ``caller`` has ended its transaction."""
    await _mark(caller, instance_id)
    marking = asyncio.create_task(_keep_marking(caller, instance_id))
    try:
        yield
    finally:
        marking.cancel()
        # Nobody waits for it: who goes may be cancelled again at every wait.
        last = asyncio.create_task(_mark(caller, instance_id))
        _marking.add(last)
        last.add_done_callback(_marking.discard)


async def _keep_marking(caller: Caller, instance_id: UUID) -> None:
    while True:
        await asyncio.sleep(MARK_SECONDS)
        await _mark(caller, instance_id)


async def _mark(caller: Caller, instance_id: UUID) -> None:
    try:
        async with caller.again() as connection:
            await connection.execute(_MARK, {"project": caller.project_id, "id": instance_id})
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        log.info("activity.not_marked", instance=str(instance_id), error=str(error).partition("\n")[0])
