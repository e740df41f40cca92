"""Is the process alive, and can it serve?"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

from api.envelope import answer

router = APIRouter(prefix="/health", tags=["health"])
PATIENCE = 2


@router.get("/live")
async def live(request: Request) -> Response:
    """The process answers."""
    return answer(request, {"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Each dependency by name. 503 without the database; without Temporal requests are accepted all the same."""
    state = request.app.state

    async def database() -> None:
        async with state.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def temporal() -> None:
        await state.temporal.service_client.check_health()

    checks = {}
    for name, check in (("database", database), ("temporal", temporal)):
        try:
            await asyncio.wait_for(check(), PATIENCE)
            checks[name] = "ok"
        except (SQLAlchemyError, RPCError, RuntimeError, OSError, TimeoutError) as error:
            checks[name] = f"away: {str(error).partition(chr(10))[0] or type(error).__name__}"
    usable = checks["database"] == "ok"
    status = "ok" if all(value == "ok" for value in checks.values()) else "degraded" if usable else "unavailable"
    headers = {} if usable else {"Retry-After": "1"}
    return answer(request, {"status": status, "checks": checks}, 200 if usable else 503, headers=headers)
