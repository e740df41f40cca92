"""Trees that are deeper than any path and any stack, and what strangers do to them meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from drivers import deep, trees
from drivers.files import Files
from drivers.machines import Cancelled
from drivers.session_trees import SessionTrees
from drivers.trees import Trees
from model.base import new_id
from model.errors import EngineUnavailable
from tests.drivers.conftest import never

#: More than frames of a stack, more than bytes of a path, and more than descriptors that a process has here.
LEVELS, NAME = 1500, "deeper"


@pytest.fixture(autouse=True)
def gone_afterwards(tmp_path: Path) -> Iterator[None]:
    """Who cleans up after tests could not."""
    yield
    deep.remove(tmp_path)


@pytest.fixture(autouse=True)
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 500), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def nested(folder: Path, levels: int = LEVELS) -> Path:
    """Folders in each other, with a file in each."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT, dir_fd=here))
        os.mkdir(NAME, dir_fd=here)
        below = os.open(NAME, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return folder


def test_what_is_deep_is_measured_and_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = nested(tmp_path / "a")
    assert deep.size_of(folder) == 2 * LEVELS * deep.ENTRY_BYTES, "a file and a folder in each"
    trees.clear(folder)
    assert not folder.exists()
    trees.clear(folder)


def test_a_deep_folder_of_a_session_is_deleted_and_its_tree_removed(tmp_path: Path) -> None:
    trees_of = SessionTrees(tmp_path, overlay=False)
    session = tmp_path / "sessions" / str(new_id())
    (session / "merged" / "a").mkdir(parents=True)
    nested(session / "merged" / "a")
    Files(session / "merged", most_bytes=1).delete("a", recursive=True)
    assert os.listdir(session / "merged") == []
    nested(session / "merged")
    os.utime(session, (0, 0))
    trees_of.tidy()
    assert trees_of.found() == []


def test_one_tree_that_cannot_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SessionTrees(tmp_path, overlay=False)
    for _ in range(3):
        folder = tmp_path / "sessions" / str(new_id())
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    bad, remove = kept.found()[0], kept.remove

    def refusing(session: UUID, *, unless_whole: bool) -> None:
        if session == bad:
            raise RecursionError
        remove(session, unless_whole=unless_whole)

    monkeypatch.setattr(kept, "remove", refusing)
    kept.tidy()
    assert kept.found() == [bad]


def test_a_deep_folder_is_copied_as_far_as_paths_go(tmp_path: Path) -> None:
    kept, source = Trees(tmp_path / "trees", None), tmp_path / "source"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("last", os.O_CREAT, dir_fd=here))
    os.close(here)
    target = kept.make(tmp_path / "target")
    descriptor = os.open(source, os.O_RDONLY)
    kept.copy(descriptor, target, 1000, never)
    os.close(descriptor)
    assert deep.size_of(target) == deep.size_of(source) == 1201 * deep.ENTRY_BYTES
    trees.clear(source)


def test_what_cannot_be_removed_is_said_and_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as readonly:
        readonly.setattr(os, "rmdir", refused)
        with pytest.raises(EngineUnavailable, match="cannot be deleted: Read-only"):
            trees.clear(tmp_path / "a")

    def never_empty(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as filled:
        filled.setattr(os, "rmdir", never_empty)
        with pytest.raises(EngineUnavailable, match="not empty"):
            trees.clear(tmp_path / "a")
    with pytest.raises(Cancelled):
        trees.clear(tmp_path / "a", lambda: True)


def test_who_moves_folders_and_links_meanwhile_gains_nothing(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root):
        folder.mkdir()
    (outside / "precious").write_text("kept")
    (outside / NAME).mkdir()
    (outside / NAME / "precious").write_text("kept")
    stop = threading.Event()

    def attack() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            with contextlib.suppress(OSError):
                one = root / "doomed" / f"d{turn % 5}"
                os.makedirs(one / NAME / "c" / "d", exist_ok=True)
                (one / NAME / "file").touch()
                (one / NAME).rename(root / f"out{turn % 3}")
                (one / NAME).symlink_to(outside)
                (root / f"out{turn % 3}").rename(one / f"back{turn % 4}")

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(8):
            (root / "doomed").mkdir(exist_ok=True)
            late = time.monotonic() + 0.2
            with contextlib.suppress(EngineUnavailable, Cancelled):
                trees.clear(root / "doomed", lambda late=late: time.monotonic() > late)  # type: ignore[misc]
    finally:
        stop.set()
        attacker.join()
    assert (outside / "precious").exists() and (outside / NAME / "precious").exists()
    trees.clear(root / "doomed")
    assert not (root / "doomed").exists()


def test_a_walk_goes_on_where_folders_were_before_one_was_moved(tmp_path: Path) -> None:
    """And never goes up to where it was moved."""
    for name in ("root/a/b/c", "root/z", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    seen = []

    def look(here: int, names: list[str]) -> list[str]:
        seen.append("/".join(names))
        if names == ["a", "b", "c"]:
            (tmp_path / "root" / "a" / "b").rename(tmp_path / "elsewhere" / "b")
        return sorted((name for name, _ in deep.entries(here)), reverse=names == [])

    with deep.opened(tmp_path / "root") as top:
        deep.walk(top, look)
    assert sorted(seen) == ["", "a", "a/b", "a/b/c", "z"]
