"""What the tick starts for images: a look through each host's caches, and one through the blob store."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy

from activities.fleet import BEAT, beat
from activities.image_records import ImageLimits, to_collect
from activities.runs import CONTROL
from model.projects import Pulse

COLLECT_EVERY, SWEEP_EVERY = dt.timedelta(hours=1), dt.timedelta(hours=1)
BLOBS = "blobs"


def due(session: Session) -> tuple[list[str], bool]:
    """Hosts whose caches are to be looked through, and whether the blob store is; marks the looks."""
    recent = select(Pulse.process).where(Pulse.process == BLOBS, Pulse.seen_at > func.now() - SWEEP_EVERY)
    sweep = session.execute(recent).first() is None
    if sweep:
        session.execute(BEAT, beat(BLOBS))
    return to_collect(session, COLLECT_EVERY), sweep


async def start(client: Client, hosts: list[str], sweep: bool, limits: ImageLimits) -> None:
    """Start what is due. Raises RPCError."""
    for host in hosts:
        await client.start_workflow(
            "CollectImages",
            args=[host, dt.timedelta(days=limits.cache_days)],
            id=f"images-{host}",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Forget images on host {host} that nothing has used for long",
        )
    if sweep:
        await client.start_workflow(
            "SweepBlobs",
            id="blobs",
            task_queue=CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary="Remove files from the blob store that no image needs",
        )
