"""What surrounds every activity: heartbeats, fault points, errors as Temporal wants them, log context."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import structlog
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from activities.counting import counted, queue_of
from drivers import faults, progress
from drivers.machines import Cancelled
from model import tracing
from model.errors import CairnError

#: Well below the heartbeat time-out of workflows.options; a cancel reaches an activity with a heartbeat.
HEARTBEAT_SECONDS = 1.0

#: Of a message, characters: Temporal cuts a failure of more than 4 KB off, all of it.
MOST_MESSAGE = 1000

log = structlog.get_logger()


class ActivityInterceptor(Interceptor):
    """Wraps every activity of a worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next)


class _Inbound(ActivityInboundInterceptor):
    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        self.outbound = outbound
        super().init(outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        with counted(info):
            return await self._attempt(input, info)

    async def _attempt(self, input: ExecuteActivityInput, info: activity.Info) -> Any:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            activity=info.activity_type,
            attempt=info.attempt,
            workflow_id=info.workflow_id,
            **_context(info, input.args),
        )
        passage = faults.Passage(
            info.activity_type, activity.is_cancelled, workflow_id=info.workflow_id, attempt=info.attempt
        )
        faults.enter(passage)
        # The event loop beats, so an activity's thread may block; start_to_close bounds how long.
        beating = asyncio.create_task(self._beat(progress.begin()))
        try:
            await _pass("before")
            result = await super().execute_activity(input)
            if "after_effect" not in passage.passed:
                # Nothing had to be changed: the point is passed all the same, before the answer.
                await _pass("after_effect")
            await _pass("after_commit")
            return result
        except Cancelled as stopped:
            raise asyncio.CancelledError from stopped
        except CairnError as error:
            why = {"code": error.code, "error": error.message, "retryable": error.retryable, **_cause(error)}
            log.warning("activity.failed", **why)
            # Not ``from error``: what led to it would be kept in the history, and push out what is said of it.
            raise ApplicationError(
                error.message[:MOST_MESSAGE],
                error.details,
                type=error.code,
                non_retryable=not error.retryable,
                next_retry_delay=_delay(error),
            ) from None
        except (asyncio.CancelledError, ApplicationError):
            raise
        except SQLAlchemyError as error:
            # One line, and no row: what the database says may hold what users wrote.
            said = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
            log.warning("activity.failed", code="unavailable", error=said, retryable=True)
            raise ApplicationError("the database is away, or refused a statement", type="unavailable") from None
        except Exception as error:
            log.exception("activity.failed", code="internal", retryable=True)
            raise ApplicationError(f"an error of ours: {type(error).__name__}", type="internal") from None
        finally:
            beating.cancel()

    async def _beat(self, far: progress.Progress) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.outbound.heartbeat(*([far.said] if far.said else []))


async def _pass(point: faults.Point) -> None:
    for seconds in faults.holds(point):
        await asyncio.sleep(seconds)


def _delay(error: CairnError) -> timedelta | None:
    """When whoever refused asks to be tried again; None: as the step's retries say."""
    seconds = error.details.get("retry_after_seconds")
    return timedelta(seconds=seconds) if seconds else None


def _cause(error: CairnError) -> dict[str, str]:
    cause = error.__cause__
    if cause is None or isinstance(cause, SQLAlchemyError):  # which may hold what users wrote
        return {}
    return {"cause": f"{type(cause).__name__}: {cause}"[:MOST_MESSAGE]}


def _context(info: activity.Info, args: Any) -> dict[str, str]:
    """The ids that log lines carry, from whichever argument has them."""
    found: dict[str, str] = {}
    if (host := queue_of(info)[1]) is not None:
        found["host"] = host
    if (trace_id := tracing.trace_id()) is not None:
        found["trace_id"] = trace_id
    for arg in args:
        if isinstance(arg, BaseModel):
            order = getattr(arg, "order", arg)
            for name in ("project_id", "resource_id", "request_id"):
                if (value := getattr(order, name, None)) is not None:
                    found[name] = str(value)
    return found
