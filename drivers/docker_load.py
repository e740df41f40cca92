"""Loading a file of the blob store into a Docker engine, under our name alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from docker import APIClient

from drivers import archives, progress
from drivers.archive_manifests import Contents, Found, read_names
from drivers.docker_pull import Transfer, split
from drivers.locked_file import LockedFile
from drivers.machines import Cancelled, Check
from drivers.ownership import PREFIX
from model.errors import CairnError, ImageRefused
from model.images import Format

CHUNK = 1 << 20


@contextmanager
def plain(path: Path, folder: Path, cancelled: Check) -> Iterator[BinaryIO]:
    """The archive without its compression, to be read from anywhere."""
    with path.open("rb") as packed:
        if archives.is_tar(packed.read(archives.HEAD)):
            packed.seek(0)
            yield packed
            return
        packed.seek(0)
        source = archives.unpacked(archives.Watched(packed, lambda _: _stop(cancelled)))
        with LockedFile(folder) as file:
            while piece := source.read(CHUNK):
                file.write(piece)
            with file.path.open("rb") as tar:
                yield tar


def _stop(cancelled: Check) -> None:
    if cancelled():
        raise Cancelled("unpacking")


class Load(Transfer):
    """A plain archive into the engine. Its own names and tags stay out: they would replace those of others."""

    def __init__(self, client: APIClient, tar: BinaryIO, form: Format, reference: str) -> None:
        super().__init__(f"load-{reference}", client)
        self._tar = tar
        self._form = form
        self._reference = reference
        self._size = tar.seek(0, io.SEEK_END)
        self._sent = 0
        self.refused: str | None = None

    @property
    def said(self) -> str | None:
        return progress.of_bytes(self._sent, self._size)

    def lines(self) -> Iterable[dict[str, Any]]:
        try:
            if self._form == "rootfs-tar":
                repository, tag = split(self._reference)
                self.client.import_image_from_stream(
                    self._pieces(self._all()), repository=repository, tag=tag, changes=[f"LABEL {PREFIX}.image={tag}"]
                )
                return
            pieces = self._pieces(renamed(self._tar, self._reference))
            for line in self.client.load_image(pieces, quiet=False):  # type: ignore[no-untyped-call]
                said: dict[str, Any] = line if isinstance(line, dict) else {}
                yield {"error": said["message"]} if "message" in said else said
        except ImageRefused as error:
            self.refused = error.message
        except (tarfile.TarError, CairnError) as error:
            self.failure = str(error)

    def _all(self) -> Iterator[bytes]:
        self._tar.seek(0)
        while piece := self._tar.read(CHUNK):
            yield piece

    def _pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self.called_off.is_set():
                raise Cancelled("loading")
            self._sent += len(piece)
            yield piece


def renamed(tar: BinaryIO, reference: str) -> Iterator[bytes]:
    """The archive of one image as ``docker load`` reads it, with ``reference`` for its only name.

    Also of an OCI archive, which older engines do not know: its files are the same.
    """
    contents = _contents(tar)
    wanted = {contents.config, *contents.layers}
    tar.seek(0)
    with tarfile.open(fileobj=tar, mode="r:") as archive:
        for entry in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
            name = entry.name.removeprefix("./")
            if name not in wanted or not entry.isreg():
                continue
            wanted.discard(name)
            file: Any = archive.extractfile(entry)
            yield from _entry(name, entry.size, iter(partial(file.read, CHUNK), b""))
    if wanted:
        raise ImageRefused(f"{sorted(wanted)[0]} is missing from the archive")
    manifest = [{"Config": contents.config, "RepoTags": [reference], "Layers": contents.layers}]
    document = json.dumps(manifest).encode()
    yield from _entry("manifest.json", len(document), iter([document]))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _entry(name: str, size: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    yield header.tobuf()
    yield from pieces
    yield bytes(-size % tarfile.BLOCKSIZE)


def _contents(tar: BinaryIO) -> Contents:
    """What its manifest says. The archive was judged when it was imported; here its names are read."""
    found = Found()
    tar.seek(0)
    with tarfile.open(fileobj=tar, mode="r:") as archive:
        for entry in archive:
            archive.members = []  # type: ignore[attr-defined]
            name = entry.name.removeprefix("./")
            if entry.issym() or entry.islnk():
                found.link(name, entry.linkname, hard=entry.islnk())
            elif entry.isreg():
                found.digests[name] = name.rpartition("/")[2]
                if entry.size <= archives.MOST_DOCUMENT and archives.is_document(name):
                    file: Any = archive.extractfile(entry)
                    content = file.read()
                    if content[:1] in (b"{", b"["):
                        found.documents[name] = content
    return read_names(found)
