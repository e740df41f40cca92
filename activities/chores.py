"""Runs that the tick starts of its own accord: one of a kind at a time, and only where it finds something to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy

from activities.runs import CONTROL


class Chore(NamedTuple):
    """A run that is to be there; while one of this ``id`` runs, that is it."""

    workflow: str
    id: str
    summary: str
    args: Sequence[Any] = ()
    #: What one that runs already is told.
    signal: str | None = None


async def start(client: Client, chore: Chore) -> None:
    """Raises RPCError."""
    await client.start_workflow(
        chore.workflow,
        args=chore.args,
        id=chore.id,
        task_queue=CONTROL,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary=chore.summary,
        start_signal=chore.signal,
    )
