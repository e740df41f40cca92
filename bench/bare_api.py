"""The baselines of a read: FastAPI handlers with the same SELECT, and nothing else. One through psycopg, one
through SQLAlchemy, as the API has it. Arguments: URL of the database, port."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import uvicorn
import uvloop
from fastapi import FastAPI
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

SELECT = (
    "SELECT i.*, h.name AS host, h.last_seen_at FROM instances i LEFT JOIN hosts h ON h.id = i.host_id WHERE i.id = %s"
)

_SELECT = text(SELECT.replace("%s", ":id"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncConnectionPool(sys.argv[1], min_size=8, max_size=8, kwargs={"row_factory": dict_row}) as pool:
        app.state.pool = pool
        app.state.engine = create_async_engine(sys.argv[1].replace("postgresql:", "postgresql+psycopg:"), pool_size=8)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/instances/{instance_id}")
async def show(instance_id: UUID) -> dict[str, Any]:
    async with app.state.pool.connection() as connection:
        found = await (await connection.execute(SELECT, (instance_id,))).fetchone()
        return dict(found)


@app.get("/sqlalchemy/{instance_id}")
async def show_by_sqlalchemy(instance_id: UUID) -> dict[str, Any]:
    async with app.state.engine.begin() as connection:
        found = await connection.execute(_SELECT, {"id": instance_id})
        return dict(found.mappings().one())


uvloop.install()
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), http="httptools", access_log=False, log_level="error")
