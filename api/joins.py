"""Files of sessions on their way into the sandboxes that these have claimed."""

from __future__ import annotations

import asyncio

import structlog

from api.agent_client import Agents, Target
from model.errors import CairnError
from model.pools import Join

log = structlog.get_logger()
#: At once, of one API process; beyond that it is left to the workflows.
MOST = 200


class Joins:
    """Tells agents right after a claim, beside the session's workflow, which tells them too and waits for it: whoever
    asks first, a command need not wait for a workflow to begin."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._open: set[asyncio.Task[None]] = set()

    def start(self, target: Target, join: Join) -> None:
        """Never blocks, never fails."""
        if len(self._open) < MOST:
            task = asyncio.create_task(self._tell(target, join))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _tell(self, target: Target, join: Join) -> None:
        try:
            await self._agents.join(target, join)
        except CairnError as error:
            log.info("join.not_told", session=str(target.instance), error=error.message, left_to="workflow")
