"""What is counted of every attempt of an activity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from temporalio import activity
from temporalio.exceptions import ApplicationError

from model.metrics import QUEUE_WAIT_SECONDS, STEP_ATTEMPTS, STEP_RETRIES, STEP_SECONDS, STEPS_RUNNING


def queue_of(info: activity.Info) -> tuple[str, str | None]:
    """The kind of queue that an attempt came from, and its host, where it is one's."""
    kind, _, host = info.task_queue.partition(":")
    return kind, host or None


@contextmanager
def counted(info: activity.Info) -> Iterator[None]:
    """Around an attempt, whose errors are those that Temporal gets."""
    queue, _ = queue_of(info)
    waited = (info.started_time - info.current_attempt_scheduled_time).total_seconds()
    QUEUE_WAIT_SECONDS.labels(queue).observe(max(waited, 0.0))
    if info.attempt > 1:
        STEP_RETRIES.labels(info.activity_type).inc()
    running = STEPS_RUNNING.labels(queue)
    running.inc()
    began = time.perf_counter()
    outcome = "retryable"
    try:
        yield
        outcome = "completed"
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except ApplicationError as error:
        outcome = "final" if error.non_retryable else "retryable"
        raise
    finally:
        running.dec()
        STEP_SECONDS.labels(info.activity_type).observe(time.perf_counter() - began)
        STEP_ATTEMPTS.labels(info.activity_type, outcome).inc()
