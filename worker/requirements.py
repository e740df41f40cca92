"""What a control worker waits for before it begins: the services may come up in any order, and set-up with them."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

import migrations
from worker.database import revision

log = structlog.get_logger()
PAUSE_SECONDS = 1.0


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
