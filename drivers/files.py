"""The files of a session, for whoever is outside of its sandbox, whether that runs or not.

What is in them was written by strangers, who go on writing meanwhile: see ``drivers.beneath``. Nothing is opened before
it is known to be a plain file: a device or a pipe would answer, or never. Paths are relative to the session's folder,
and begin without a '/'.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import heapq
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from drivers import beneath, deep, room
from drivers.beneath import folder, opened, parts_of, told
from drivers.machines import Cancelled
from model.base import Frozen
from model.errors import BodyTooLarge, EngineUnavailable, InvalidState

CHUNK = 256 << 10
#: A folder is deleted for so long: who is in it may fill it all the time.
DELETE_SECONDS = 300.0
#: Of what is written the disk is looked at after so much.
LOOK_BYTES = 32 << 20
#: Entries of one list.
MOST_ENTRIES = 10_000
#: How the names begin of what is not whole yet.
PARTIAL = ".cairn-partial-"
_REGULAR = os.O_RDONLY | os.O_NONBLOCK
_PERMISSIONS = 0o777

Kind = Literal["file", "folder", "link", "other"]


class FileEntry(Frozen):
    """One file, folder or link."""

    name: str
    path: str
    type: Kind
    size: int
    #: Permissions, as chmod(1) writes them: 644.
    mode: str
    modified_at: dt.datetime
    #: Of a link: what it says.
    target: str | None = None


class Listing(Frozen):
    entries: list[FileEntry]
    #: There are more than are named.
    truncated: bool = False


class FileContent:
    """The bytes of a plain file from ``offset`` on, as it was when it was opened. Closed, it has no more."""

    def __init__(self, descriptor: int, offset: int = 0, length: int | None = None) -> None:
        about = os.fstat(descriptor)
        self.size = about.st_size
        self.modified_at = _time(about.st_mtime)
        #: The same for the same content, for all that can be known without reading it.
        self.tag = f"{about.st_mtime_ns:x}-{about.st_size:x}-{about.st_ino:x}"
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        rest = max(self.size - offset, 0)
        self.length = rest if length is None else min(length, rest)
        self._at, self._left = offset, self.length
        self._closed = False

    def __iter__(self) -> FileContent:
        return self

    def __next__(self) -> bytes:
        if self._closed or not self._left:
            raise StopIteration
        try:
            data = os.pread(self._file.fileno(), min(CHUNK, self._left), self._at)
        except ValueError:  # closed by another thread
            raise StopIteration from None
        if not data:  # it became shorter meanwhile
            raise StopIteration
        self._at += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._closed = True
        self._file.close()


class Files:
    """Those below one folder. Every call opens the folder anew."""

    def __init__(self, root: Path, *, most_bytes: int) -> None:
        """``most_bytes``: of one file that is written."""
        self._root = root
        self.most_bytes = most_bytes

    def entry(self, path: str) -> FileEntry:
        """What is at ``path`` itself, a link too. Raises NotFound, ValidationFailed, as everything here."""
        names = parts_of(path)
        with told(path), self.opened() as root:
            if not names:
                return _entry("", "", os.fstat(root), root)
            with folder(root, names[:-1]) as above:
                return entry_at(above, names[-1], path)

    def list(self, path: str) -> Listing:
        """What is in a folder, by name."""
        names = parts_of(path)
        with (
            told(path),
            self.opened() as root,
            opened(root, names, os.O_RDONLY | os.O_DIRECTORY) as above,
        ):
            # Of millions no more is remembered than is told.
            with os.scandir(above) as all_of_it:
                found = heapq.nsmallest(MOST_ENTRIES + 1, (entry.name for entry in all_of_it))
            entries = []
            for name in found[:MOST_ENTRIES]:
                with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                    entries.append(entry_at(above, name, "/".join([*names, name])))
        return Listing(entries=entries, truncated=len(found) > MOST_ENTRIES)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> FileContent:
        """Raises InvalidState for what is no plain file."""
        names = parts_of(path)
        with told(path), self.opened() as root:
            return FileContent(open_plain(root, names, path), offset, length)

    def write(self, path: str, body: Iterable[bytes]) -> FileEntry:
        """Make the file have this content, from one moment to the next: who reads it sees the one before or this one.

        Folders that are missing are made; permissions and owner stay; a link is replaced, not followed. What is cut
        off or larger than allowed leaves nothing. Raises BodyTooLarge, InvalidState where a folder has the name,
        EngineRefused where the disk has no room for more.
        """
        names = parts_of(path)
        if not names:
            raise InvalidState("the workspace itself is a folder", state="folder")
        with told(path), self.opened() as root:
            room.check(root)
            with folder(root, names[:-1], make=True) as above:
                place(above, names[-1], self._bounded(body, root))
                return entry_at(above, names[-1], path)

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """A folder that is not empty only with ``recursive``; a link itself. Raises NotFound, InvalidState."""
        names = parts_of(path)
        if not names:
            raise InvalidState("the workspace itself cannot be deleted: delete its session", state="folder")
        with told(path), self.opened() as root, folder(root, names[:-1]) as above:
            if not stat.S_ISDIR(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                os.unlink(names[-1], dir_fd=above)
            elif recursive:
                self._delete(above, names[-1], path)
            else:
                try:
                    os.rmdir(names[-1], dir_fd=above)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    message = f"{path[:200]} is a folder with something in it: delete it with recursive=true"
                    raise InvalidState(message, state="not_empty") from None

    def _delete(self, above: int, name: str, path: str) -> None:
        until = time.monotonic() + DELETE_SECONDS
        try:
            deep.delete(above, name, lambda: time.monotonic() > until)
        except Cancelled as error:
            raise EngineUnavailable(
                f"{path[:200]} is not empty yet after {DELETE_SECONDS:g} s: try again, or stop the session first, "
                "which may go on to write there"
            ) from error

    def move(self, path: str, to: str, *, replace: bool = False) -> FileEntry:
        """Give it another path, in one step; folders above that which are missing are made. Raises InvalidState where
        there is something already that it is not to replace, or where a folder would be moved into itself."""
        names, to_names = parts_of(path), parts_of(to)
        if not names or not to_names:
            raise InvalidState("the workspace itself cannot be moved or replaced", state="folder")
        if to_names[: len(names)] == names and to_names != names:
            raise InvalidState(f"{path} cannot be moved into itself", state="folder")
        with told(path), self.opened() as root, folder(root, names[:-1]) as above:
            os.stat(names[-1], dir_fd=above, follow_symlinks=False)
            with told(to), folder(root, to_names[:-1], make=True) as to_above:
                beneath.rename(above, names[-1], to_above, to_names[-1], replace=replace)
                return entry_at(to_above, to_names[-1], to)

    def mkdir(self, path: str) -> FileEntry:
        """Make a folder, and those above it. Success where it is there; raises InvalidState where a file is."""
        names = parts_of(path)
        with told(path), self.opened() as root:
            try:
                with folder(root, names, make=True) as made:
                    return _entry(names[-1] if names else "", path, os.fstat(made), made)
            except NotADirectoryError as error:
                raise InvalidState(f"there is a file at {path}, or above it", state="exists") from error

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The folder itself."""
        descriptor = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _bounded(self, body: Iterable[bytes], root: int) -> Iterator[bytes]:
        size, due = 0, LOOK_BYTES
        for part in body:
            if size > due:
                room.check(root)
                due = size + LOOK_BYTES
            size += len(part)
            if size > self.most_bytes:
                raise BodyTooLarge(f"a file may have {self.most_bytes} bytes (CAIRN_SESSION_FILE_MAX_BYTES)")
            yield part


def open_plain(root: int, names: list[str], path: str) -> int:
    """A descriptor to read a plain file from. Raises OSError, InvalidState."""
    with opened(root, names) as found:
        mode = os.fstat(found).st_mode
        if stat.S_ISDIR(mode):
            raise InvalidState(
                f"{path or 'the workspace'} is a folder: list it, or get it as an archive", state="folder"
            )
        if not stat.S_ISREG(mode):
            raise InvalidState(f"{path} is no plain file", state="other")
        # What was looked at is what is opened, whatever has its name by now.
        return os.open(f"/proc/self/fd/{found}", _REGULAR | os.O_CLOEXEC)


def place(above: int, name: str, body: Iterable[bytes], mode: int | None = None, *, flush: bool = True) -> None:
    """Put a file where there may be one, whole or not at all. ``mode``: None: as the one that it replaces, or 644.
    ``flush``: it is on the disk then."""
    owner: tuple[int, int] | None = None
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISDIR(before.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder")
        if stat.S_ISREG(before.st_mode):
            owner = before.st_uid, before.st_gid
            mode = stat.S_IMODE(before.st_mode) & _PERMISSIONS if mode is None else mode
    # Nobody else can know its name, and what dies meanwhile leaves none where the file system has files without.
    partial = f"{PARTIAL}{secrets.token_hex(8)}"
    with _nameless(above, partial) as (descriptor, has_name):
        named = has_name
        try:
            for part in body:
                left = memoryview(part)
                while left:
                    left = left[os.write(descriptor, left) :]
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, 0o644 if mode is None else mode)
            if flush:
                os.fsync(descriptor)
            if not named:
                os.link(f"/proc/self/fd/{descriptor}", partial, dst_dir_fd=above, follow_symlinks=True)
                named = True
            os.rename(partial, name, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            if named:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=above)
            raise


@contextmanager
def _nameless(above: int, partial: str) -> Iterator[tuple[int, bool]]:
    """A new file, and whether it has a name."""
    flags, named = os.O_WRONLY | os.O_CLOEXEC, False
    try:
        descriptor = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=above)
    except OSError:
        descriptor, named = os.open(partial, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=above), True
    try:
        yield descriptor, named
    finally:
        os.close(descriptor)


def entry_at(above: int, name: str, path: str) -> FileEntry:
    """Of what has this name in a folder, a link itself. Raises OSError."""
    return _entry(name, path, os.stat(name, dir_fd=above, follow_symlinks=False), above)


def _entry(name: str, path: str, about: os.stat_result, above: int) -> FileEntry:
    target = None
    if stat.S_ISLNK(about.st_mode):
        with contextlib.suppress(OSError):  # another by now
            target = shown(os.readlink(name, dir_fd=above))
    return FileEntry(
        name=shown(name),
        path=shown(path),
        type=kind_of(about.st_mode),
        size=about.st_size,
        mode=f"{stat.S_IMODE(about.st_mode):o}",
        modified_at=_time(about.st_mtime),
        target=target,
    )


def kind_of(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


def shown(name: str) -> str:
    """For people: names that are no UTF-8 too, which cannot be asked for."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _time(seconds: float) -> dt.datetime:
    """Of a file, which may claim any."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return dt.datetime.fromtimestamp(0, dt.UTC)
