"""What a control worker needs: waited for before it begins, as services may come up in any order, and set-up with
them; and looked at while it works."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

import migrations
from worker.database import revision

log = structlog.get_logger()
PAUSE_SECONDS = 1.0
#: Between two touches of the file that cairn-health looks at, and for one look at both services.
TOUCH_SECONDS = 5.0
PATIENCE = 4.0


async def wait_for_schema(engine: Engine) -> None:
    """Until the database has a schema that this program can work on; a newer one is."""
    said = None
    while (problem := await asyncio.to_thread(_schema_problem, engine)) is not None:
        if problem != said:
            log.warning("database.waiting", reason=problem)
        said = problem
        await asyncio.sleep(PAUSE_SECONDS)


def _schema_problem(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            found = revision(connection)
    except (SQLAlchemyError, OSError) as error:
        return str(error).partition("\n")[0]
    standing = migrations.standing(found)
    if standing in ("ok", "newer"):
        return None
    return f"the schema is {standing} ({found or 'none'}, needed: {migrations.newest()}): run 'cairn setup'"


async def wait_for_namespace(client: Client) -> None:
    """Until Temporal has the namespace."""
    said = None
    while True:
        try:
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
            return
        except RPCError as error:
            if error.message != said:
                log.warning("temporal.waiting", namespace=client.namespace, error=error.message)
            said = error.message
        await asyncio.sleep(PAUSE_SECONDS)


async def show_that_it_works(path: Path | None, client: Client, engine: Engine) -> None:
    """Touch the file again and again, as long as what a control worker needs answers it."""
    while path is not None:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(_ask, engine)
                await client.service_client.check_health()
                await asyncio.to_thread(path.touch)
        except (SQLAlchemyError, RPCError, RuntimeError, OSError, TimeoutError) as error:
            log.warning("health.away", error=str(error).partition("\n")[0] or type(error).__name__)
        await asyncio.sleep(TOUCH_SECONDS)


def _ask(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
