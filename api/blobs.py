"""``/v1/blobs/{digest}``: files of images, for the hosts that need them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from api.agent_credentials import Authenticated, MemberRoute
from api.errors import RESPONSES, also
from drivers.blobs import Blobs, Opened
from model.errors import NotFound

router = APIRouter(prefix="/v1/blobs", tags=["agents"], responses=RESPONSES, route_class=MemberRoute)
PIECE = 1 << 20
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
_MAY_FETCH = text("SELECT may_fetch(:credential, :digest)")


@router.get("/{digest}", response_class=StreamingResponse, responses=also(404) | _FILE)
async def fetch(request: Request, digest: str, agent: Authenticated) -> Response:
    """The file with this digest, where an instance that is placed on a host of the agent is made of it."""
    asked = {"credential": agent.credential, "digest": digest.replace("\x00", "")}
    needed = (await agent.connection.execute(_MAY_FETCH, asked)).scalar_one()
    if not needed:
        raise NotFound(f"no instance on this host needs {digest[:100]}")
    blobs: Blobs = request.app.state.blobs
    opened = await asyncio.to_thread(blobs.open, digest)
    headers = {"Content-Length": str(opened.size)}
    return StreamingResponse(_pieces(opened), headers=headers, media_type="application/octet-stream")


async def _pieces(opened: Opened) -> AsyncIterator[bytes]:
    """A piece is read when the one before was taken."""
    try:
        while piece := await asyncio.to_thread(opened.source.read, PIECE):
            yield piece
    finally:
        opened.source.close()
