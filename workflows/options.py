"""Queues, time-outs and retries of activities: all of them, and nowhere else."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig

with workflow.unsafe.imports_passed_through():
    from activities.chats import CHATS
    from activities.cron_calls import API, CRON
    from activities.images import IMAGES
    from activities.runs import CONTROL, host_queue
    from activities.webhooks import WEBHOOKS
    from model.workflows import Order

#: An attempt that is silent for this long is given to another worker. Workers beat every second.
HEARTBEAT = timedelta(seconds=5)
#: Least time that a step gets, however late it is in its run.
LEAST = timedelta(seconds=5)
#: Time to remove what a run made. What cannot be removed by then, the host's next inventory finds.
REMOVE = timedelta(seconds=20)
#: Time to bring back what a run changed: nothing else would.
RESTORE = timedelta(seconds=60)

#: A step that could be done elsewhere waits so long for its host to take it up: longer than a lease lasts.
SILENCE = timedelta(seconds=20)

_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), backoff_coefficient=2, maximum_interval=timedelta(seconds=5)
)
_POLL = RetryPolicy(initial_interval=timedelta(milliseconds=250), backoff_coefficient=1)


def remaining(order: Order) -> timedelta:
    """Time until the run's deadline."""
    elapsed = workflow.now() - workflow.info().start_time
    return max(timedelta(seconds=order.deadline_seconds) - elapsed, LEAST)


def continued(order: Order) -> Order:
    """The order of the run that goes on where this one ends: with what is left of its time, as the owner of its row."""
    first = workflow.info().first_execution_run_id
    return order.model_copy(update={"deadline_seconds": remaining(order).total_seconds(), "first_run_id": first})


def on_control(within: timedelta | None = None, *, poll: bool = False, long: bool = False) -> ActivityConfig:
    """A transaction; without ``within`` tried until it succeeds. ``poll``: NotReady is expected. ``long``: an attempt
    may take all of ``within``; it shows that it lives, and hears of a cancel, by its heartbeats."""
    return ActivityConfig(
        task_queue=CONTROL,
        schedule_to_close_timeout=within,
        start_to_close_timeout=within if long else timedelta(minutes=5),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=_POLL if poll else _RETRY,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def on_images(within: timedelta) -> ActivityConfig:
    """Bringing or reading a file of any size: an attempt may take all of ``within``."""
    return on_control(within, long=True) | ActivityConfig(task_queue=IMAGES)


def on_webhooks() -> ActivityConfig:
    """Requests to receivers, each with its own time-out; what became of them is in rows."""
    return ActivityConfig(
        task_queue=WEBHOOKS,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=_RETRY,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def on_cron(within: timedelta) -> ActivityConfig:
    """A request to a cron job's target; the activity counts its attempts, and says when it is tried again."""
    return on_control(within, long=True) | ActivityConfig(task_queue=CRON)


def on_api(within: timedelta) -> ActivityConfig:
    """A request to the platform itself, which whichever API is there takes up."""
    return on_control(within, long=True) | ActivityConfig(task_queue=API)


def on_chats(within: timedelta) -> ActivityConfig:
    """What is said to an agent of a session, and what it answers, through whichever API is there."""
    return on_control(within, long=True) | ActivityConfig(task_queue=CHATS)


def on_host(host: str, within: timedelta, *, taken_up_within: timedelta | None = None) -> ActivityConfig:
    """A call to the host's engine, tried until ``within`` has passed.

    The host may be silent for as long, or for ``taken_up_within``: a dead agent shows (the step stays scheduled),
    and goes on when it is back. That it did not answer does not prove that it did nothing.
    """
    return ActivityConfig(
        task_queue=host_queue(host),
        schedule_to_close_timeout=within,
        schedule_to_start_timeout=min(within, taken_up_within or within),
        start_to_close_timeout=within,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=_RETRY,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )
