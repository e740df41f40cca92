"""Sockets inside the network of a container, opened from outside of it.

A thread may enter another network namespace by itself, and what it opens there stays there. So each such socket has a
thread of its own, which ends with it: no other sees that namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def inode(pid: int | str) -> int | None:
    """Which network namespace a process is in; None: there is no such process, or it is not ours to see."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def listen(namespace: int, address: tuple[str, int], backlog: int) -> socket.socket:
    """A socket that listens in the namespace of this file descriptor; it does not block. Raises OSError."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(backlog)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made

    return _inside(namespace, opened)


def connect(namespace: int, address: tuple[str, int], seconds: float) -> socket.socket:
    """A socket that is connected in the namespace of this file descriptor. Raises OSError."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.settimeout(seconds)
            made.connect(address)
        except BaseException:
            made.close()
            raise
        return made

    return _inside(namespace, opened)


def can_enter(pid: int) -> bool:
    """Whether this process may see the network namespace of such a process, and may enter namespaces at all."""
    if inode(pid) is None:
        return False
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _inside(own, lambda: None)
    except OSError:
        return False
    finally:
        os.close(own)
    return True


def _inside(namespace: int, do: Callable[[], R]) -> R:
    done: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.setns(namespace, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")
            done.append(do())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="namespace", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
