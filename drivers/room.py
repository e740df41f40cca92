"""Whether a disk has room for more: bytes, and names of files."""

from __future__ import annotations

import os
from pathlib import Path

from model.errors import EngineRefused

#: What is left free of a disk, for the host itself and all that is on it.
FREE_BYTES, FREE_FILES = 512 << 20, 10_000


def check(folder: int | Path) -> None:
    """Raises EngineRefused where its disk is almost full; OSError where there is no such folder."""
    disk = os.statvfs(folder)
    # Some file systems have no such number.
    files = disk.f_favail if disk.f_files else FREE_FILES
    if disk.f_bavail * disk.f_frsize < FREE_BYTES or files < FREE_FILES:
        what = "files" if files < FREE_FILES else "bytes"
        raise EngineRefused(
            f"the disk of the host has no room for more {what}: delete sessions or workspaces, or give it more"
        )
