"""What the tick starts for images: a look through each host's caches, and one through the blob store."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities.chores import Chore
from activities.fleet import BEAT, beat
from activities.image_records import ImageLimits, to_collect
from model.projects import Pulse

COLLECT_EVERY, SWEEP_EVERY = dt.timedelta(hours=1), dt.timedelta(hours=1)
BLOBS = "blobs"


def due(session: Session, limits: ImageLimits) -> list[Chore]:
    """Looks through the caches of hosts, and one through the blob store, where it is time; marks them."""
    found = [
        Chore(
            "CollectImages",
            f"images-{host}",
            f"Forget images on host {host} that nothing has used for long",
            [host, dt.timedelta(days=limits.cache_days)],
        )
        for host in to_collect(session, COLLECT_EVERY)
    ]
    recent = select(Pulse.process).where(Pulse.process == BLOBS, Pulse.seen_at > func.now() - SWEEP_EVERY)
    if session.execute(recent).first() is None:
        session.execute(BEAT, beat(BLOBS))
        found.append(Chore("SweepBlobs", "blobs", "Remove files from the blob store that no image needs"))
    return found
