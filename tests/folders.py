"""Folders of servers that tests start: in memory where there is room for that."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 - folders in it are made by mkdtemp
#: What is left for everybody else. A server's folder takes some 300 MB.
ROOM_BYTES = 6 * 2**30


def new_folder(prefix: str) -> Path:
    """Of 1,500 files, which a database has, a copy takes 0.11 s there, and 1.9 s on a slow disk."""
    is_roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if is_roomy else None))


def below(folder: Path) -> Iterator[Path]:
    """What is below a folder that a platform works in: what goes just then is left out (``Path.rglob`` would fail)."""
    for at, folders, files in os.walk(folder):
        yield from (Path(at, name) for name in (*folders, *files))


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Its files, whole."""
    for path in below(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()
