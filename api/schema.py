"""Whether the database has the schema that this program needs."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations

NOT_SET_UP = "the database is not set up for this version of Cairn: run 'cairn setup'"


async def lacking(engine: AsyncEngine) -> str | None:
    """What the database's schema lacks, if anything. Raises SQLAlchemyError where it is away."""
    async with engine.connect() as connection:
        try:
            found = (await connection.execute(text(migrations.REVISION))).scalar()
        except ProgrammingError:  # there is none, or of a version that let nobody look
            found = None
    standing = migrations.standing(found)
    return f"schema_{standing}" if standing in ("missing", "older") else None
