"""Trees of folders that strangers fill, walked and deleted: however deep they are, whatever is moved meanwhile.

A path may have 4095 bytes and a stack a thousand frames; folders can be nested deeper than both. So a walk holds the
descriptor of the one folder that it is in, goes down by name and up by ``..``, and proceeds above only where that is
the folder it came from. No link is followed, and no other file system is entered but where its caller says so.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from drivers import beneath
from drivers.machines import Cancelled, Check

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Folders of one folder that are remembered at once, as it is deleted.
MOST_NAMES = 10_000
#: Looks at what does not become empty and loses nothing, and what is waited between them.
TRIES, PAUSE_SECONDS = 5, 0.02
#: What an entry takes of a disk, at least.
ENTRY_BYTES = 4096
#: It has gone, or a file or a link is in its place.
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

#: Looks at the folder of a descriptor, whose names from the top down are these; answers with those to go into.
Look = Callable[[int, list[str]], Iterable[str]]
#: Told of a folder that the walk has come back from: the descriptor of the one above it, and its name.
Left = Callable[[int, str], None]


class _Level(NamedTuple):
    """A folder above the one that the walk is in."""

    waiting: list[str]
    device: int
    number: int


def walk(
    top: int,
    look: Look,
    left: Left | None = None,
    cancelled: Check = lambda: False,
    *,
    strict: bool = True,
    across: bool = False,
) -> None:
    """Go through all folders below the one of the descriptor ``top``, itself first. What goes meanwhile is passed over,
    and what is moved to elsewhere is not followed.

    Raises Cancelled; OSError where one cannot be entered, as something is mounted there and this is not to go
    ``across`` file systems: passed over unless ``strict``.
    """
    names: list[str] = []
    above: list[_Level] = []
    here = os.open(".", FOLDER, dir_fd=top)
    try:
        waiting = list(look(here, names))
        while waiting or above:
            if cancelled():
                raise Cancelled
            if waiting:
                name = waiting.pop()
                try:
                    below = _entered(here, name, across=across)
                except OSError:
                    if strict:
                        raise
                    continue
                if below is None:
                    continue
                about = os.fstat(here)
                above.append(_Level(waiting, about.st_dev, about.st_ino))
                names.append(name)
                os.close(here)
                here = below
                waiting = list(look(here, names))
            else:
                came, name = len(names), names[-1]
                higher = _back(top, here, names, above, across=across)
                os.close(here)
                here = higher
                # What is found above was left where it was left, or it is passed over.
                whole = len(names) == came - 1
                waiting = above.pop().waiting
                if left is not None and whole:
                    left(here, name)
    finally:
        os.close(here)


def _entered(here: int, name: str, *, across: bool = False) -> int | None:
    """The folder of this name; None where there is none (any more)."""
    try:
        if across:
            return os.open(name, FOLDER, dir_fd=here)
        return beneath.open_beneath(here, [name], FOLDER)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        return None


def _back(top: int, here: int, names: list[str], above: list[_Level], *, across: bool) -> int:
    """The folder above ``here``; ``names`` and ``above`` become those of what is found, whose level is the last."""
    with contextlib.suppress(FileNotFoundError):
        higher = os.open("..", FOLDER, dir_fd=here)
        if _is(higher, above[-1]):
            names.pop()
            return higher
        os.close(higher)
    # It was moved meanwhile: from the top down, as far as all is where it was.
    higher = os.open(".", FOLDER, dir_fd=top)
    try:
        for depth, level in enumerate(above[1:], 1):
            below = _entered(higher, names[depth - 1], across=across)
            if below is None:
                break
            if not _is(below, level):
                os.close(below)
                break
            os.close(higher)
            higher = below
        else:
            depth = len(names)
    except BaseException:
        os.close(higher)
        raise
    del names[depth - 1 :], above[depth:]
    return higher


def _is(descriptor: int, level: _Level) -> bool:
    about = os.fstat(descriptor)
    return (about.st_dev, about.st_ino) == (level.device, level.number)


def entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """What is in it, as it is read; no link is followed, and what goes meanwhile is left out."""
    with os.scandir(folder) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def size_of(*folders: Path, cancelled: Check = lambda: False) -> int:
    """Bytes that they take: of each file and folder at least what a disk gives it, and of a file with several names
    once. What cannot be looked at counts nothing."""
    seen: set[tuple[int, int]] = set()
    total = 0

    def look(here: int, _: list[str]) -> list[str]:
        nonlocal total
        inside = []
        with contextlib.suppress(OSError):
            for name, about in entries(here):
                if stat.S_ISDIR(about.st_mode):
                    inside.append(name)
                elif about.st_nlink > 1:
                    if (about.st_dev, about.st_ino) in seen:
                        continue
                    seen.add((about.st_dev, about.st_ino))
                total += max(about.st_size, ENTRY_BYTES)
        return inside

    for folder in folders:
        with contextlib.suppress(OSError), opened(folder) as top:
            walk(top, look, cancelled=cancelled, strict=False)
    return total


def remove(path: Path, cancelled: Check = lambda: False) -> None:
    """Delete it, folder or not, if there. Raises OSError, Cancelled."""
    with contextlib.suppress(FileNotFoundError), opened(path.parent) as above:
        delete(above, path.name, cancelled)


def delete(above: int, name: str, cancelled: Check = lambda: False) -> None:
    """What has this name in the folder ``above``, with all that is in it; success where it is absent.

    Raises OSError, ENOTEMPTY too where it does not become empty; Cancelled.
    """
    for turn in range(TRIES):
        if unlinked(above, name):
            return
        top = _entered(above, name)
        if top is None:
            continue
        try:
            empty(top, cancelled)
        finally:
            os.close(top)
        if removed(above, name):
            return
        time.sleep(PAUSE_SECONDS * turn)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)


def empty(top: int, cancelled: Check = lambda: False) -> None:
    """Delete all that is in a folder. Raises OSError, ENOTEMPTY too where it does not become empty; Cancelled."""
    gone = 0

    def look(here: int, _: list[str]) -> list[str]:
        nonlocal gone
        inside: list[str] = []
        with os.scandir(here) as found:
            for entry in found:
                if cancelled():
                    raise Cancelled
                if unlinked(here, entry.name):
                    gone += 1
                else:
                    inside.append(entry.name)
                    if len(inside) == MOST_NAMES:  # the others with the next look
                        break
        return inside

    def left(here: int, name: str) -> None:
        nonlocal gone
        gone += removed(here, name)

    turn = 0
    while turn < TRIES:
        before = gone
        walk(top, look, left, cancelled)
        with os.scandir(top) as rest:
            if next(rest, None) is None:
                return
        if gone == before:
            turn += 1
            time.sleep(PAUSE_SECONDS * turn)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def removed(folder: int, name: str) -> bool:
    """Whether the folder of this name is gone, if it was empty. Raises OSError."""
    try:
        os.rmdir(name, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def unlinked(folder: int, name: str) -> bool:
    """Whether what has this name is gone: whatever it was, but a folder. Raises OSError."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True


def first_names(folder: int, most: int) -> list[str]:
    """Of what is in it, no more than so many, as they are met."""
    with os.scandir(folder) as found:
        return [entry.name for entry in itertools.islice(found, most)]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The folder at a path of ours. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
