"""The steps of images on hosts, and how their runs end."""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session
from temporalio import activity

from activities.runs import RunEnded, end, record
from drivers.images import Images, Login
from drivers.machines import Secrets
from model.base import Frozen
from model.errors import HostBusy
from model.images import RESTING, CachedImage, Image, ImageFound, ImageStatus, ImageWanted
from model.instances import MachineSpec
from model.vault import ImageLogin
from model.workflows import Failure, Order, Outcome, Step, Workflow

#: The queue of what brings files of images, and reads all of them: it may last, and keeps nothing else waiting.
IMAGES = "images"
#: Of a host's steps at once, those that make images usable for machines, of one project, and for imports (of which the
#: API bounds those of a project): the rest is left for what is done to machines.
ENSURES, OF_PROJECT, PULLS = 12, 8, 10
#: For a place an attempt waits so long, as most are quick, and the next comes after so long: it takes none meanwhile.
WAIT_SECONDS, TURN_SECONDS = 0.25, 2.0


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


class Given(Protocol):
    """What is in no history, fetched for a step. All raise Unavailable, Superseded, SealBroken."""

    def script(self, spec: MachineSpec) -> bytes:
        """What ``spec.user_data`` stands for."""

    def secrets(self, spec: MachineSpec) -> Secrets:
        """The values of ``spec.secrets``."""

    def login(self, wanted: MachineSpec | ImageWanted) -> Login:
        """With what the image's registry is asked."""


class Places:
    """For threads: so many at once, and so many of one project."""

    def __init__(self, most: int, *, of_project: int) -> None:
        self._most = most
        self._of_project = of_project
        self._taken: Counter[UUID | None] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, host: str, project_id: UUID | None = None) -> Iterator[None]:
        """Raises HostBusy where there is none in a moment."""

        def is_free() -> bool:
            return self._taken.total() < self._most and self._taken[project_id] < self._of_project

        with self._changed:
            if not self._changed.wait_for(is_free, WAIT_SECONDS):
                busy = f"host {host} makes as many images usable as it may at once"
                raise HostBusy(busy, retry_after_seconds=TURN_SECONDS)
            self._taken[project_id] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken[project_id] -= 1
                if not self._taken[project_id]:
                    del self._taken[project_id]
                self._changed.notify_all()


class ImageEngine:
    """Images of one host. Runs on that host's queue."""

    def __init__(self, host: str, images: Images, given: Given | None = None) -> None:
        self._host = host
        self._images = images
        self._given = given
        self._ensures = Places(ENSURES, of_project=OF_PROJECT)
        self._pulls = Places(PULLS, of_project=PULLS)

    @activity.defn(name="image.ensure", no_thread_cancel_exception=True)
    def ensure(self, spec: MachineSpec) -> ImageFound | None:
        """Make the image of a machine usable, and say what it is. (None: from an agent of before.)"""
        if (found := self._images.find(spec.wanted_image)) is not None:
            return found
        with self._ensures.one(self._host, spec.project_id):
            login = partial(self._given.login, spec) if spec.registry_login and self._given else None
            return self._images.ensure(spec.wanted_image, activity.is_cancelled, login)

    @activity.defn(name="image.pull", no_thread_cancel_exception=True)
    def pull(self, wanted: ImageWanted) -> ImageFound:
        """The same, of an image that is being imported."""
        if (found := self._images.find(wanted)) is not None:
            return found
        with self._pulls.one(self._host):
            login = partial(self._given.login, wanted) if wanted.login_of and self._given else None
            return self._images.ensure(wanted, activity.is_cancelled, login)

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
    if image.registry_secret is not None and image.workflow_id == order.workflow_id:
        session.execute(delete(ImageLogin).where(ImageLogin.image_id == image.id))
    events = []
    if image.workflow_id == order.workflow_id:  # a delete that came meanwhile owns it now
        done = ImageStatus.AVAILABLE if order.kind == "ImportImage" else ImageStatus.DELETED
        previous, image.status = image.status, done if outcome == "completed" else ImageStatus.ERROR
        if outcome != "completed" and (before := _as_before(row, steps)) is not None:
            image.status = before
        else:
            image.error = failure.model_dump() if failure else None
        image.version += 1
        image.updated_at = func.now()
        if facts is not None and image.status == ImageStatus.AVAILABLE:
            image.digest, image.size_bytes, image.format = facts.digest, facts.size_bytes, facts.format
        if image.status == ImageStatus.DELETED:
            image.deleted_at = func.now()
        events.append((f"image.{image.status}", {"name": image.name, "from": previous, "to": image.status}))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _as_before(row: Workflow, steps: list[Step] | None) -> ImageStatus | None:
    """What an image is again whose delete has ended before it began to remove anything."""
    if row.kind != "DeleteImage" or row.prior_status not in RESTING:
        return None
    if steps is None or any(step.name == "image.discard" for step in steps):
        return None
    return ImageStatus(row.prior_status)
