"""Is the process alive, and can it serve?"""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

from api.envelope import Envelope, answer
from api.errors import also, render
from model.errors import Unavailable

router = APIRouter(prefix="/health", tags=["health"])
PATIENCE = 2
log = structlog.get_logger()


class Live(BaseModel):
    status: str


class Ready(Live):
    """``checks``: dependency → ok or away."""

    checks: dict[str, str]


@router.get("/live", operation_id="get_liveness", response_model=Envelope[Live])
async def live(request: Request) -> Response:
    """The process answers."""
    return answer(request, {"status": "ok"})


@router.get("/ready", operation_id="get_readiness", response_model=Envelope[Ready], responses=also(503))
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
            # Not wait_for: it would also wait until a silent connection is cleaned up.
            task = asyncio.create_task(check())
            done, _ = await asyncio.wait({task}, timeout=PATIENCE)
            task.cancel()
            if not done:
                raise TimeoutError
            task.result()
            checks[name] = "ok"
        except (SQLAlchemyError, RPCError, RuntimeError, OSError, TimeoutError) as error:
            log.warning("health.away", dependency=name, error=str(error).partition("\n")[0] or type(error).__name__)
            checks[name] = "away"
    usable = checks["database"] == "ok"
    status = "ok" if all(value == "ok" for value in checks.values()) else "degraded" if usable else "unavailable"
    if usable:
        return answer(request, {"status": status, "checks": checks})
    return render(request, Unavailable("the database is away", status=status, checks=checks))
