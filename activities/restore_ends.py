"""How the runs of a restore end."""

from __future__ import annotations

from sqlalchemy.orm import Session

from activities.runs import end, record
from model.workflows import Failure, Order, Outcome, Step


def settle_restore(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End a run. Once: a row that ended is left alone."""
    row = end(session, order, outcome, failure, steps)
    if row is not None:
        record(session, order, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))
