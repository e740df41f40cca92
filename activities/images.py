"""The steps of images: their records in the database, and what hosts have of them."""

from __future__ import annotations

from temporalio import activity

from drivers.images import Images
from model.images import ImageFound
from model.instances import MachineSpec


class ImageEngine:
    """Images of one host. Runs on that host's queue."""

    def __init__(self, images: Images) -> None:
        self._images = images

    @activity.defn(name="image.ensure", no_thread_cancel_exception=True)
    def ensure(self, spec: MachineSpec) -> ImageFound | None:
        """Make the image of a machine usable, and say what it is. (None: from an agent of before.)"""
        return self._images.ensure(spec.wanted_image, activity.is_cancelled)
