"""How files are packed that strangers send: told by their first bytes, and unpacked while they stream by.

There is one answer for whoever judges a file and whoever uses it later: see ``unpacked``.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import zstandard

from model.errors import ImageRefused

CHUNK = 1 << 20
HEAD = 512
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: The memory that unpacking takes: what RFC 8878 asks every decoder for, and up to level 19 needs.
MOST_WINDOW = 8 << 20
#: xz and bzip2: recognised, to be able to say what to do.
OTHERS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
BROKEN = (zlib.error, zstandard.ZstdError, EOFError)
#: zlib takes gzip's own head and checksums too.
_GZIP_BITS = 16 + zlib.MAX_WBITS
#: What is fed to zlib at once: what a short part of a file leaves over is copied for each of its parts.
_FED = 16 << 10


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
        return _Gunzip(packed)
    if head.startswith(ZSTD):
        if zstandard.get_frame_parameters(head).window_size > MOST_WINDOW:
            raise ImageRefused(f"unpacking takes more than {MOST_WINDOW >> 20} MiB: use zstd without --ultra or --long")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW)
        return decompressor.stream_reader(packed, read_across_frames=True)  # type: ignore[arg-type]
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise ImageRefused(f"it is compressed with {name}: unpack it, or compress it with gzip or zstd")
    return packed


class _Gunzip:
    """Gzip, one part after the other. Not the standard library's: that reads the names in its heads, which may be of
    any length, byte by byte."""

    def __init__(self, packed: Readable) -> None:
        self._packed = packed
        self._fed = b""
        #: None between two parts, where padding may be.
        self._inflate: Any = None

    def read(self, size: int = -1, /) -> bytes:
        size = CHUNK if size < 0 else size
        while True:
            self._fed = self._fed or self._packed.read(_FED)
            at_end = not self._fed
            if self._inflate is None:
                if at_end:
                    return b""
                self._fed = self._fed.lstrip(b"\0")
                self._inflate = zlib.decompressobj(_GZIP_BITS) if self._fed else None
                continue
            piece: bytes = self._inflate.decompress(self._fed, size)
            if self._inflate.eof:
                self._fed, self._inflate = self._inflate.unused_data, None
            else:
                self._fed = self._inflate.unconsumed_tail
                if at_end and not piece:
                    raise EOFError("it ends in the middle")
            if piece:
                return piece
