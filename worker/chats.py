"""Turns of agents, taken up in an API's process."""

from __future__ import annotations

import asyncio

import structlog
from fastapi import FastAPI
from temporalio.service import RPCError

from activities.chats import CHATS, ChatCalls
from api.chat_delivery import Delivery
from model.metrics import STEPS_LIMIT
from model.settings import Settings
from worker.cron import AGAIN_SECONDS, taking_up
from worker.temporal_client import connect

#: Answers that one API waits for at once; each costs it a connection, and a stream of an agent of a host.
AT_ONE_API = 200
log = structlog.get_logger()


async def take_up(app: FastAPI, settings: Settings) -> None:
    """Until it is cancelled."""
    STEPS_LIMIT.labels(CHATS).set(AT_ONE_API)
    delivery = Delivery(app)
    calls = ChatCalls(delivery.deliver, delivery.cancel)
    while True:
        try:
            await taking_up(await connect(settings), CHATS, calls, AT_ONE_API).run()
        except (RuntimeError, RPCError) as error:  # Temporal has no such namespace yet, say
            log.warning("chats.not_taken_up", error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)
