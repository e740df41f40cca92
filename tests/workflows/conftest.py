from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from temporalio.testing import WorkflowEnvironment

from tests.workflows.stage import Theatre, server, theatre


@pytest_asyncio.fixture(scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with server() as environment:
        yield environment


@pytest_asyncio.fixture
async def play(temporal: WorkflowEnvironment) -> AsyncIterator[Theatre]:
    async with theatre(temporal.client) as one:
        yield one
