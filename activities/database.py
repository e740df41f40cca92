"""Transactions of activities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Engine, Executable, event, text
from sqlalchemy.orm import Session

from drivers import faults

_LAST = "last"
_USE_PROJECT = text("SELECT set_config('cairn.project', :project, true)")


@contextmanager
def transaction(engine: Engine, project_id: UUID | None = None) -> Iterator[Session]:
    """One transaction, in the rows of ``project_id``; none: only what spans projects is seen.

    Locks are taken in one order everywhere, so that no two transactions wait for each other:
    the resource, its workflow, the host, the quota (see ``at_last``).
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        if project_id is not None:
            use_project(session, project_id)
        yield session
        write_all(session)
        faults.reached("after_effect")


def at_last(session: Session, project_id: UUID, statement: Executable) -> None:
    """Execute this after all else that the transaction writes (``write_all``), in the rows of this project.

    To write a resource's row is to lock its host too: where a transaction writes a row for the second time, PostgreSQL
    looks whether what it names is still there, and may wait for whoever changes that.
    """
    session.info.setdefault(_LAST, []).append((project_id, statement))


def write_all(session: Session) -> None:
    """What the session changed, then what was put off to the end. Leaves a project in use where there was any."""
    session.flush()
    for project_id, statement in session.info.pop(_LAST, []):
        use_project(session, project_id)
        session.execute(statement)


def once_committed(session: Session, count: Callable[[], None]) -> None:
    """Count what the transaction did, where it was done."""
    event.listen(session, "after_commit", lambda _: count(), once=True)


def use_project(session: Session, project_id: UUID) -> None:
    """From here on the transaction writes rows of this project."""
    session.execute(_USE_PROJECT, {"project": str(project_id)})
