"""Transactions of activities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from drivers import faults

_USE_PROJECT = text("SELECT set_config('cairn.project', :project, true)")


@contextmanager
def transaction(engine: Engine, project_id: UUID | None = None) -> Iterator[Session]:
    """One transaction, in the rows of ``project_id``; none: only what spans projects is seen.

    Locks are taken in one order everywhere, so that no two transactions wait for each other:
    the resource, its workflow, the host, the quota.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        if project_id is not None:
            use_project(session, project_id)
        yield session
        session.flush()
        faults.reached("after_effect")


def use_project(session: Session, project_id: UUID) -> None:
    """From here on the transaction writes rows of this project."""
    session.execute(_USE_PROJECT, {"project": str(project_id)})
