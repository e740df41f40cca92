"""The steps of images on hosts, and how their runs end."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from temporalio import activity

from activities.runs import RunEnded, end, record
from drivers.images import Images
from model.base import Frozen
from model.images import CachedImage, Image, ImageFound, ImageStatus, ImageWanted
from model.instances import MachineSpec
from model.workflows import Failure, Order, Outcome, Step


class ImageFacts(Frozen):
    """What an import found out."""

    digest: str | None = None
    size_bytes: int | None = None
    format: str | None = None
    #: The host that has it by now.
    host: str | None = None


class HostImages(Frozen):
    """What Cairn brought to a host, as far as it is still there."""

    host: str
    images: list[CachedImage]


class ImageEngine:
    """Images of one host. Runs on that host's queue."""

    def __init__(self, host: str, images: Images) -> None:
        self._host = host
        self._images = images

    @activity.defn(name="image.ensure", no_thread_cancel_exception=True)
    def ensure(self, spec: MachineSpec) -> ImageFound | None:
        """Make the image of a machine usable, and say what it is. (None: from an agent of before.)"""
        return self._images.ensure(spec.wanted_image, activity.is_cancelled)

    @activity.defn(name="image.pull", no_thread_cancel_exception=True)
    def pull(self, wanted: ImageWanted) -> ImageFound:
        """The same, of an image that is being imported."""
        return self._images.ensure(wanted, activity.is_cancelled)

    @activity.defn(name="image.collect", no_thread_cancel_exception=True)
    def collect(self, unused_for: dt.timedelta) -> HostImages:
        """Remove what Cairn brought and nothing has used for so long; what is left of it."""
        return HostImages(host=self._host, images=self._images.collect(unused_for, activity.is_cancelled))


def lock_image(session: Session, order: Order) -> Image:
    mine = (Image.project_id == order.project_id) & (Image.id == order.resource_id)
    found = session.scalars(select(Image).where(mine).with_for_update()).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no image {order.resource_id}")
    return found


def settle_image(
    session: Session,
    order: Order,
    outcome: Outcome,
    failure: Failure | None,
    steps: list[Step] | None,
    facts: ImageFacts | None = None,
) -> None:
    """End a run on an image. Once: a row that ended is left alone.

    What an import that was ended from outside left in the blob store is swept, since no row needs it any more.
    """
    image = lock_image(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    events = []
    if image.workflow_id == order.workflow_id:  # a delete that came meanwhile owns it now
        done = ImageStatus.AVAILABLE if order.kind == "ImportImage" else ImageStatus.DELETED
        previous, image.status = image.status, done if outcome == "completed" else ImageStatus.ERROR
        image.error = failure.model_dump() if failure else None
        image.version += 1
        image.updated_at = func.now()
        if facts is not None and image.status == ImageStatus.AVAILABLE:
            image.digest, image.size_bytes, image.format = facts.digest, facts.size_bytes, facts.format
        if image.status == ImageStatus.DELETED:
            image.deleted_at = func.now()
        events.append((f"image.{image.status}", {"name": image.name, "from": previous, "to": image.status}))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))
