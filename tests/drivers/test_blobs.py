"""The blob store: one contract, on a folder and on a real S3-compatible service."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drivers.blobs import Blobs, FileBlobs
from drivers.locked_file import LockedFile
from drivers.s3_blobs import S3Blobs
from model.errors import NotFound, Unavailable
from tests.registry import sha256
from tests.services import until
from tests.swift import ACCESS_KEY, BUCKET, SECRET_KEY, Swift, install, is_installed

#: The first run on a machine installs the service.


@pytest.fixture(scope="module")
def swift() -> Iterator[Swift]:
    if not is_installed():
        install()
    made = Swift()
    yield made
    made.remove()


def s3(url: str, folder: Path, secret: str = SECRET_KEY) -> S3Blobs:
    return S3Blobs(
        bucket=BUCKET, endpoint=url, region="us-east-1", access_key=ACCESS_KEY, secret_key=secret, folder=folder
    )


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FileBlobs(tmp_path)
    service: Swift = request.getfixturevalue("swift")
    for found in service.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        service.client.delete_object(Bucket=BUCKET, Key=found["Key"])
    return s3(service.url, tmp_path)


def store(blobs: Blobs, content: bytes) -> str:
    with blobs.receive() as file:
        file.write(content)
        blobs.put(file)
        return file.digest


def read(blobs: Blobs, digest: str) -> bytes:
    opened = blobs.open(digest)
    pieces = []
    while piece := opened.source.read(1 << 20):
        pieces.append(piece)
    opened.source.close()
    assert sum(map(len, pieces)) == opened.size
    return b"".join(pieces)


def test_life_of_a_file(blobs: Blobs) -> None:
    content = os.urandom(100_000)
    digest = store(blobs, content)
    assert digest == sha256(content)
    assert store(blobs, content) == digest
    assert [found for found, _ in blobs.all()] == [digest]
    assert read(blobs, digest) == content
    for _ in range(2):
        blobs.remove(digest)
        assert list(blobs.all()) == []
    with pytest.raises(NotFound):
        blobs.open(digest)


def test_file_in_parts(blobs: Blobs) -> None:
    content = os.urandom(40 << 20)
    assert read(blobs, store(blobs, content)) == content


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:", "md5:1", "sha256:" + "0" * 63, "../x"])
def test_what_is_no_digest_is_no_path(blobs: Blobs, digest: str) -> None:
    for call in (blobs.open, blobs.remove):
        with pytest.raises(NotFound):
            call(digest)


def test_what_is_not_put_is_gone(blobs: Blobs, tmp_path: Path) -> None:
    with blobs.receive() as file:
        file.write(b"half")
    assert list(blobs.all()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sweep_removes_what_the_dead_were_receiving_and_nothing_else(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from drivers.blobs import FileBlobs\n"
        "file = FileBlobs(Path(sys.argv[1])).receive(); file.write(b'half'); os.kill(os.getpid(), 9)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(argv, env=os.environ | {"PYTHONPATH": os.getcwd()}, check=False)
    assert until(lambda: len(list((tmp_path / "incoming").iterdir())) == 1)
    with blobs.receive() as file:
        assert blobs.sweep() == 1
        assert file.path.exists()
        file.write(b"whole")
        blobs.put(file)
    assert len(list(blobs.all())) == 1
    assert list((tmp_path / "incoming").iterdir()) == []


def test_service_that_is_away_or_refuses_may_be_mended(swift: Swift, tmp_path: Path) -> None:
    for blobs in (s3("http://127.0.0.1:1", tmp_path), s3(swift.url, tmp_path, secret="wrong")):
        with pytest.raises(Unavailable) as refused:
            store(blobs, b"x")
        assert refused.value.retryable
        with pytest.raises(Unavailable):
            blobs.open(sha256(b"x"))


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "incoming").write_text("a file")
    with pytest.raises(Unavailable):
        FileBlobs(tmp_path).receive()


def test_file_that_is_written_is_closed_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number could be another file's by then, which would get what was meant for it."""
    writing, go = threading.Event(), threading.Event()
    write = os.write

    def slowly(fd: int, piece: bytes) -> int:
        writing.set()
        go.wait(10)
        return write(fd, piece)

    file = LockedFile(tmp_path)
    monkeypatch.setattr(os, "write", slowly)
    with ThreadPoolExecutor(2) as threads:
        written = threads.submit(file.write, b"1")
        writing.wait(10)
        closed = threads.submit(file.__exit__)
        time.sleep(0.2)
        assert not closed.done()
        go.set()
        written.result(10)
        closed.result(10)
    with pytest.raises(OSError, match="closed"):
        file.write(b"2")
    with pytest.raises(OSError, match="closed"):
        file.keep(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
