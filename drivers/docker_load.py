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

from drivers import progress
from drivers.archive_entries import entries
from drivers.archive_manifests import Contents
from drivers.archives import BROKEN, Inspection, Limits
from drivers.docker_pull import Transfer
from drivers.locked_file import LockedFile
from drivers.machines import Cancelled, Check
from drivers.ownership import PREFIX
from drivers.packing import CHUNK, Watched, unpacked
from drivers.registries import split
from model.errors import ImageRefused
from model.images import Format

#: The file was judged before by the platform's own limits, which this host does not know.
JUDGED = Limits(unpacked_bytes=1 << 62)


@contextmanager
def plain(path: Path, folder: Path, cancelled: Check) -> Iterator[BinaryIO]:
    """The archive without its compression, to be read from anywhere."""
    with path.open("rb") as packed:
        watched = Watched(packed, lambda _: _stop(cancelled))
        with LockedFile(folder) as file:
            try:
                source = unpacked(watched)
                while source is not watched and (piece := source.read(CHUNK)):
                    file.write(piece)
            except BROKEN as error:
                raise ImageRefused(f"the archive is broken or cut off: {error or type(error).__name__}") from error
            with (path if source is watched else file.path).open("rb") as tar:
                yield tar


def _stop(cancelled: Check) -> None:
    if cancelled():
        raise Cancelled("loading")


class Load(Transfer):
    """A plain archive into the engine. Its own names and tags stay out: they would replace those of others."""

    def __init__(self, client: APIClient, tar: BinaryIO, form: Format, reference: str) -> None:
        super().__init__(f"load-{reference}", client)
        self._tar = tar
        self._form = form
        self._reference = reference
        self._size = tar.seek(0, io.SEEK_END)
        self._sent = 0

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
            pieces = self._pieces(renamed(self._tar, self._reference, self.called_off.is_set))
            for line in self.client.load_image(pieces, quiet=False):  # type: ignore[no-untyped-call]
                said: dict[str, Any] = line if isinstance(line, dict) else {}
                yield {"error": said["message"]} if "message" in said else said
        except tarfile.TarError as error:
            self.failure = str(error)

    def _all(self) -> Iterator[bytes]:
        self._tar.seek(0)
        while piece := self._tar.read(CHUNK):
            yield piece

    def _pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            _stop(self.called_off.is_set)
            self._sent += len(piece)
            yield piece


def renamed(tar: BinaryIO, reference: str, cancelled: Check) -> Iterator[bytes]:
    """The archive of one image as ``docker load`` reads it, with ``reference`` for its only name.

    Also of an OCI archive, which older engines do not know: its files are the same. Raises ImageRefused, TarError.
    """
    contents = contents_of(tar, cancelled)
    wanted = {contents.config, *contents.layers}
    tar.seek(0)
    for archive, entry in entries(Watched(tar, lambda _: _stop(cancelled))):
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


def contents_of(tar: BinaryIO, cancelled: Check) -> Contents:
    """Where the parts of a plain archive of one image are. Raises ImageRefused."""
    tar.seek(0)
    return Inspection(JUDGED, lambda _: _stop(cancelled)).names(tar)
