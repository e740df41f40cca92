"""Entries of tar archives that strangers send."""

from __future__ import annotations

import posixpath
import tarfile
from typing import Any, Self

from model.errors import ImageRefused

#: Of a name or of extended attributes, which a reader takes into memory whole.
MOST_HEADER = 1 << 20
LARGE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


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
        return super()._proc_member(archive)  # type: ignore[misc]  # the hook for subclasses, which typeshed leaves out

    def _sparse(self, *_: Any) -> Any:
        raise ImageRefused("the archive holds sparse files: make it without --sparse")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


EOF = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # typeshed leaves it out
HEADER = tarfile.HeaderError


def check_entry(entry: tarfile.TarInfo, where: str) -> None:
    """Raises ImageRefused for what has no place in an image, or would leave it. ``where`` begins the message.

    A link to an absolute path is one inside the image: whoever follows it is inside, too.
    """
    shown = f"{where}{entry.name[:200]!r}"
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
