"""What a project may have of images: how many, how large, and how many imports at once.

What it has its rows say. They are counted under the lock of its quota, so two at once do not both get the last place.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from model.errors import QuotaExceeded, TooManyImports

#: Until the end of the transaction. Last, as every launch of the project waits for it too.
LIMITS = text("SELECT images_limit, image_bytes_limit FROM quotas WHERE project_id = :project FOR UPDATE")
#: All but one image. Bytes are those of files: a registry's image is on hosts alone.
HELD = text(
    """
    SELECT count(*) AS images, count(*) FILTER (WHERE status IN ('pending', 'importing')) AS images_coming,
    coalesce(sum(size_bytes) FILTER (WHERE source <> 'registry'), 0)::bigint AS bytes,
    coalesce(sum(size_bytes) FILTER (WHERE source <> 'registry' AND status IN ('pending', 'importing')), 0)::bigint
        AS bytes_coming,
    count(*) FILTER (WHERE status = 'importing') AS importing
    FROM images WHERE project_id = :project AND status <> 'deleted' AND id IS DISTINCT FROM :but
    """
)
#: What an image's file takes, as soon as it is known.
TAKE = text("UPDATE images SET size_bytes = :size WHERE id = :id")


def check_number(limits: Row[Any], held: Row[Any]) -> None:
    """One more image. Raises QuotaExceeded."""
    most = limits.images_limit
    if most is not None and held.images >= most:
        raise QuotaExceeded(
            f"the project may have {most} images, and has {held.images}: delete one first",
            images=1,
            quota="images",
            limit=most,
            used=held.images,
            asked=1,
        )


def check_bytes(limits: Row[Any], held: Row[Any], size: int) -> None:
    """One of so many bytes beside those that are there. Raises QuotaExceeded."""
    most = limits.image_bytes_limit
    if most is not None and held.bytes + size > most:
        raise QuotaExceeded(
            f"the project's images may have {most} bytes together, the others have {held.bytes}, and this has {size}:"
            " delete one first",
            image_bytes=size,
            quota="image_bytes",
            limit=most,
            used=held.bytes,
            asked=size,
        )


def check_imports(held: Row[Any], most: int) -> None:
    """One more import. Raises TooManyImports."""
    if held.importing >= most:
        raise TooManyImports(
            f"{held.importing} images of the project are being imported, as many as may be: try again when one is done",
            limit=most,
        )


def take(session: Session, project_id: UUID, image_id: UUID, size: int) -> None:
    """So many bytes are the image's from here on. Raises QuotaExceeded."""
    limits = session.execute(LIMITS, {"project": project_id}).one()
    check_bytes(limits, session.execute(HELD, {"project": project_id, "but": image_id}).one(), size)
    session.execute(TAKE, {"id": image_id, "size": size})
