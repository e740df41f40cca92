"""How runs end, by what they were on."""

from __future__ import annotations

from sqlalchemy.orm import Session

from activities.drains import settle_host
from activities.instance_ends import settle_instance
from model.workflows import Failure, Order, Outcome, Step


def settle(session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step]) -> None:
    """End a run from outside of it. Once: a row that ended is left alone."""
    if order.resource_type == "host":
        settle_host(session, order, outcome, failure, steps)
    else:
        settle_instance(session, order, outcome, failure, steps)
