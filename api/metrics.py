"""What this process counts, for Prometheus."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.pool import QueuePool

from api.authentication import key_of
from model.errors import Unauthenticated
from model.metrics import REGISTRY, Figure, Figures, registry_of
from model.settings import Settings

router = APIRouter(tags=["health"])

POOL_SIZE = Figure("cairn_database_pool_size", "Connections to the database that this process may have")
POOL_IN_USE = Figure("cairn_database_pool_in_use", "How many of them are in use")
QUEUED = Figure("cairn_dispatcher_queue", "Starts and cancels that wait in this process")
STREAMS = Figure("cairn_streams_open", "Streams of instances that are open through this process")
FOLLOWERS = Figure("cairn_event_followers", "Streams of events that are open through this process")
FIGURES = (POOL_SIZE, POOL_IN_USE, QUEUED, STREAMS, FOLLOWERS)


def of_app(app: FastAPI) -> CollectorRegistry:
    """What is counted of one application."""
    state = app.state

    def values() -> Iterator[tuple[Figure, tuple[str, ...], float]]:
        pool: Any = state.engine.pool
        if isinstance(pool, QueuePool):
            yield POOL_SIZE, (), pool.size()
            yield POOL_IN_USE, (), pool.checkedout()
        yield QUEUED, (), state.dispatcher.waiting
        yield STREAMS, (), state.open_streams.count
        yield FOLLOWERS, (), state.events.followers

    return registry_of(Figures(FIGURES, values))


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Of this process alone: each has its own."""
    settings: Settings = request.app.state.settings
    wanted = settings.metrics_token
    if wanted is not None and not hmac.compare_digest(key_of(request).encode(), wanted.get_secret_value().encode()):
        raise Unauthenticated("the token for the metrics is not valid")
    # In a thread, as it takes some milliseconds: requests go on between them.
    shown = await asyncio.to_thread(lambda: generate_latest(REGISTRY) + generate_latest(request.app.state.metrics))
    return Response(shown, media_type=CONTENT_TYPE_LATEST)
