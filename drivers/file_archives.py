"""Folders of a session as tar archives, out and in."""

from __future__ import annotations

import itertools
import os
import stat
import tarfile
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import IO

from drivers import beneath, files, room
from drivers.archive_entries import check_entry, entries
from drivers.beneath import folder, opened, parts_of, told
from drivers.files import CHUNK, Files
from drivers.packing import BROKEN, Watched, unpacked
from model.errors import BodyTooLarge, EngineRefused, ImageRefused, InvalidState, ValidationFailed

#: Of an archive that is unpacked.
MOST_ENTRIES = 200_000
#: The disk is looked at before so many of them.
LOOK_ENTRIES = 1000
#: Names of one folder that are remembered at once.
MOST_SORTED = 10_000
#: Folders in each other that an archive is made of.
MOST_DEPTH = 200
_BLOCK = tarfile.BLOCKSIZE


class ArchiveOut:
    """A file or folder as a tar archive (POSIX 1003.1, pax), made as it is read. Names are relative to it, and its own
    is the first; plain files, folders and links, as they are met. Closed, there is no more."""

    def __init__(self, kept: Files, path: str) -> None:
        names = parts_of(path)
        with told(path), kept.opened() as root, opened(root, names) as found:
            self._found: int | None = os.dup(found)
        self._parts = self._all(self._found, names[-1] if names else ".")
        #: Not while a part is made.
        self._making = threading.Lock()

    def __iter__(self) -> ArchiveOut:
        return self

    def __next__(self) -> bytes:
        with self._making:
            return next(self._parts)

    def close(self) -> None:
        with self._making:
            self._parts.close()
            if self._found is not None:
                os.close(self._found)
            self._found = None

    @staticmethod
    def _all(found: int, name: str) -> Generator[bytes, None, None]:
        yield from _archived(found, name, 0)
        yield b"\0" * (2 * _BLOCK)


def _archived(found: int, name: str, depth: int) -> Iterator[bytes]:
    """``found``: opened as a path alone."""
    about = os.fstat(found)
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(about.st_mode), int(about.st_mtime)
    entry.uid, entry.gid = about.st_uid, about.st_gid
    if stat.S_ISREG(about.st_mode):
        entry.size = about.st_size
        yield _head(entry)
        yield from _content(found, about.st_size)
    elif stat.S_ISLNK(about.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=found)
        yield _head(entry)
    elif stat.S_ISDIR(about.st_mode):
        if depth > MOST_DEPTH:
            raise EngineRefused(f"{name[:200]} is more than {MOST_DEPTH} folders deep: get a folder of it")
        entry.type = tarfile.DIRTYPE
        yield _head(entry)
        with opened(found, [], os.O_RDONLY | os.O_DIRECTORY) as above:
            for below in _names(above):
                try:
                    child = os.open(below, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
                except FileNotFoundError:
                    continue  # it went meanwhile
                try:
                    yield from _archived(child, f"{name}/{below}", depth + 1)
                finally:
                    os.close(child)


def _names(above: int) -> Iterator[str]:
    """Of all that is in it, sorted as far as they are remembered at once."""
    with os.scandir(above) as found:
        while names := sorted(entry.name for entry in itertools.islice(found, MOST_SORTED)):
            yield from names


def _head(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _content(found: int, size: int) -> Iterator[bytes]:
    """Just so much, whatever becomes of the file meanwhile."""
    descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        left = size
        while left and (data := os.read(descriptor, min(CHUNK, left))):
            left -= len(data)
            yield data
    finally:
        os.close(descriptor)
    while left:
        part = min(CHUNK, left)
        left -= part
        yield b"\0" * part
    if rest := size % _BLOCK:
        yield b"\0" * (_BLOCK - rest)


class _Body:
    """What comes in parts, to be read in others."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return b""
            self._rest = part
        size = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def unpack(kept: Files, path: str, body: Iterable[bytes]) -> int:
    """Unpack a tar archive, plain or packed with gzip or zstd, into a folder, which is made where there is none: how
    many entries it had.

    Each file is put in its place whole; files of the same name are replaced, folders stay with what is in them. Owners
    are not taken over. An archive that ends too early, or has an entry that is refused, has been unpacked up to there.
    Raises ValidationFailed, BodyTooLarge, EngineRefused where the disk has no room for more.
    """
    names = parts_of(path)
    count, size = 0, 0

    def sized(_: int) -> None:
        """Of what is packed nothing need be checked: what it unpacks to is."""

    try:
        source = unpacked(Watched(_Body(body), sized))
        with told(path), kept.opened() as root, folder(root, names, make=True) as target:
            looked = 0
            for archive, entry in entries(source):
                if not count % LOOK_ENTRIES or size + entry.size - looked > files.LOOK_BYTES:
                    room.check(target)
                    looked = size
                count, size = count + 1, size + entry.size
                if count > MOST_ENTRIES:
                    raise BodyTooLarge(f"an archive may have {MOST_ENTRIES} entries")
                if size > kept.most_bytes:
                    raise BodyTooLarge(
                        f"an archive may unpack to {kept.most_bytes} bytes (CAIRN_SESSION_FILE_MAX_BYTES)"
                    )
                check_entry(entry, "entry ")
                with told(entry.name):
                    _unpack(target, entry, archive.extractfile(entry) if entry.isreg() else None)
    except ImageRefused as error:
        raise _refused(error.message) from error
    except (tarfile.TarError, *BROKEN) as error:
        raise _refused(f"the archive is broken or cut off: {error}") from error
    if not count:
        raise _refused("it is no tar archive, or an empty one")
    return count


def _unpack(target: int, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    names = [name for name in entry.name.split("/") if name not in ("", ".")]
    if not names:  # the folder itself
        return
    if len(names) > MOST_DEPTH:
        raise _refused(f"{entry.name[:200]!r} is more than {MOST_DEPTH} folders deep")
    if any(len(os.fsencode(name)) > beneath.LONGEST_NAME for name in names):
        raise _refused(f"{entry.name[:200]!r} has a name of more than {beneath.LONGEST_NAME} bytes")
    if entry.isdir():
        with folder(target, names, make=True):
            return
    with folder(target, names[:-1], make=True) as above:
        if content is not None:
            parts = iter(lambda: content.read(CHUNK), b"")
            files.place(above, names[-1], parts, entry.mode & 0o777, flush=False)
        elif entry.issym() or entry.islnk():
            _link(target, above, names[-1], entry)
        else:
            raise _refused(f"{entry.name[:200]!r} is neither a file, a folder nor a link")


def _link(target: int, above: int, name: str, entry: tarfile.TarInfo) -> None:
    """In the place of what has its name, unless that is a folder."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            raise InvalidState(f"there is a folder at {entry.name[:200]} already", state="exists")
        os.unlink(name, dir_fd=above)
    except FileNotFoundError:
        pass
    if entry.issym():
        os.symlink(entry.linkname, name, dir_fd=above)
        return
    *higher, last = [part for part in entry.linkname.split("/") if part not in ("", ".")] or ["."]
    with folder(target, higher) as where:
        os.link(last, name, src_dir_fd=where, dst_dir_fd=above, follow_symlinks=False)


def _refused(problem: str) -> ValidationFailed:
    return ValidationFailed(f"archive: {problem}", fields=[{"field": "archive", "message": problem}])
