"""Connections to Temporal, alike for every process."""

from __future__ import annotations

import asyncio

import structlog
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.runtime import Runtime

from model.settings import Settings
from worker import tracing

log = structlog.get_logger()


async def connect(settings: Settings, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """``lazy``: at the first call. Otherwise waits until the server answers: workers need it."""
    waited = False
    while True:
        try:
            return await connect_once(settings, lazy=lazy, runtime=runtime)
        except RuntimeError as error:
            if not waited:
                log.warning("temporal.waiting", address=settings.temporal_address, error=str(error))
            waited = True
            await asyncio.sleep(0.2)


async def connect_once(settings: Settings, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """Raises RuntimeError, which is what the SDK has for a server that does not answer."""
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=pydantic_data_converter,
        interceptors=tracing.interceptors(),
        runtime=runtime,
        lazy=lazy,
    )
