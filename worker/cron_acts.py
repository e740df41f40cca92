"""What cron jobs ask of the platform, taken up in an API's process."""

from __future__ import annotations

import asyncio

import structlog
from fastapi import FastAPI
from temporalio.service import RPCError

from activities.cron_calls import API, CronActs
from api.cron_acts import Acting
from model.metrics import STEPS_LIMIT
from model.settings import Settings
from worker.cron import AGAIN_SECONDS, taking_up
from worker.temporal_client import connect

#: Requests of cron jobs at once, of all projects, to one API.
AT_ONE_API = 60
log = structlog.get_logger()


async def act(app: FastAPI, settings: Settings) -> None:
    """Take up what cron jobs ask of the platform, in an API's process, until it is cancelled."""
    STEPS_LIMIT.labels(API).set(AT_ONE_API)
    acts = CronActs(Acting(app).act)
    while True:
        try:
            await taking_up(await connect(settings), API, acts, AT_ONE_API).run()
        except (RuntimeError, RPCError) as error:  # Temporal has no such namespace yet, say
            log.warning("cron.not_taken_up", error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)
