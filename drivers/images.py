"""The image port: what a host can run, and how it comes there. Rules as in ``drivers.machines``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Protocol

from drivers.machines import Check
from model.images import CachedImage, ImageFound, ImageWanted, is_engine_name

#: ``username`` and ``password``, of a registry.
Login = Mapping[str, str]


class Images(Protocol):
    """Images of one host.

    What came with a login is usable for projects that had one: in a repository from which anything was brought so,
    an image is there for a project only once that has had one from it, with a login of its own or without.
    """

    def find(self, wanted: ImageWanted) -> ImageFound | None:
        """What it is, where it is usable on this engine already; takes as long as one short call, and counts as a use.

        None also while somebody brings or removes it.
        """

    def ensure(self, wanted: ImageWanted, cancelled: Check, login: Callable[[], Login] | None = None) -> ImageFound:
        """Make it usable on this engine, and say what it is. At most one caller at a time brings one image to one
        engine, also among several processes; the others wait for it, and find it. ``login`` is asked for only where
        the registry is.

        Raises ImageNotFound where it cannot be had, RegistryBusy where its registry asks to come later.
        """

    def collect(self, unused_for: dt.timedelta, cancelled: Check) -> list[CachedImage]:
        """Remove what ``ensure`` brought here and nothing has used for so long; answers what of it is left.

        What was on the engine before, or was brought by somebody else, is never touched, and neither is an image
        that a container was made of.
        """


def engine_reference(wanted: ImageWanted) -> str:
    """What an engine is told to make a machine of: by digest, where one is known."""
    if wanted.digest is None or wanted.format is not None:
        return wanted.reference
    return f"{repository(wanted.reference)}@{wanted.digest}"


def repository(reference: str) -> str:
    """A reference without its tag and digest."""
    name = reference.partition("@")[0]
    last = name.rpartition("/")[2]
    return name[: len(name) - len(last)] + last.partition(":")[0]


def familiar(name: str) -> str:
    """A repository as the engine shows it: without the registry and the folder that go without saying."""
    for prefix in ("docker.io/", "index.docker.io/"):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    return name.removeprefix("library/")


def full_name(reference: str) -> str:
    """A reference as the engine lists it: ``repository:tag``, or ``repository@digest``."""
    name, _, digest = reference.partition("@")
    known = repository(name)
    tag = name[len(known) + 1 :] or "latest"
    return f"{familiar(known)}@{digest}" if digest else f"{familiar(known)}:{tag}"


def is_ours(reference: str) -> bool:
    """Whether it is what engines call a file of the blob store: no registry has it, and nobody asks for it so."""
    return is_engine_name(familiar(repository(reference)))
