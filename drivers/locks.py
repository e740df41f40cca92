"""Locks between threads and processes of one machine, which end with whoever holds them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drivers.machines import Cancelled, Check

POLL_SECONDS = 0.05


@contextmanager
def alone(path: Path, cancelled: Check) -> Iterator[int]:
    """Hold the lock of a file, which is made where it is absent; its descriptor. Raises Cancelled."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise Cancelled(f"waiting for {path.name}") from None
                time.sleep(POLL_SECONDS)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def together(path: Path) -> Iterator[bool]:
    """Hold it with whoever else only looks; False, at once, where somebody holds it alone."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(fd)


def of_engine(base_url: str, what: str) -> Path:
    """The lock file of one thing on one engine."""
    socket = base_url.removeprefix("unix://")
    place = os.path.realpath(socket) if socket != base_url else base_url
    return of_machine(f"{place}\n{what}")


def of_machine(what: str) -> Path:
    """The lock file of one thing: the same in every process of this user, whatever its data folder."""
    folder = Path(tempfile.gettempdir()) / f"cairn-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else: remove it")
    return folder / hashlib.sha256(what.encode()).hexdigest()[:40]
