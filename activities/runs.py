"""Runs of workflows and their rows: start, claim, end.

The row says what was asked for, Temporal how far it is. A run *claims* its row before it does
anything, and *ends* it in the transaction that moves its resource.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session
from temporalio import activity
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowHandle
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)

from activities.database import once_committed
from model import metrics, tracing
from model.errors import CairnError, NotReady
from model.restores import KINDS, is_restored
from model.workflows import TERMINAL, Event, Failure, Order, Outcome, State, Step, Workflow

CONTROL = "control"
_NOTIFY = text("SELECT pg_notify('cairn', :workflow_id)")
_INSERT_EVENT = insert(Event.__table__)  # type: ignore[arg-type]  # a Table, typed as FromClause

PROJECT = SearchAttributeKey.for_keyword("CairnProject")
RESOURCE = SearchAttributeKey.for_keyword("CairnResource")
NAME = SearchAttributeKey.for_keyword("CairnName")


class RunEnded(CairnError):
    """The row was settled without this run: there is nothing to do."""

    code, status = "run_ended", 409


def host_queue(host: str) -> str:
    return f"host:{host}"


async def start(client: Client, order: Order) -> WorkflowHandle[Any, Any]:
    """Start the run of ``order``; the same order again finds the same run."""
    with tracing.continued(order.traceparent):
        return await client.start_workflow(
            order.kind,
            order,
            id=str(order.workflow_id),
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            static_summary=f"{order.kind} {order.name}",
            static_details=f"{order.resource_type} `{order.resource_id}`, request `{order.request_id}`",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(PROJECT, str(order.project_id)),
                    SearchAttributePair(RESOURCE, str(order.resource_id)),
                    SearchAttributePair(NAME, order.name),
                ]
            ),
        )


def claim(session: Session, order: Order) -> Workflow:
    """Make the calling run the owner of its row. Raises RunEnded where the row does not wait for it, NotReady while
    the platform is restored."""
    run_id = order.first_run_id or activity.info().workflow_run_id
    row = session.execute(
        update(Workflow)
        .where(
            Workflow.id == order.workflow_id,
            (Workflow.state == State.ACCEPTED) | ((Workflow.state == State.RUNNING) & (Workflow.run_id == run_id)),
            Workflow.kind.in_(KINDS) | ~is_restored,
        )
        .values(
            state=State.RUNNING,
            run_id=run_id,
            started_at=func.coalesce(Workflow.started_at, func.now()),
            checked_at=func.now(),
        )
        .returning(Workflow)
    ).scalar_one_or_none()
    if row is None:
        waits = select(Workflow.id).where(
            Workflow.id == order.workflow_id, Workflow.state.not_in(TERMINAL), is_restored
        )
        if session.execute(waits).first() is not None:
            raise NotReady("the platform was restored from a backup: this goes on when its operator has finished that")
        raise RunEnded(f"workflow {order.workflow_id} is not waiting for run {run_id}")
    return row


def end(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> Workflow | None:
    """End the row; None where it had ended before, so that what goes with it happens once."""
    ended = session.execute(
        update(Workflow)
        .where(Workflow.id == order.workflow_id, Workflow.state.not_in(TERMINAL))
        .values(
            state=outcome,
            finished_at=func.now(),
            error=failure.model_dump() if failure else None,
            steps=[step.model_dump(mode="json") for step in steps] if steps is not None else None,
        )
        .returning(Workflow)
    ).scalar_one_or_none()
    if ended is not None:
        kind, began, at = order.kind, ended.created_at, ended.finished_at
        once_committed(session, lambda: metrics.ended(kind, outcome, began, at))
    return ended


def record(session: Session, order: Order, *events: tuple[str, dict[str, Any]]) -> None:
    """Write events (type, data) about the order's resource, and wake whoever waits for it after the commit."""
    common = {
        "project_id": order.project_id,
        "resource_type": order.resource_type,
        "resource_id": order.resource_id,
        "workflow_id": order.workflow_id,
    }
    session.flush()
    session.connection().execute(_INSERT_EVENT, [{**common, "type": type, "data": data} for type, data in events])
    session.connection().execute(_NOTIFY, {"workflow_id": str(order.workflow_id)})


def others(session: Session, order: Order) -> list[UUID]:
    """Unfinished workflows of the same resource, other than the order's own."""
    return list(
        session.scalars(
            select(Workflow.id).where(
                Workflow.project_id == order.project_id,
                Workflow.resource_id == order.resource_id,
                Workflow.id != order.workflow_id,
                Workflow.state.not_in(TERMINAL),
            )
        )
    )


class Histories:
    """Step summaries of runs, read from Temporal by activities, whose threads are not the loop's."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def steps(self, workflow_id: UUID) -> list[Step]:
        """Blocks for one or two calls to Temporal."""
        summary = summarise(self._client.get_workflow_handle(str(workflow_id)), running=False)
        return asyncio.run_coroutine_threadsafe(summary, self._loop).result(10)


#: Steps that are bookkeeping, not part of what a user asked for.
_HIDDEN = {
    *("instance.settle", "image.settle", "lb.settle", "workspace.settle", "session.settle"),
    "cache_volume.settle",
}


async def summarise(handle: WorkflowHandle[Any, Any], *, running: bool) -> list[Step]:
    """The steps of a run, from its history; with ``running``, also how far the open ones are."""
    pending: dict[str, PendingActivityInfo] = {}
    if running:
        description = await handle.describe()
        pending = {p.activity_id: p for p in description.raw_description.pending_activities}
    return read_steps([event async for event in handle.fetch_history_events()], pending)


_CLOSED = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: ("completed", "activity_task_completed_event_attributes"),
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: ("failed", "activity_task_failed_event_attributes"),
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: ("failed", "activity_task_timed_out_event_attributes"),
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: ("cancelled", "activity_task_canceled_event_attributes"),
}


def read_steps(events: Iterable[HistoryEvent], pending: dict[str, PendingActivityInfo]) -> list[Step]:
    """The steps in a history. Temporal writes an attempt down when it ends: open ones are in ``pending``."""
    steps: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            scheduled = event.activity_task_scheduled_event_attributes
            if scheduled.activity_type.name in _HIDDEN:
                continue
            queue = scheduled.task_queue.name
            step: dict[str, Any] = {
                "name": scheduled.activity_type.name,
                "host": queue.removeprefix("host:") if queue.startswith("host:") else None,
                "state": "scheduled",
                "attempts": 0,
                "started_at": None,
                "finished_at": None,
                "error": None,
                "undo": scheduled.activity_id.startswith("undo"),
            }
            if open_step := pending.get(scheduled.activity_id):
                step["attempts"] = open_step.attempt
                step["error"] = open_step.last_failure.message or None
                if open_step.state != PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
                    step["state"] = "running"
                    step["progress"] = _progress(open_step)
                if open_step.HasField("last_started_time"):
                    step["started_at"] = _time(open_step.last_started_time)
            steps[event.event_id] = step
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            if found := steps.get(started.scheduled_event_id):
                found |= {"state": "running", "attempts": started.attempt, "started_at": _time(event.event_time)}
        elif closing := _CLOSED.get(event.event_type):
            state, attributes = closing
            closed = getattr(event, attributes)
            if found := steps.get(closed.scheduled_event_id):
                failure = getattr(closed, "failure", None)
                found |= {
                    "state": state,
                    "finished_at": _time(event.event_time),
                    "error": (failure.message or None) if failure is not None else None,
                }
    return [Step(**step) for step in steps.values()]


def _progress(pending: PendingActivityInfo) -> str | None:
    """What its last heartbeat said."""
    for payload in pending.heartbeat_details.payloads:
        with contextlib.suppress(ValueError):
            said = orjson.loads(payload.data)
            return said if isinstance(said, str) else None
    return None


def _time(stamp: Any) -> dt.datetime:
    moment: dt.datetime = stamp.ToDatetime(tzinfo=dt.UTC)
    return moment
