"""Files that are written whole or not at all, and leave nothing behind when their writer is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from model.base import new_id


class LockedFile:
    """A new file of a folder, locked by whoever writes it: one that nobody holds is a leftover (see ``sweep``).

    Gone at the end of its ``with``, unless it was kept.
    """

    def __init__(self, folder: Path, *, least_free: int = 0) -> None:
        """``least_free``: bytes of its disk that it leaves alone.

        Raises OSError where the folder cannot be written to.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.size = 0
        self._least_free = least_free
        self.sha256 = hashlib.sha256()
        # Whoever ends its ``with`` may have a thread that still writes: the number of a file that was closed may be
        # another's by then.
        self._using = threading.Lock()
        self._closed = False
        while True:
            self.path = folder / str(new_id())
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # A sweep may have been faster than the lock.
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._fd).st_nlink:
                    return
            except BlockingIOError:
                pass
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        with self._using:
            self._closed = True
            os.close(self._fd)

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hexdigest()}"

    def check_room(self, more: int) -> None:
        """Raises OSError (ENOSPC) where so many bytes more would leave too few free."""
        with self._open():
            self._check_room(more)

    def _check_room(self, more: int) -> None:
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < self._least_free + more:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, piece: bytes) -> None:
        left = memoryview(piece)
        with self._open():
            self._check_room(len(piece))
            while left:
                left = left[os.write(self._fd, left) :]
        self.sha256.update(piece)
        self.size += len(piece)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._using:
            if self._closed:
                raise OSError(errno.EBADF, "the file is closed already")
            yield

    def keep(self, path: Path) -> None:
        """It becomes ``path``, in place of what has that name, for good: at a power cut it is whole or not there."""
        with self._open():
            os.fsync(self._fd)
        try:
            os.replace(self.path, path)
        except FileNotFoundError:  # its folder was empty for a moment, and removed
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(self.path, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> int:
    """Remove what killed writers left; how many."""
    swept = 0
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    for name in names:
        with contextlib.suppress(FileNotFoundError, BlockingIOError, IsADirectoryError):
            fd = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
                swept += 1
            finally:
                os.close(fd)
    return swept
