"""What is told of an archive while it streams by, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from drivers import archives, packing
from drivers.archives import Inspected, Inspection, Limits
from drivers.docker_load import contents_of, plain, renamed
from drivers.machines import Cancelled
from model.errors import ImageRefused
from tests.drivers.conftest import never
from tests.registry import config_of, sha256, tar_of

LIMITS = Limits(unpacked_bytes=1 << 30)
ROOT = {"bin/run": b"#!", "etc/passwd": b"root"}


def inspect(content: bytes | Any, limits: Limits = LIMITS) -> Inspected:
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    return Inspection(limits, lambda _: None).run(source)


def tar_with(*entries: tarfile.TarInfo, **options: Any) -> bytes:
    """A root file system with these entries too."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **options) as archive:
        for name, content in ROOT.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return made.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def docker_archive(*layers: bytes, **over: Any) -> dict[str, bytes]:
    config = config_of(*layers)
    files = {f"{hashlib.sha256(layer).hexdigest()}/layer.tar": layer for layer in layers}
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": ["web:1"], "Layers": list(files)} | over]
    return files | {name: config, "manifest.json": json.dumps(manifest).encode()}


def oci_archive(*layers: bytes, pack: Callable[[bytes], bytes] = gzip.compress) -> dict[str, bytes]:
    config, packed = config_of(*layers), [pack(layer) for layer in layers]
    described = [{"digest": sha256(layer), "size": len(layer)} for layer in packed]
    manifest = json.dumps({"config": {"digest": sha256(config)}, "layers": described}).encode()
    index = {"manifests": [{"digest": sha256(manifest), "platform": {"architecture": "amd64", "os": "linux"}}]}
    blobs = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in (config, manifest, *packed)}
    return blobs | {"index.json": json.dumps(index).encode(), "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}


LAYER = tar_of(ROOT)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize(
    ("files", "form"),
    [
        (ROOT, "rootfs-tar"),
        (docker_archive(LAYER), "docker-archive"),
        (docker_archive(LAYER, tar_of({"b": b"2"})), "docker-archive"),
        ({"l/layer.tar": LAYER} | docker_archive(LAYER, Layers=["l/layer.tar"]), "docker-archive"),
        (oci_archive(LAYER), "oci-archive"),
        (oci_archive(LAYER, pack=zstandard.compress), "oci-archive"),
        (oci_archive(LAYER, pack=bytes), "oci-archive"),
    ],
)
def test_format_is_told_by_the_contents(files: dict[str, bytes], form: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(tar_of(files))
    found = inspect(packed)
    assert (found.format, found.size_bytes, found.digest) == (form, len(packed), sha256(packed))
    assert (found.contents is None) == (form == "rootfs-tar")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (entry("/etc/shadow"), "absolute path"),
        (entry("../etc/shadow"), "leaves the archive"),
        (entry("a/../../b"), "leaves the archive"),
        (entry("dev/sda", tarfile.BLKTYPE), "a device"),
        (entry("dev/null", tarfile.CHRTYPE), "a device"),
        (entry("a", tarfile.SYMTYPE, "../../etc"), "link that leaves"),
        (entry("a/b", tarfile.LNKTYPE, "../etc/shadow"), "link that leaves"),
        (entry("a", tarfile.GNUTYPE_SPARSE), "sparse|broken"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_entries_that_have_no_place_in_an_image(bad: tarfile.TarInfo, said: str) -> None:
    content = tar_with(bad, format=tarfile.GNU_FORMAT)
    with pytest.raises(ImageRefused, match=said):
        inspect(content)
    # In a layer they have none either.
    with pytest.raises(ImageRefused, match=said):
        inspect(tar_of(docker_archive(content)))
    with pytest.raises(ImageRefused, match=said):
        inspect(tar_of(oci_archive(content)))


def test_links_inside_are_links() -> None:
    links = [
        entry("bin/sh", tarfile.SYMTYPE, "/bin/busybox"),
        entry("usr/lib/x", tarfile.SYMTYPE, "../../lib/x"),
        entry("bin/ls", tarfile.LNKTYPE, "bin/run"),
    ]
    assert inspect(tar_with(*links)).format == "rootfs-tar"


def test_archive_of_an_image_has_no_absolute_links() -> None:
    made = io.BytesIO(tar_of(docker_archive(LAYER)))
    with tarfile.open(fileobj=made, mode="a") as archive:
        archive.addfile(entry("x.json", tarfile.SYMTYPE, "/etc/shadow"))
    with pytest.raises(ImageRefused, match="leaves the archive"):
        inspect(made.getvalue())


def test_cut_at_any_byte_is_no_archive() -> None:
    """Up to the mark of its end; what comes after that is padding."""
    whole = tar_of(docker_archive(LAYER))
    end = len(whole.rstrip(b"\0")) + 512
    for packed, most in ((whole, end), (gzip.compress(whole), len(gzip.compress(whole)))):
        for cut in [*range(0, most - 512, 397), most - 513, most - 520]:
            with pytest.raises(ImageRefused):
                inspect(packed[:cut])


@pytest.mark.parametrize("at", [300, 600, 1100, 3000])
def test_damage_is_noticed(at: int) -> None:
    whole = bytearray(tar_of(docker_archive(LAYER)))
    whole[at] ^= 0xFF
    with pytest.raises(ImageRefused):
        inspect(bytes(whole))


class Zeros:
    """A stream of zeros behind a beginning."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head, self._left = head, size

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        piece = bytes(min(size, self._left))
        self._left -= len(piece)
        return piece


def big_file(size: int) -> bytes:
    made = tarfile.TarInfo("big")
    made.size = size
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_bomb_by_ratio(pack: Callable[[bytes], bytes]) -> None:
    size = 200 << 20
    bomb = pack(big_file(size) + bytes(size) + bytes(1024))
    assert len(bomb) < 1 << 20
    with pytest.raises(ImageRefused, match="bomb"):
        inspect(bomb)


def test_bomb_in_a_layer() -> None:
    size = 200 << 20
    with pytest.raises(ImageRefused, match="bomb"):
        inspect(tar_of(oci_archive(big_file(size) + bytes(size) + bytes(1024))))


def test_bomb_by_size() -> None:
    with pytest.raises(ImageRefused, match="unpacks to more than 1000000 bytes"):
        inspect(gzip.compress(big_file(1 << 21) + bytes((1 << 21) + 1024)), Limits(unpacked_bytes=10**6))


def test_header_that_is_said_to_be_huge_takes_no_memory() -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        header = entry("a", kind)
        header.size = 4 << 30
        tracemalloc.start()
        try:
            with pytest.raises(ImageRefused, match="header of"):
                inspect(Zeros(header.tobuf(tarfile.GNU_FORMAT), 4 << 30))
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()


def test_large_archive_takes_little_memory() -> None:
    size = 512 << 20
    tracemalloc.start()
    try:
        found = inspect(Zeros(big_file(size), size + 1024))
        assert found.size_bytes == size + 1536
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (docker_archive(LAYER, Layers=["gone/layer.tar"]), "layers are not|missing"),
        (docker_archive(LAYER, Config="gone.json"), "missing"),
        (docker_archive(LAYER) | {"manifest.json": b"[]"}, "one image"),
        (docker_archive(LAYER) | {"manifest.json": b"[" * 10_000}, "not JSON"),
        ({"manifest.json": b'[{"Config": 5}]'}, "expected Config"),
        (oci_archive(LAYER) | {"index.json": b'{"manifests": []}'}, "0 images"),
        ({"oci-layout": b"{}", "index.json": b"{}"}, "config and layers"),
    ],
)
def test_manifest_that_does_not_fit(files: dict[str, bytes], said: str) -> None:
    with pytest.raises(ImageRefused, match=said):
        inspect(tar_of(files))


def test_layer_that_is_another_than_the_configuration_says() -> None:
    files = docker_archive(LAYER)
    (name,) = (name for name in files if name.endswith("layer.tar"))
    with pytest.raises(ImageRefused, match="digest"):
        inspect(tar_of(files | {name: tar_of({"bin/run": b"evil"})}))


def test_blob_that_has_not_the_digest_of_its_name() -> None:
    files = oci_archive(LAYER)
    name = max(files, key=lambda name: files[name].startswith(b"\x1f\x8b"))
    with pytest.raises(ImageRefused, match="digest"):
        inspect(tar_of(files | {name: gzip.compress(LAYER, 1)}))


def qcow2(version: int = 3, backing: int = 0, encryption: int = 0, features: int = 0, size: int = 1 << 30) -> bytes:
    head = struct.pack(">4sIQIIQII", b"QFI\xfb", version, backing, 0, 16, size, encryption, 1)
    return head.ljust(72, b"\0") + struct.pack(">QQQII", features, 0, 0, 4, 104) + bytes(2000)


def test_qcow2() -> None:
    assert inspect(qcow2()).format == "qcow2"
    assert inspect(qcow2(version=2)).format == "qcow2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (qcow2(backing=512), "backing file"),
        (qcow2(features=4), "another file"),
        (qcow2(features=2), "damaged"),
        (qcow2(encryption=1), "encrypted"),
        (qcow2(version=9), "version 9"),
        (qcow2(size=1 << 50), "more than"),
        (qcow2()[:104] + struct.pack(">II", 0x44415441, 4) + b"/etc" + bytes(4), "another file"),
        (qcow2()[:50], "cut off"),
        (b"", "neither"),
        (b"MZ" + bytes(5000), "neither"),
        (b"\xfd7zXZ\x00" + bytes(5000), "compressed with xz"),
        (b"\x1f\x8b" + bytes(5000), "broken"),
        (b"\x28\xb5\x2f\xfd" + bytes(5000), "broken|neither"),
    ],
)
def test_what_is_no_image(content: bytes, said: str) -> None:
    with pytest.raises(ImageRefused, match=said):
        inspect(content)


def test_look_that_is_called_off() -> None:
    def cancelled(count: int) -> None:
        if count > 1 << 20:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        Inspection(LIMITS, cancelled).run(Zeros(big_file(1 << 40), 1 << 40))


def header(kind: bytes, content: bytes) -> bytes:
    """One that says something of the next."""
    made = tarfile.TarInfo("x")
    made.type, made.size = kind, len(content)
    return made.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def pax(keyword: str, value: str) -> bytes:
    """One record of an extended header."""
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


FILE, END = entry("bin/run").tobuf(tarfile.USTAR_FORMAT), bytes(1024)


@pytest.mark.parametrize("size", ["-1536", "", "1_0", "+1", "\u0661"])
def test_size_that_is_none_ends_the_look(size: str) -> None:
    """A negative one would lead back to where its reader was, for ever."""
    content = FILE + header(tarfile.XHDTYPE, pax("size", size)) + FILE + END
    with pytest.raises(ImageRefused, match="no size"):
        inspect(content)


def test_headers_inside_headers_are_counted() -> None:
    content = header(tarfile.GNUTYPE_LONGNAME, b"a\0") * 300 + FILE + END
    with pytest.raises(ImageRefused, match="headers for one entry"):
        inspect(content)
    assert inspect(header(tarfile.XHDTYPE, pax("path", "bin/x")) + FILE + END).format == "rootfs-tar"


def test_long_names_and_sizes_of_extended_headers_count() -> None:
    made = io.BytesIO()
    name, content = f"{'folder/' * 40}file", b"content"
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        one = entry(name)
        one.size, one.pax_headers = len(content), {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}
        archive.addfile(one, io.BytesIO(content))
    assert inspect(made.getvalue()).format == "rootfs-tar"
    bad = header(tarfile.XHDTYPE, pax("path", "../x")) + FILE + END
    with pytest.raises(ImageRefused, match="leaves the archive"):
        inspect(bad)
    with pytest.raises(ImageRefused, match="absolute"):
        inspect(header(tarfile.XHDTYPE, pax("path", "/")) + FILE + END)


@pytest.mark.parametrize("record", [b"2 " * 8192 + b"=", b"9 a=b\n", b"0 a=b\n", b"x", b"6 a=bc"])
def test_extended_header_that_cannot_be_read(record: bytes) -> None:
    """The first makes a lenient reader keep 64 MiB, out of 16 KiB."""
    tracemalloc.start()
    try:
        with pytest.raises(ImageRefused, match="pax header"):
            inspect(header(tarfile.XHDTYPE, record) + FILE + END)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class Pieces:
    """A stream of pieces that are made when they are read."""

    def __init__(self, pieces: Any) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int = -1, /) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        read, self._rest = self._rest[:size], self._rest[size:]
        return read


def test_many_headers_take_no_memory() -> None:
    """Of all entries, and names: some 10 MiB of each."""

    def globals_() -> Any:
        said = b"".join(pax(f"####.{at}", "") for at in range(4000))
        for number in range(500):
            yield header(tarfile.XGLTYPE, said.replace(b"####", b"%04d" % number)) + entry(f"f{number}").tobuf(
                tarfile.USTAR_FORMAT
            )
        yield END

    def names() -> Any:
        for number in range(3000):
            name = f"{number:08d}{'a' * 3800}.tar".encode() + b"\0"
            yield header(tarfile.GNUTYPE_LONGNAME, name) + FILE
        yield END

    for pieces in (globals_(), names()):
        tracemalloc.start()
        try:
            assert inspect(Pieces(pieces)).format == "rootfs-tar"
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_many_names_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may have any number of files that are called like layers."""
    monkeypatch.setattr(archives, "MOST_FILES", 1000)

    def names() -> Any:
        for number in range(20_000):
            yield entry(f"{number:090d}.tar").tobuf(tarfile.USTAR_FORMAT)
        yield END

    tracemalloc.start()
    try:
        assert inspect(Pieces(names())).format == "rootfs-tar"
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_name_that_is_too_long() -> None:
    with pytest.raises(ImageRefused, match="4096 characters"):
        inspect(header(tarfile.GNUTYPE_LONGNAME, b"a" * 5000 + b"\0") + FILE + END)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_what_ends_early_is_said_to(pack: Callable[[bytes], bytes]) -> None:
    whole = pack(tar_of(ROOT | {"random": os.urandom(200_000)}))
    with pytest.raises(ImageRefused, match=r"ends early|unexpected end"):
        inspect(whole[: len(whole) // 2])


def test_gzip_with_a_name_without_end_is_read_quickly() -> None:
    """Byte by byte, as the standard library's reader does, it would take half a minute."""
    pieces = iter([b"\x1f\x8b\x08\x08AAAA\x02\x03", *[b"n" * (1 << 20)] * 64])
    counted = packing.Watched(Pieces(pieces), lambda _: None)
    began = time.process_time()
    with pytest.raises(ImageRefused, match="cut off"):
        inspect(counted)
    assert counted.count > 64 << 20
    assert time.process_time() - began < 4


def test_gzip_of_several_parts_and_padding() -> None:
    content = tar_of(ROOT)
    packed = b"".join(gzip.compress(content[at : at + 1000]) for at in range(0, len(content), 1000))
    for padding in (b"", bytes(100_000)):
        assert inspect(packed + padding).format == "rootfs-tar"
        read = packing.unpacked(packing.Watched(io.BytesIO(packed + padding), lambda _: None))
        assert b"".join(iter(partial(read.read, 777), b"")) == content
    with pytest.raises(ImageRefused, match="broken"):
        inspect(packed + b"rest")
    with pytest.raises(ImageRefused, match="broken"):
        inspect(packed[:-1])
    with pytest.raises(ImageRefused, match="broken"):
        inspect(packed[:-8] + bytes(8))


def test_gzip_of_what_packs_well_comes_in_pieces() -> None:
    read = packing.unpacked(packing.Watched(io.BytesIO(gzip.compress(bytes(64 << 20))), lambda _: None))
    sizes = [len(piece) for piece in iter(lambda: read.read(1 << 20), b"")]
    assert (sum(sizes), max(sizes)) == (64 << 20, 1 << 20)


def test_zstd_that_needs_much_memory() -> None:
    options = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=options).compressobj()
    large = packed.compress(tar_of(ROOT)) + packed.flush()
    with pytest.raises(ImageRefused, match="8 MiB"):
        inspect(large)
    with pytest.raises(ImageRefused, match="8 MiB"):
        inspect(tar_of(oci_archive(LAYER, pack=lambda _: large)))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_packed_qcow2(pack: Callable[[bytes], bytes]) -> None:
    assert inspect(pack(qcow2())).format == "qcow2"
    with pytest.raises(ImageRefused, match="backing file"):
        inspect(pack(qcow2(backing=512)))


def files_of(folder: Path, content: bytes) -> dict[str, bytes]:
    """What an agent would load into its engine of this file."""
    path = folder / "packed"
    path.write_bytes(content)
    with plain(path, folder / "incoming", never) as tar:
        loaded = b"".join(renamed(tar, "ours:1", never))
    with tarfile.open(fileobj=io.BytesIO(loaded)) as archive:
        return {name: file.read() for name in archive.getnames() if (file := archive.extractfile(name))}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("files", [docker_archive(LAYER), oci_archive(LAYER)], ids=["docker", "oci"])
def test_agent_takes_what_was_judged(tmp_path: Path, files: dict[str, bytes], pack: Callable[[bytes], bytes]) -> None:
    judged = inspect(pack(tar_of(files))).contents
    assert judged is not None
    loaded = files_of(tmp_path, pack(tar_of(files)))
    (manifest,) = json.loads(loaded.pop("manifest.json"))
    assert manifest == {"Config": judged.config, "RepoTags": ["ours:1"], "Layers": judged.layers}
    assert loaded == {name: files[name] for name in (judged.config, *judged.layers)}
    assert list((tmp_path / "incoming").iterdir()) == []


def test_file_that_looks_like_tar_and_gzip_is_the_same_to_both(tmp_path: Path) -> None:
    """Its first bytes are a gzip head, in which there is a tar header, and behind it the beginning of another tar."""
    other = header(tarfile.XHDTYPE, pax("size", "-1536")) + FILE
    name = b"\x1f\x8b\x08\x04AAAA\x02\x03" + struct.pack("<H", 500 + len(other))
    first = bytearray(entry("a").tobuf(tarfile.USTAR_FORMAT))
    first[: len(name)] = name
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    good = tar_of(docker_archive(LAYER))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = deflate.compress(good) + deflate.flush() + struct.pack("<II", zlib.crc32(good), len(good))
    content = bytes(first) + other + tail
    judged = inspect(content)
    assert judged.format == "docker-archive"
    path = tmp_path / "packed"
    path.write_bytes(content)
    with plain(path, tmp_path / "incoming", never) as tar:
        assert contents_of(tar, never) == judged.contents
        assert tar.seek(0) == 0
        assert tar.read() == good


def test_file_that_is_there_twice_and_differs_is_refused_by_both(tmp_path: Path) -> None:
    files = docker_archive(LAYER)
    for name, content in (("manifest.json", b"[{}]"), ("./manifest.json", b"not even JSON")):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            for one, data in [*files.items(), (name, content)]:
                info = tarfile.TarInfo(one)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        with pytest.raises(ImageRefused, match="more than once"):
            inspect(made.getvalue())
        with pytest.raises(ImageRefused, match="more than once"):
            files_of(tmp_path, made.getvalue())


def test_agent_holds_few_documents(tmp_path: Path) -> None:
    document = b"{" + b" " * ((1 << 20) - 1)
    content = tar_of(docker_archive(LAYER) | {f"{number}.json": document for number in range(60)})
    path = tmp_path / "packed"
    path.write_bytes(content)
    del content
    with path.open("rb") as tar:
        tracemalloc.start()
        try:
            assert contents_of(tar, never).format == "docker-archive"
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


def test_agent_that_reads_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    path.write_bytes(tar_of(docker_archive(LAYER)))
    with path.open("rb") as tar, pytest.raises(Cancelled):
        contents_of(tar, lambda: True)
