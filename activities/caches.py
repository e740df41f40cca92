"""Which hosts have which images."""

from __future__ import annotations

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from model.images import ImageCache
from model.instances import Instance


def note_cached(session: Session, instance: Instance) -> None:
    """The instance's host has made its image usable; of one that is no image of the project nothing is noted."""
    if instance.image_id is None or instance.host_id is None:
        return
    row = insert(ImageCache).values(
        host_id=instance.host_id, image_id=instance.image_id, project_id=instance.project_id
    )
    session.execute(row.on_conflict_do_update(index_elements=["host_id", "image_id"], set_={"used_at": func.now()}))
