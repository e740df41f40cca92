"""Rounds: what a run has its children do, a few at a time, and how those end that had not begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.database import use_project
from model.base import Frozen
from model.workflows import NEVER_STARTED, Order, State, Workflow

#: Of what could not be done, so many are named.
NAMED = 10


class Emptying(Frozen):
    """What is deleted next, how many others work on, and what could not be deleted; ``left``: how many of these."""

    deletions: list[Order] = []
    busy: int = 0
    stuck: list[str] = []
    left: int = 0


def waiting(session: Session, order: Order) -> list[Order]:
    """The run's children that have not begun."""
    rows = session.scalars(_children(order).where(Workflow.state == State.ACCEPTED)).all()
    return [Order.model_validate(row.order) for row in rows]


def failed(session: Session, order: Order) -> dict[UUID, dict[str, Any]]:
    """What its children did not bring to an end, and why: at least a ``code``."""
    rows = session.scalars(_children(order).where(Workflow.state.in_((State.FAILED, State.CANCELLED)))).all()
    return {row.resource_id: row.error or {"code": row.state} for row in rows}


def call_off(session: Session, order: Order, settle: Mapping[str, Callable[..., None]]) -> None:
    """End its children that have not begun, each as the things of its kind do; leaves the order's project in use."""
    for child in waiting(session, order):
        use_project(session, child.project_id)
        settle[child.resource_type](session, child, "cancelled", NEVER_STARTED, [])
        session.flush()
    use_project(session, order.project_id)


def _children(order: Order) -> Any:
    return select(Workflow).where(Workflow.parent_id == order.workflow_id)
