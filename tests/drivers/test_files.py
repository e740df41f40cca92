"""Files below a folder, whatever paths say and whatever links do meanwhile."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers import file_archives, file_watch, files, room
from drivers.file_archives import ArchiveOut, unpack
from drivers.file_watch import FileWatch
from drivers.files import PARTIAL, Files
from model.errors import (
    BodyTooLarge,
    CairnError,
    EngineRefused,
    EngineUnavailable,
    InvalidState,
    NotFound,
    ValidationFailed,
)
from tests.services import until

#: Of renameat2(2).
EXCHANGE = 2
#: Paths that lead out, or are written to do so. ``out`` is a link to the folder above.
TRAVERSALS = [
    *("..", "../", "../secret", "../../etc/passwd", "a/../../secret", "a/..", "./../secret", "a/b/../../../secret"),
    *("/", "/etc/passwd", "//etc/passwd", "/proc/self/root/etc/passwd", "///", "a//b", "a/", ".", "./a", "a/./b"),
    *("..\0", "a\0b", "\0", "a/\udcff", "x" * 256, "a/" * 2100 + "a"),
    *("out", "out/secret", "absolute", "absolute/passwd", "chain", "chain/secret", "up/secret", "up"),
    *("loop", "loop/a", "magic", "magic/etc/passwd", "hop/hop/hop/secret"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder beside a secret, with links that lead there."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "merged"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_text("inside")
    links = {
        "out": "..",
        "absolute": "/etc",
        "chain": "out",
        "up": "a/../..",
        "loop": "loop",
        "magic": "/proc/self/root",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "hop").symlink_to("..")
    (root / "stays").symlink_to("a/file")
    return root


@pytest.fixture
def kept(root: Path) -> Files:
    return Files(root, most_bytes=1 << 20)


def everything(folder: Path) -> str:
    """A digest over the names, kinds and contents of all there is."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.lstat().st_mode} {path.lstat().st_mtime_ns}".encode())
        found.update(os.readlink(path).encode() if path.is_symlink() else b"")
        found.update(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
    return found.hexdigest()


def content(kept: Files, path: str, offset: int = 0, length: int | None = None) -> bytes:
    found = kept.read(path, offset, length)
    try:
        return b"".join(found)
    finally:
        found.close()


@pytest.mark.parametrize("path", TRAVERSALS, ids=lambda path: ascii(path)[:40])
def test_what_leads_out_is_refused_and_changes_nothing(kept: Files, root: Path, path: str) -> None:
    before = everything(root.parent)
    archive = packed({"new": b"new"})
    tries = {
        "read": lambda: content(kept, path),
        "list": lambda: kept.list(path),
        "write below": lambda: kept.write(f"{path}/new", [b"new"]),
        "mkdir below": lambda: kept.mkdir(f"{path}/new/er"),
        "delete below": lambda: kept.delete(f"{path}/secret", recursive=True),
        "move out": lambda: kept.move("a/file", f"{path}/new"),
        "move in": lambda: kept.move(f"{path}/secret", "a/new"),
        "archive": lambda: b"".join(ArchiveOut(kept, path)),
        "unpack": lambda: unpack(kept, path, [archive]),
        "watch": lambda: FileWatch(kept, path),
    }
    for name, attempt in tries.items():
        with pytest.raises((ValidationFailed, NotFound, InvalidState)):
            attempt()
            pytest.fail(f"{name} went through")
    assert everything(root.parent) == before


def test_files_are_written_whole_read_in_parts_moved_and_deleted(kept: Files, root: Path) -> None:
    body = os.urandom(700_000)
    written = kept.write("new/deep/data.bin", [body[:5], body[5:]])
    assert (written.type, written.size, written.mode, written.path) == ("file", len(body), "644", "new/deep/data.bin")
    assert content(kept, "new/deep/data.bin") == body
    assert content(kept, "new/deep/data.bin", 699_990, 100) == body[699_990:]
    assert content(kept, "stays") == b"inside"
    (root / "new" / "run").write_text("#!")
    (root / "new" / "run").chmod(0o755)
    os.chown(root / "new" / "run", 1234, 1234)
    assert kept.write("new/run", [b"#!/bin/sh"]).mode == "755"
    assert (root / "new" / "run").stat().st_uid == 1234
    # A link is replaced: what it leads to stays as it is.
    kept.write("stays", [b"file now"])
    assert (root / "a" / "file").read_text() == "inside" and not (root / "stays").is_symlink()
    with pytest.raises(InvalidState):
        kept.move("new/run", "stays")
    assert kept.move("new/run", "stays", replace=True).size == 9
    with pytest.raises(InvalidState):
        kept.move("new", "new/deep/er")
    assert kept.move("new", "moved/here").type == "folder"
    with pytest.raises(InvalidState, match="recursive=true"):
        kept.delete("moved")
    kept.delete("moved", recursive=True)
    kept.delete("out")
    assert (root.parent / "secret").exists() and not (root / "moved").exists()
    names = [entry.name for entry in kept.list("").entries]
    assert names == ["a", "absolute", "chain", "hop", "loop", "magic", "stays", "up"]
    assert kept.entry("up").target == "a/../.."
    assert kept.mkdir("a").type == "folder"
    for path in ("a/file", "a/file/below"):
        with pytest.raises((InvalidState, NotFound)):
            kept.mkdir(path)
    for act in (lambda: kept.delete(""), lambda: kept.write("", []), lambda: kept.move("a", "")):
        with pytest.raises(InvalidState):
            act()


def test_what_is_cut_off_or_too_large_leaves_the_file_before(kept: Files, root: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise EngineUnavailable("broken off")

    before = everything(root)
    with pytest.raises(EngineUnavailable):
        kept.write("a/file", broken())
    with pytest.raises(BodyTooLarge):
        kept.write("a/file", [b"x" * (1 << 20), b"x"])
    with pytest.raises(BodyTooLarge):
        unpack(kept, "", [packed({"large": b"x" * ((1 << 20) + 1)})])
    assert content(kept, "a/file") == b"inside"
    assert not list(root.rglob(f"{PARTIAL}*"))
    assert everything(root) == before or (root / "a" / "file").read_text() == "inside"


def test_what_is_no_plain_file_is_not_opened(kept: Files, root: Path) -> None:
    os.mkfifo(root / "pipe")
    os.mknod(root / "null", 0o666 | 0o020000, os.makedev(1, 3))
    for path in ("pipe", "null", "a"):
        with pytest.raises(InvalidState):
            content(kept, path)
    # In an archive of all there is they are left out, and nothing waits for them.
    with tarfile.open(fileobj=io.BytesIO(b"".join(ArchiveOut(kept, "")))) as archive:
        assert "./a/file" in archive.getnames() and "./pipe" not in archive.getnames()


def test_links_that_change_sides_all_the_time_never_lead_out(kept: Files, root: Path, tmp_path: Path) -> None:
    """A folder that is a link to outside every other moment, while all is tried below it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (root / "swap").mkdir()
    (root / "swap" / "file").write_text("inside")
    (root / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        libc, here = ctypes.CDLL(None), os.open(root, os.O_RDONLY)
        while not stop.is_set():
            libc.renameat2(here, b"swap", here, b"link", EXCHANGE)
        os.close(here)

    swapping = threading.Thread(target=swap)
    swapping.start()
    went, refused = 0, 0
    try:
        for number in range(3000):
            acts = [
                lambda: content(kept, "swap/file") == b"inside",
                lambda: bool(kept.write("swap/new", [b"new"])),
                lambda: bool(kept.mkdir("swap/folder/below")),
                lambda: kept.delete("swap/folder", recursive=True) is None,
                lambda: bool(kept.move("swap/new", "swap/newer", replace=True)),
            ]
            try:
                assert acts[number % len(acts)]()
                went += 1
            except CairnError:
                refused += 1
    finally:
        stop.set()
        swapping.join()
    assert sorted(path.name for path in outside.iterdir()) == ["file"]
    assert (outside / "file").read_text() == "secret"
    assert went > 0 and refused > 0, (went, refused)


def packed(contents: dict[str, bytes], *entries: tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in entries:
            archive.addfile(entry)
    return made.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def test_archives_go_out_and_in_the_same(kept: Files, root: Path, tmp_path: Path) -> None:
    for name in ("out", "absolute", "chain", "up", "loop", "magic", "hop"):
        (root / name).unlink()
    (root / "a" / ("long" * 60)).write_bytes(os.urandom(300_000))
    (root / "a" / "ünïcode").write_text("")
    (root / "a" / "run").touch(mode=0o755)
    other = tmp_path / "other"
    other.mkdir()
    parts = list(ArchiveOut(kept, ""))
    assert unpack(Files(other, most_bytes=1 << 20), "", parts) > 4
    listing = [(path.relative_to(root), path.lstat().st_mode) for path in sorted(root.rglob("*"))]
    assert listing == [(path.relative_to(other), path.lstat().st_mode) for path in sorted(other.rglob("*"))]
    assert (other / "a" / ("long" * 60)).read_bytes() == (root / "a" / ("long" * 60)).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(b"".join(ArchiveOut(kept, "a/file")))) as archive:
        assert archive.getnames() == ["file"]


@pytest.mark.parametrize(
    "archive",
    [
        packed({"../new": b""}),
        packed({"/new": b""}),
        packed({"a/../../new": b""}),
        packed({"out/new": b"new"}),
        packed({}, link("s", "../..")),
        packed({}, link("h", "../secret", tarfile.LNKTYPE)),
        packed({}, link("h", "out/secret", tarfile.LNKTYPE)),
        packed({}, link("d", "..")) + b"",
        packed({}, link("a", "elsewhere")),
        packed({"x": b"x" * 2000})[:1024],
        b"no archive at all" * 100,
        b"",
    ],
)
def test_hostile_archives_change_nothing_outside(kept: Files, root: Path, archive: bytes) -> None:
    before = everything(root.parent)
    with pytest.raises((ValidationFailed, InvalidState, NotFound)):
        unpack(kept, "", [archive])
    assert everything(root.parent) == before


def test_of_a_folder_with_very_many_names_a_part_is_remembered(
    kept: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(f"n{number:03}" for number in range(50))
    for name in names:
        (root / name).touch()
    there = sorted(os.listdir(root))
    whole = b"".join(ArchiveOut(kept, ""))

    def refused(_: object) -> list[str]:
        raise AssertionError("all names at once")

    monkeypatch.setattr(os, "listdir", refused)
    monkeypatch.setattr(files, "MOST_ENTRIES", 5)
    monkeypatch.setattr(file_archives, "MOST_SORTED", 7)
    listed = kept.list("")
    assert ([one.name for one in listed.entries], listed.truncated) == (there[:5], True)
    monkeypatch.setattr(files, "MOST_ENTRIES", len(there))
    assert kept.list("").truncated is False
    with (
        tarfile.open(fileobj=io.BytesIO(b"".join(ArchiveOut(kept, "")))) as parts,
        tarfile.open(fileobj=io.BytesIO(whole)) as one,
    ):
        assert sorted(parts.getnames()) == sorted(one.getnames())
    monkeypatch.setattr(file_watch, "MOST_WATCHED", 20)
    with pytest.raises(ValidationFailed, match="more than 20 files"):
        FileWatch(kept, "")


@pytest.mark.parametrize("short", ["FREE_BYTES", "FREE_FILES"])
def test_nothing_is_written_where_the_disk_is_almost_full(
    kept: Files, root: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    packed = b"".join(ArchiveOut(kept, "a"))
    before = sorted(root.rglob("*"))
    with monkeypatch.context() as full:
        full.setattr(room, short, 1 << 62)
        for write in (lambda: kept.write("new/file", [b"x"]), lambda: unpack(kept, "a", [packed])):
            with pytest.raises(EngineRefused, match="no room for more"):
                write()
    assert sorted(root.rglob("*")) == before
    # It may become full as it is written.
    with monkeypatch.context() as full:
        full.setattr(files, "LOOK_BYTES", 10)

        def body() -> Iterator[bytes]:
            yield b"x" * 11
            full.setattr(room, short, 1 << 62)
            yield b"x"

        with pytest.raises(EngineRefused, match="no room for more"):
            kept.write("a/file", body())
    assert (root / "a" / "file").read_text() == "inside"


def test_a_watch_tells_what_was_made_changed_and_deleted(kept: Files, root: Path) -> None:
    watch = FileWatch(kept, "a", look_seconds=0.02)
    told: list[tuple[str, str]] = []
    watching = threading.Thread(target=lambda: told.extend((one.change, one.path) for one in watch))
    watching.start()
    kept.write("a/new", [b"1"])
    assert until(lambda: ("created", "a/new") in told)
    kept.write("a/new", [b"2"])
    assert until(lambda: ("changed", "a/new") in told)
    kept.delete("a/new")
    kept.write("elsewhere", [b""])
    assert until(lambda: ("deleted", "a/new") in told)
    watch.close()
    watching.join(5)
    assert not watching.is_alive() and {path for _, path in told} == {"a/new"}
    (root / "a" / "file").unlink()
