"""The blob store: files by what they are, under their SHA-256.

Rules for every adapter: calls block and may be repeated; a file is there whole or not at all; what a killed process
was receiving is gone at the next sweep at the latest. Errors are those of ``model.errors``: Unavailable for what may
pass, NotFound.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from drivers.locked_file import LockedFile, sweep
from model.errors import NotFound, Unavailable

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class Opened(NamedTuple):
    """A file to be read from its beginning; closed by whoever opened it."""

    size: int
    source: Reader


class Blobs(Protocol):
    def receive(self) -> LockedFile:
        """A new file on this machine, to be written and then ``put``."""

    def put(self, file: LockedFile) -> None:
        """Keep it under its digest. What is there already is replaced by the same."""

    def open(self, digest: str) -> Opened:
        """Raises NotFound."""

    def remove(self, digest: str) -> None:
        """Success where it is absent."""

    def all(self) -> Iterator[tuple[str, dt.datetime]]:
        """Digests, and since when they are there."""

    def sweep(self) -> int:
        """Remove what killed processes of this machine were receiving; how many."""


def hex_of(digest: str) -> str:
    """Raises NotFound for what is no digest, and so no path either."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise NotFound(f"{digest[:100]} is not a sha256 digest")
    return found[1]


@contextmanager
def storing() -> Iterator[None]:
    """A disk that is full, or away, may be mended."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"the blob store cannot be used: {error.strerror or error}") from error


class FileBlobs:
    """On a file system that all APIs and control workers share."""

    def __init__(self, folder: Path, *, least_free: int = 0) -> None:
        self._folder = folder
        self._least_free = least_free
        self._incoming = folder / "incoming"

    def _path(self, digest: str) -> Path:
        name = hex_of(digest)
        return self._folder / "sha256" / name[:2] / name

    def receive(self) -> LockedFile:
        with storing():
            return LockedFile(self._incoming, least_free=self._least_free)

    def put(self, file: LockedFile) -> None:
        path = self._path(file.digest)
        with storing():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.keep(path)

    def open(self, digest: str) -> Opened:
        try:
            with storing():
                source: BinaryIO = self._path(digest).open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFound(f"{digest} is not in the blob store") from None
        return Opened(os.fstat(source.fileno()).st_size, source)

    def remove(self, digest: str) -> None:
        path = self._path(digest)
        with storing():
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others are in it
                path.parent.rmdir()

    def all(self) -> Iterator[tuple[str, dt.datetime]]:
        for path in sorted((self._folder / "sha256").glob("*/*")):
            with contextlib.suppress(FileNotFoundError):
                yield f"sha256:{path.name}", dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)

    def sweep(self) -> int:
        return sweep(self._incoming)
