"""Archives that strangers send: what they are, judged while they stream by. Nothing is ever extracted.

The format is told by the contents, never by a name. Memory stays bounded whatever the archive says of itself.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from typing import Any

from drivers import archive_manifests, packing, qcow2
from drivers.archive_entries import check_entry, entries
from drivers.archive_manifests import Contents, Found
from drivers.packing import CHUNK, GZIP, ZSTD, Readable, Watched, unpacked
from model.base import Frozen
from model.errors import ImageRefused
from model.images import Format

#: Documents of an archive: each, and all that are kept.
MOST_DOCUMENT, MOST_DOCUMENTS = 1 << 20, 4 << 20
#: Files of a docker or OCI archive; entries of a file system.
MOST_FILES, MOST_ENTRIES = 20_000, 3_000_000
#: Characters of a link's target that is followed to a layer.
MOST_TARGET = 255
#: What unpacks to more than this is compared with what it was packed into.
SMALL = 64 << 20
BROKEN = (tarfile.TarError, RecursionError, *packing.BROKEN)
_LAYER = re.compile(
    r"(?:\./)?(?:[^/.][^/]{0,199}/layer\.tar|blobs/sha256/[0-9a-f]{64}|[^/]{1,200}\.tar(?:\.gz|\.zst)?)"
)
_DOCUMENT = re.compile(r"(?:\./)?(?:[^/]{1,200}\.json|oci-layout|blobs/sha256/[0-9a-f]{64})")


class Limits(Frozen):
    """How much an archive may unpack to, and to how many times its size."""

    unpacked_bytes: int
    ratio: int = 200


class Inspected(Frozen):
    """What an archive is. ``contents``: of a docker or OCI archive."""

    format: Format
    digest: str
    size_bytes: int
    unpacked_bytes: int
    contents: Contents | None = None


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def is_document(name: str) -> bool:
    """Whether an entry of this name may be a document of an image archive."""
    return _DOCUMENT.fullmatch(name) is not None


class Inspection:
    """One look at one archive."""

    def __init__(self, limits: Limits, check: Callable[[int], None]) -> None:
        """``check``: called with the number of packed bytes read so far; it may raise, to call the look off."""
        self._limits = limits
        self._check = check
        self._unpacked = 0
        self._found = Found()
        self._documents = 0
        self._judged = False

    def run(self, source: Readable) -> Inspected:
        """Read it to its end. Raises ImageRefused."""
        packed = Watched(source, lambda _: self._check(packed.count))
        contents: Contents | None = None
        try:
            tar = self._watch(packed)
            if tar.peek().startswith(qcow2.MAGIC):
                qcow2.check(tar.peek(), self._limits.unpacked_bytes)
                form: Format = "qcow2"
            else:
                form, contents = self._archive(tar)
            tar.drain()
            packed.drain()
        except BROKEN as error:
            raise _broken(error) from error
        return Inspected(
            format=form,
            digest=f"sha256:{packed.sha256.hexdigest()}",
            size_bytes=packed.count,
            unpacked_bytes=self._unpacked or packed.count,
            contents=contents,
        )

    def names(self, tar: Readable) -> Contents:
        """Where the parts are of a plain image archive that was judged before: read as it was judged, but for what is
        in its layers. Raises ImageRefused."""
        self._judged = True
        try:
            self._walk(Watched(tar, self._check), "", self._look_into)
            return archive_manifests.read_names(self._found)
        except BROKEN as error:
            raise _broken(error) from error

    def _archive(self, tar: Watched) -> tuple[Format, Contents | None]:
        if not is_tar(tar.peek()):
            raise ImageRefused("it is neither a tar archive (plain, gzip, zstd) nor a qcow2 image")
        seen = self._walk(tar, "", self._look_into)
        contents = archive_manifests.read(self._found)
        if contents is None:
            if not any(seen):
                raise ImageRefused("the archive holds no file")
            return "rootfs-tar", None
        if sum(seen) > MOST_FILES:
            raise ImageRefused(f"an image archive of more than {MOST_FILES} entries")
        if self._found.absolute_link:
            raise ImageRefused(f"{self._found.absolute_link!r}: a link that leaves the archive")
        return contents.format, contents

    def _watch(self, packed: Watched, *, inner: bool = False) -> Watched:
        """Its contents, held against the limits while they unpack. ``inner``: of a file whose bytes count already."""
        source = unpacked(packed)

        def check(size: int) -> None:
            self._unpacked += 0 if inner and source is packed else size
            if self._unpacked > self._limits.unpacked_bytes:
                raise ImageRefused(f"it unpacks to more than {self._limits.unpacked_bytes} bytes")
            if source is not packed and watched.count > max(SMALL, self._limits.ratio * packed.count):
                raise ImageRefused(f"it unpacks to more than {self._limits.ratio} times its size: a bomb?")

        watched = Watched(source, check)
        return watched

    def _walk(
        self, tar: Watched, where: str, look: Callable[[tarfile.TarFile, tarfile.TarInfo], None] | None
    ) -> tuple[int, int]:
        """Check every entry; how many are files, and how many are not."""
        files = others = 0
        for archive, entry in entries(tar):
            check_entry(entry, where)
            if entry.isreg():
                files += 1
            else:
                others += 1
            if files + others > MOST_ENTRIES:
                raise ImageRefused(f"{where}more than {MOST_ENTRIES} entries")
            if look is not None:
                look(archive, entry)
        return files, others

    def _look_into(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        """Layers and documents of an image archive. In a file system what has such a name may be anything."""
        name = entry.name.removeprefix("./")
        found, is_layer = self._found, _LAYER.fullmatch(name) is not None
        if entry.issym() or entry.islnk():
            if entry.linkname.startswith("/"):
                found.absolute_link = name[:200]
            elif is_layer and len(entry.linkname) <= MOST_TARGET and len(found.links) < MOST_FILES:
                found.link(name, entry.linkname, hard=entry.islnk())
        if not entry.isreg() or not (is_layer or is_document(name)) or len(found.digests) >= MOST_FILES:
            return
        file: Any = archive.extractfile(entry)
        raw = Watched(file, lambda _: None)
        head = raw.peek()
        if head[:1] in (b"{", b"[") and is_document(name):
            fits = entry.size <= MOST_DOCUMENT and self._documents + entry.size <= MOST_DOCUMENTS
            if fits:
                self._documents += entry.size
                found.documents[name] = b"".join(iter(lambda: raw.read(CHUNK), b""))
        elif is_layer and (is_tar(head) or head.startswith((GZIP, ZSTD))):
            found.layers[name] = ("", None) if self._judged else self._layer(raw, name)
        raw.drain()
        digest = raw.sha256.hexdigest()
        if found.digests.setdefault(name, digest) != digest:
            found.twice = name

    def _layer(self, raw: Watched, name: str) -> tuple[str, str | None]:
        """SHA-256 of the layer unpacked, and what is wrong with it: it counts only where it is one."""
        try:
            tar = self._watch(raw, inner=True)
            self._walk(tar, f"layer {name}: ", None)
            tar.drain()
        except (ImageRefused, *BROKEN) as error:
            return "", getattr(error, "message", None) or _broken(error, f"layer {name}").message
        return tar.sha256.hexdigest(), None


def _broken(error: Exception, what: str = "the archive") -> ImageRefused:
    # The reader goes on to the next entry, and what is there ends before it: that is what it calls seeking.
    ends = isinstance(error, tarfile.StreamError | EOFError)
    said = "it ends early" if ends else str(error) or type(error).__name__
    return ImageRefused(f"{what} is broken or cut off: {said}")
