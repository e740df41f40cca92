"""Is the process alive, and can it serve?"""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.service import RPCError, RPCStatusCode

from api.envelope import Envelope, answer
from api.errors import also, render
from api.schema import NOT_SET_UP, lacking
from model.errors import Unavailable

router = APIRouter(prefix="/health", tags=["health"])
PATIENCE = 2
log = structlog.get_logger()


class Live(BaseModel):
    status: str


class Ready(Live):
    """``status``: ok, degraded, unavailable, or ``leaving``: the process is about to end. ``checks``: dependency → ok,
    away, or what it lacks: ``schema_missing``, ``schema_older`` (of the database, than this program needs; a newer one
    is well), ``namespace_missing`` (of Temporal). What is missing ``cairn setup`` makes."""

    checks: dict[str, str]


@router.get("/live", operation_id="get_liveness", response_model=Envelope[Live])
async def live(request: Request) -> Response:
    """The process answers."""
    return answer(request, {"status": "ok"})


@router.get("/ready", operation_id="get_readiness", response_model=Envelope[Ready], responses=also(503))
async def ready(request: Request) -> Response:
    """Each dependency by name. 503 without the database, and once the process has been told to end: it answers what
    comes for a while still. Without Temporal requests are accepted all the same."""
    state = request.app.state
    if state.leaving.is_set():
        return render(request, Unavailable("this API is about to end", status="leaving", checks={}))

    async def database() -> str:
        return await lacking(state.engine) or "ok"

    async def temporal() -> str:
        await state.temporal.service_client.check_health()
        try:
            await state.temporal.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=state.temporal.namespace)
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return "namespace_missing"
            raise
        return "ok"

    checks = {}
    for name, check in (("database", database), ("temporal", temporal)):
        try:
            # Not wait_for: it would also wait until a silent connection is cleaned up.
            task = asyncio.create_task(check())
            done, _ = await asyncio.wait({task}, timeout=PATIENCE)
            task.cancel()
            if not done:
                raise TimeoutError
            checks[name] = task.result()
        except (SQLAlchemyError, RPCError, RuntimeError, OSError, TimeoutError) as error:
            log.warning("health.away", dependency=name, error=str(error).partition("\n")[0] or type(error).__name__)
            checks[name] = "away"
    usable = checks["database"] == "ok"
    status = "ok" if all(value == "ok" for value in checks.values()) else "degraded" if usable else "unavailable"
    if usable:
        return answer(request, {"status": status, "checks": checks})
    away = checks["database"] == "away"
    said = "the database is away" if away else NOT_SET_UP
    return render(request, Unavailable(said, status=status, checks=checks))
