"""Archives that strangers send: what they are, judged while they stream by. Nothing is ever extracted.

The format is told by the contents, never by a name. Memory stays bounded whatever the archive says of itself.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import zstandard

from drivers import archive_manifests, qcow2
from drivers.archive_entries import Entry, check_entry
from drivers.archive_manifests import Contents, Found
from model.base import Frozen
from model.errors import ImageRefused
from model.images import Format

CHUNK = 1 << 20
HEAD = 512
#: Documents of an archive: each, and all that are kept.
MOST_DOCUMENT, MOST_DOCUMENTS = 4 << 20, 16 << 20
#: Files of a docker or OCI archive; entries of a file system.
MOST_FILES, MOST_ENTRIES = 20_000, 3_000_000
#: What unpacks to more than this is compared with what it was packed into.
SMALL = 64 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: xz and bzip2: recognised, to be able to say what to do.
OTHERS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
BROKEN = (tarfile.TarError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError)
_LAYER = re.compile(r"(?:\./)?(?:[0-9a-f]{64}/layer\.tar|blobs/sha256/[0-9a-f]{64}|[^/]+\.tar(?:\.gz|\.zst)?)")
_DOCUMENT = re.compile(r"(?:\./)?(?:[^/]+\.json|oci-layout|blobs/sha256/[0-9a-f]{64})")


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


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Watched:
    """A source whose bytes are counted and hashed as they are read, and refused where ``check`` says so."""

    def __init__(self, source: Readable, check: Callable[[int], None]) -> None:
        self._source = source
        self._check = check
        self._head = b""
        self.count = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        size = CHUNK if size < 0 else size
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        piece = self._source.read(min(size, CHUNK))
        self.count += len(piece)
        self.sha256.update(piece)
        self._check(len(piece))
        return piece

    def peek(self) -> bytes:
        """Its first bytes, which are still to be read."""
        while len(self._head) < HEAD and (piece := self._source.read(HEAD - len(self._head))):
            self.count += len(piece)
            self.sha256.update(piece)
            self._head += piece
        return self._head

    def drain(self) -> None:
        while self.read(CHUNK):
            pass


def unpacked(packed: Watched) -> Readable:
    """Its contents, decompressed where they are gzip or zstd. Raises ImageRefused for other compressions."""
    head = packed.peek()
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=packed, mode="rb")  # type: ignore[call-overload,no-any-return]  # reads only
    if head.startswith(ZSTD):
        # The window is the memory that it takes; the format's own tools stop at the same.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        return decompressor.stream_reader(packed, read_across_frames=True)  # type: ignore[arg-type]
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise ImageRefused(f"it is compressed with {name}: unpack it, or compress it with gzip or zstd")
    return packed


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

    def run(self, source: Readable) -> Inspected:
        """Read it to its end. Raises ImageRefused."""
        packed = Watched(source, lambda _: self._check(packed.count))
        contents: Contents | None = None
        try:
            if packed.peek().startswith(qcow2.MAGIC):
                qcow2.check(packed.peek(), self._limits.unpacked_bytes)
                form: Format = "qcow2"
                packed.drain()
            else:
                form, contents = self._archive(packed)
        except BROKEN as error:
            raise ImageRefused(f"the archive is broken or cut off: {error or type(error).__name__}") from error
        return Inspected(
            format=form,
            digest=f"sha256:{packed.sha256.hexdigest()}",
            size_bytes=packed.count,
            unpacked_bytes=self._unpacked or packed.count,
            contents=contents,
        )

    def _archive(self, packed: Watched) -> tuple[Format, Contents | None]:
        tar = self._watch(packed)
        if not is_tar(tar.peek()):
            raise ImageRefused("it is neither a tar archive (plain, gzip, zstd) nor a qcow2 image")
        entries = self._walk(tar, "", self._look_into)
        tar.drain()
        packed.drain()
        contents = archive_manifests.read(self._found)
        if contents is None:
            if not any(entries):
                raise ImageRefused("the archive holds no file")
            return "rootfs-tar", None
        if sum(entries) > MOST_FILES:
            raise ImageRefused(f"an image archive of more than {MOST_FILES} entries")
        if self._found.absolute_link:
            raise ImageRefused(f"{self._found.absolute_link}: a link that leaves the archive")
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
        with tarfile.open(fileobj=tar, mode="r|", tarinfo=Entry, bufsize=CHUNK // 4) as archive:  # type: ignore[call-overload]
            for entry in archive:
                archive.members = []  # tarfile would keep all of them  # type: ignore[attr-defined]
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
        if entry.issym() or entry.islnk():
            if entry.linkname.startswith("/"):
                self._found.absolute_link = entry.name
            elif len(self._found.links) < MOST_FILES:
                self._found.link(name, entry.linkname, hard=entry.islnk())
        if not entry.isreg() or not (_LAYER.fullmatch(name) or is_document(name)):
            return
        file: Any = archive.extractfile(entry)
        raw = Watched(file, lambda _: None)
        head = raw.peek()
        if head[:1] in (b"{", b"[") and is_document(name):
            fits = entry.size <= MOST_DOCUMENT and self._documents + entry.size <= MOST_DOCUMENTS
            if fits:
                self._documents += entry.size
                self._found.documents[name] = b"".join(iter(lambda: raw.read(CHUNK), b""))
        elif (
            _LAYER.fullmatch(name)
            and (is_tar(head) or head.startswith((GZIP, ZSTD)))
            and len(self._found.layers) < MOST_FILES
        ):
            self._found.layers[name] = self._layer(raw, name)
        raw.drain()
        self._found.digests[name] = raw.sha256.hexdigest()

    def _layer(self, raw: Watched, name: str) -> tuple[str, str | None]:
        """SHA-256 of the layer unpacked, and what is wrong with it: it counts only where it is one."""
        try:
            tar = self._watch(raw, inner=True)
            self._walk(tar, f"layer {name}: ", None)
            tar.drain()
        except (ImageRefused, *BROKEN) as error:
            return "", getattr(error, "message", None) or f"layer {name} is broken: {error or type(error).__name__}"
        return tar.sha256.hexdigest(), None
