"""URLs that users give: what may stand in one, and the look at where it leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from yarl import URL

from api.caller import Caller
from drivers import outbound
from model.settings import Settings

#: For the look at where a URL leads; what is not known by then is judged where it is connected to.
LOOK_UP_SECONDS = 3


def has_credentials(url: str) -> bool:
    """Whether everybody who reads it would see a name or password."""
    try:
        parsed = URL(url)
    except ValueError:
        return False  # it is no URL, which is found later
    return parsed.user is not None or parsed.password is not None


async def check(request: Request, caller: Caller, url: str) -> None:
    """Look where it leads. The caller's transaction ends before: name servers may take their time.

    Raises UrlRefused.
    """
    settings: Settings = request.app.state.settings
    await caller.release()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_UP_SECONDS):
            await outbound.check(url, settings.outbound_allow, caller.project_id)


@asynccontextmanager
async def looked_up(request: Request, caller: Caller, url: str | None) -> AsyncIterator[Caller]:
    """A transaction of the caller, begun after the look at where the URL leads. Raises UrlRefused."""
    if url is None:
        yield caller
        return
    await check(request, caller, url)
    async with caller.reopened() as again:
        yield again
        await again.commit()
