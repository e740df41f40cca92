"""``cairn-health``: whether a process of this machine, or of this container, works. For those who restart it.

The API is asked. A control worker serves nothing: it touches a file while the database and Temporal answer it. An
agent writes down each lease that it is granted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import httpx
import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client
from temporalio.service import RPCError

from model.hosts import LEASE
from model.settings import Settings, of_process
from worker import fence, identity

log = structlog.get_logger()
TOUCH_SECONDS = 5.0
FRESH_SECONDS = 20.0
PATIENCE = 4.0
USAGE = "usage: cairn-health api | control | agent"


async def show_that_it_works(path: Path | None, client: Client, engine: Engine) -> None:
    """Touch the file again and again, as long as what a control worker needs answers it."""
    while path is not None:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(_ask, engine)
                await client.service_client.check_health()
                await asyncio.to_thread(path.touch)
        except (SQLAlchemyError, RPCError, RuntimeError, OSError, TimeoutError) as error:
            log.warning("health.away", error=str(error).partition("\n")[0] or type(error).__name__)
        await asyncio.sleep(TOUCH_SECONDS)


def _ask(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def main() -> None:
    """Ends with 0 where the process works; otherwise says what is wrong, and ends with 1."""
    kinds = {"api": _api, "control": _control, "agent": _agent}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:  # noqa: PLR2004 - the program and one word
        raise SystemExit(USAGE)
    problem = kinds[sys.argv[1]](of_process())
    if problem is not None:
        raise SystemExit(problem)


def _api(settings: Settings) -> str | None:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.api_host, settings.api_host)  # noqa: S104 - asked, not bound
    try:
        with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
            answer = http.get(f"http://{host}:{settings.api_port}/health/ready")
    except httpx.HTTPError as error:
        return f"the API does not answer: {error}"
    return None if answer.is_success else f"the API is not ready: {answer.text}"


def _control(settings: Settings) -> str | None:
    if settings.health_file is None:
        return "CAIRN_HEALTH_FILE is not set: a control worker shows with it that it works"
    try:
        age = time.time() - settings.health_file.stat().st_mtime
    except FileNotFoundError:
        return "the control worker has not begun to work"
    return None if age < FRESH_SECONDS else f"the control worker has not worked for {age:.0f} s"


def _agent(settings: Settings) -> str | None:
    path = identity.path_of(settings.data_dir.absolute(), settings.host_name)
    lease = fence.read_lease(path)
    if lease is None:
        return f"the agent of host {settings.host_name} has had no lease"
    age = fence.clock() - lease.asked_at
    fresh = lease.boot == fence.boot_id() and age < LEASE.total_seconds()
    return None if fresh else f"the lease of host {settings.host_name} has not been renewed for {age:.0f} s"


if __name__ == "__main__":
    main()
