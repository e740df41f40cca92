"""Paths below a folder that strangers fill, and may change at any moment: the kernel resolves them, or refuses.

A check of ours before an open would be of another moment than the open. So every path is opened by openat2(2), which
never leaves the folder, whatever its links are made to say meanwhile; what is done then is done to what was opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import EngineRefused, EngineUnavailable, InvalidState, NotFound, ValidationFailed

LONGEST_PATH, LONGEST_NAME = 4095, 255
#: The system call has one number on all machines of Linux, and no function in the C library.
_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _BENEATH = 0x01, 0x02, 0x08
_RENAME_NOREPLACE = 1
#: A path that changes as it is resolved is tried again so often.
_TRIES = 100
_OUT = frozenset({errno.EXDEV, errno.ELOOP})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_libc = ctypes.CDLL(None, use_errno=True)


def parts_of(path: str) -> list[str]:
    """The names that a path is made of; none: the folder itself. Raises ValidationFailed for what leads
    elsewhere, or is written in another way than the one."""
    if not path:
        return []
    problem = ""
    try:
        coded = path.encode()
    except UnicodeEncodeError:
        raise refused(path, "it is no UTF-8") from None
    names = path.split("/")
    if "\0" in path:
        problem = "it has a NUL"
    elif path.startswith("/"):
        problem = "it is absolute: leave the first '/' out, it begins in the workspace"
    elif ".." in names:
        problem = "'..' leads out of where it begins"
    elif "" in names or "." in names:
        problem = "it has an empty name, or '.'"
    elif len(coded) > LONGEST_PATH or any(len(name.encode()) > LONGEST_NAME for name in names):
        problem = f"a path may have {LONGEST_PATH} bytes, a name {LONGEST_NAME}"
    if problem:
        raise refused(path, problem)
    return names


def refused(path: str, problem: str) -> ValidationFailed:
    shown = path[:200].encode(errors="backslashreplace").decode()
    return ValidationFailed(f"path {shown!r}: {problem}", fields=[{"field": "path", "message": problem}])


def open_beneath(root: int, names: list[str], flags: int) -> int:
    """Open what is there, relative to the folder ``root``. Links are followed as long as they stay in it, and are
    refused where they do not, or are absolute. Raises OSError."""
    path = os.fsencode("/".join(names) or ".")
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGICLINKS | _NO_XDEV)
    for _ in range(_TRIES):
        found = int(_libc.syscall(_OPENAT2, root, path, how, len(how)))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EAGAIN, "it keeps changing")


@contextmanager
def opened(root: int, names: list[str], flags: int = os.O_PATH) -> Iterator[int]:
    descriptor = open_beneath(root, names, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def folder(root: int, names: list[str], *, make: bool = False) -> Iterator[int]:
    """A folder that there is; with ``make``, it and those above it are made where there are none."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        found = open_beneath(root, names, flags)
    except FileNotFoundError:
        if not make:
            raise
        found = _made(root, names)
    try:
        yield found
    finally:
        os.close(found)


def _made(root: int, names: list[str]) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    above = open_beneath(root, [], flags)
    for depth, name in enumerate(names, 1):
        try:
            try:
                below = open_beneath(root, names[:depth], flags)
            except FileNotFoundError:
                # Somebody made it first, or it is a link to nothing: the next open tells.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=above)
                below = open_beneath(root, names[:depth], flags)
                # Whatever umask this process has.
                os.chmod(f"/proc/self/fd/{below}", 0o755)  # noqa: S103 - programs of any user are in the sandbox
        finally:
            os.close(above)
        above = below
    return above


def rename(above: int, name: str, to_above: int, to_name: str, *, replace: bool) -> None:
    """Raises OSError; FileExistsError where something has the name that it is not to replace."""
    if replace:
        os.rename(name, to_name, src_dir_fd=above, dst_dir_fd=to_above)
        return
    arguments = (above, os.fsencode(name), to_above, os.fsencode(to_name), _RENAME_NOREPLACE)
    if _libc.renameat2(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def told(path: str) -> Iterator[None]:
    """What the kernel refuses of a user's path is said in words of ours."""
    try:
        yield
    except OSError as error:
        shown = path[:200].encode(errors="backslashreplace").decode() or "the workspace"
        number = error.errno
        if number in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"there is no {shown}", path=path) from error
        if number in _OUT:
            raise refused(path, "a link on it leads out of the workspace, or in a circle") from error
        if number in (errno.EEXIST, errno.ENOTEMPTY):
            raise InvalidState(f"there is something at {shown} already", state="exists") from error
        if number == errno.EISDIR:
            raise InvalidState(f"{shown} is a folder", state="folder") from error
        if number in (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ):
            raise refused(path, f"it cannot be: {os.strerror(number)}") from error
        if number in _FULL:
            raise EngineRefused("the disk of its host is full: delete something, and try again") from error
        raise EngineUnavailable(f"{shown}: {error.strerror}") from error
