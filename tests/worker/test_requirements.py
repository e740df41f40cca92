"""What a control worker waits for before it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import migrations
from tests.services import Database, database
from worker.database import connect
from worker.requirements import wait_for_schema

__all__ = ["database"]


async def waits(work: Coroutine[Any, Any, None], then: Any) -> None:
    """It does, until ``then`` was done."""
    task = asyncio.create_task(work)
    await asyncio.sleep(1.5)
    assert not task.done()
    await asyncio.to_thread(then)
    await asyncio.wait_for(task, 10)


async def test_older_schemas_are_waited_out_and_newer_ones_are_not(database: Database) -> None:
    engine = connect(database.url("cairn_worker"), 1)

    def is_at(revision: str) -> None:
        database.rows("UPDATE alembic_version SET version_num = %s", revision)

    try:
        await asyncio.wait_for(wait_for_schema(engine), 10)
        is_at("9999")
        await asyncio.wait_for(wait_for_schema(engine), 10)
        is_at("0001")
        await waits(wait_for_schema(engine), lambda: is_at(migrations.newest()))
        database.rows("REVOKE SELECT ON alembic_version FROM cairn_worker")
        again = "GRANT SELECT ON alembic_version TO cairn_worker"
        await waits(wait_for_schema(engine), lambda: database.rows(again))
    finally:
        engine.dispose()
