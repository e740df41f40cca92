"""What becomes of files that nobody needs: one that cannot be removed keeps no other."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import httpx

from drivers.workspaces import Held
from model.base import new_id
from worker.workspaces import WorkspaceSweep


async def test_one_that_cannot_be_removed_keeps_no_other() -> None:
    there = [Held(new_id(), new_id()) for _ in range(3)]
    removed: list[UUID] = []

    def remove(id: UUID) -> None:
        if id == there[0].id:
            raise RecursionError
        removed.append(id)

    def answered(request: httpx.Request) -> httpx.Response:
        told: dict[str, Any] = json.loads(request.content)
        return httpx.Response(200, json={"data": {"gone_sessions": [one["id"] for one in told["sessions"]]}})

    none: Any = None
    sweep = WorkspaceSweep(none, [], 1.0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answered), base_url="http://platform") as http:
        await sweep._sweep(http, "session", lambda: None, lambda: there, remove)
    sweep._threads.shutdown()
    assert removed == [there[1].id, there[2].id]
