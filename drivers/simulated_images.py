"""Images on the simulated engine: it has whatever is asked for, but what is named "missing"."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from drivers.brought import Brought
from drivers.images import Login, engine_reference
from drivers.machines import Check
from drivers.simulated import SimulatedEngine
from model.errors import ImageNotFound
from model.images import CachedImage, ImageFound, ImageWanted


class SimulatedImages:
    """The image port on one host of the simulated engine."""

    def __init__(self, url: str, *, host_name: str, brought: Brought) -> None:
        self._engine = SimulatedEngine(f"{url}/hosts/{host_name}")
        self._brought = brought

    def find(self, wanted: ImageWanted) -> ImageFound | None:
        reference = engine_reference(wanted)
        found = self._engine.call("GET", f"images/{reference}")
        if found is None:
            return None
        if wanted.format is not None:
            self._brought.note(reference)
        return ImageFound(digest=wanted.digest or found.get("digest"), size_bytes=found.get("size_bytes"))

    def ensure(self, wanted: ImageWanted, cancelled: Check, login: Callable[[], Login] | None = None) -> ImageFound:
        found = self.find(wanted)
        if found is None:
            reference = engine_reference(wanted)
            raise ImageNotFound(f"image {reference} is not on the engine, and could not be pulled", image=reference)
        return found

    def collect(self, unused_for: dt.timedelta, cancelled: Check) -> list[CachedImage]:
        left = []
        for image in self._brought.all():
            if dt.datetime.now(dt.UTC) - image.used_at > unused_for:
                self._brought.forget(image.reference)
            else:
                left.append(image)
        return left
