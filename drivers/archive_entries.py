"""Entries of tar archives that strangers send: one reader, for whoever judges an archive and whoever uses it later."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, Self

from drivers.packing import Readable
from model.errors import ImageRefused

#: Of a name or of extended attributes, which a reader takes into memory whole.
MOST_HEADER = 64 << 10
#: Such headers before one entry. Each is read inside the one before.
MOST_NESTED = 8
MOST_NAME = 4096
BUFFER = 256 << 10
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
LARGE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *PAX)


class Entry(tarfile.TarInfo):
    """A header whose size is believed only where it is small, and an end that counts only where it is marked."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOF:
            raise
        except HEADER as error:
            # The reader takes such a place for the end: other readers do not.
            raise ImageRefused(f"the archive is broken or cut off at byte {tarfile.offset}: {error}") from error

    def _proc_member(self, archive: Any) -> Any:
        if self.size < 0 or (self.type in LARGE and self.size > MOST_HEADER):
            raise ImageRefused(f"the archive has a header of {self.size} bytes at byte {archive.offset}")
        archive.nested += 1
        try:
            if archive.nested > MOST_NESTED:
                raise ImageRefused(f"the archive has more than {MOST_NESTED} headers for one entry")
            return super()._proc_member(archive)  # type: ignore[misc]  # the hook for subclasses, not in typeshed
        finally:
            archive.nested -= 1

    def _proc_pax(self, archive: Any) -> Any:
        """Not the standard library's: a few bytes make that keep any amount. What engines' readers do not apply either
        (what is said of all entries) is passed over."""
        block = archive.fileobj.read(self._block(self.size))[: self.size]  # type: ignore[attr-defined]
        said = {} if self.type == tarfile.XGLTYPE else _records(block)
        try:
            entry = self.fromtarfile(archive)
        except EOF as error:
            raise ImageRefused("the archive is broken: it ends with a header of nothing") from error
        if path := said.get("path"):
            entry.name = path.rstrip("/") or "/"
        entry.linkname = said.get("linkpath") or entry.linkname
        if (size := said.get("size")) is not None:
            if not (size.isascii() and size.isdecimal()):
                raise ImageRefused(f"{entry.name[:200]!r}: {size[:40]!r} is no size")
            entry.size = int(size)
            kept = entry.isreg() or entry.type not in tarfile.SUPPORTED_TYPES
            archive.offset = entry.offset_data + (entry._block(entry.size) if kept else 0)  # type: ignore[attr-defined]
        return entry

    def _sparse(self, *_: Any) -> Any:
        raise ImageRefused(SPARSE)

    _proc_sparse = _sparse


class Archive(tarfile.TarFile):
    """Read with such entries."""

    tarinfo = Entry
    nested = 0


EOF = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # typeshed leaves it out
HEADER = tarfile.HeaderError
SPARSE = "the archive holds sparse files: make it without --sparse"


def entries(tar: Readable) -> Iterator[tuple[Archive, tarfile.TarInfo]]:
    """The entries of a plain archive, each to be read before the next. Raises ImageRefused, TarError."""
    with Archive.open(fileobj=tar, mode="r|", bufsize=BUFFER) as archive:  # type: ignore[call-overload]
        for entry in archive:
            archive.members = []  # it would keep all of them
            yield archive, entry


def _records(block: bytes) -> dict[str, str]:
    """The keywords of an extended header (POSIX 1003.1, pax), read strictly. Raises ImageRefused."""
    found: dict[str, str] = {}
    at = 0
    while at < len(block):
        length, _, _ = block[at : at + 8].partition(b" ")
        end = at + (int(length) if length.isdigit() else 0)
        keyword, equals, value = block[at + len(length) + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or end > len(block) or block[end - 1 : end] != b"\n":
            raise ImageRefused("the archive is broken: a pax header that cannot be read")
        if keyword.startswith(b"GNU.sparse."):
            raise ImageRefused(SPARSE)
        found[keyword.decode(errors="replace")] = value.decode(errors="surrogateescape")
        at = end
    return found


def check_entry(entry: tarfile.TarInfo, where: str) -> None:
    """Raises ImageRefused for what has no place in an image, or would leave it. ``where`` begins the message.

    A link to an absolute path is one inside the image: whoever follows it is inside, too.
    """
    shown = f"{where}{entry.name[:200]!r}"
    if len(entry.name) > MOST_NAME or len(entry.linkname) > MOST_NAME:
        raise ImageRefused(f"{shown}: a path of more than {MOST_NAME} characters")
    if "\0" in entry.name + entry.linkname:
        raise ImageRefused(f"{shown}: a path with a NUL")
    if entry.name.startswith("/"):
        raise ImageRefused(f"{shown}: an absolute path")
    if ".." in entry.name.split("/"):
        raise ImageRefused(f"{shown}: a path that leaves the archive")
    if entry.ischr() or entry.isblk():
        raise ImageRefused(f"{shown}: a device; leave devices out (tar --exclude './dev/*')")
    if entry.issym() or entry.islnk():
        if not entry.linkname:
            raise ImageRefused(f"{shown}: a link to nothing")
        base = posixpath.dirname(entry.name) if entry.issym() else ""
        reached = posixpath.normpath(posixpath.join(base, entry.linkname))
        if reached.split("/")[0] == "..":
            raise ImageRefused(f"{shown}: a link that leaves the archive, to {entry.linkname[:200]!r}")
    elif not (entry.isreg() or entry.isdir() or entry.isfifo()):
        raise ImageRefused(f"{shown}: an entry of an unknown type")
