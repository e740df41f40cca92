"""Trees of sessions on a real disk: overlays that outlive their agent, copies where there are none, nothing left."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from drivers import session_trees
from drivers.machines import Cancelled
from drivers.mounts import unmount, unmount_below
from drivers.session_trees import SessionTrees, base_of
from model.errors import EngineRefused, EngineUnavailable, NotFound
from model.sessions import SessionTree
from tests.drivers.conftest import never

pytestmark = pytest.mark.engine
KINDS = [True, False]


def digest(folder: Path) -> str:
    """Of all names, kinds, permissions and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.lstat().st_mode}".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().replace("\\134", "\\").splitlines()
    return [line for line in lines if f"{folder}/" in line.partition(" - ")[0]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of trees; one whose name overlays take for more than one."""
    made = tmp_path / "trees:a,b\\c"
    made.mkdir()
    yield made
    for session in SessionTrees(made).found():
        SessionTrees(made).remove(session)
    assert not mounts(tmp_path)


def workspace(folder: Path, commit: str = "1" * 40) -> SessionTree:
    tree = SessionTree(session=uuid4(), workspace=uuid4(), commit=commit)
    base = base_of(folder, tree.workspace, commit)
    (base / "src").mkdir(parents=True)
    (base / "README").write_text("base")
    (base / "src" / "run").write_text("#!/bin/sh")
    (base / "src" / "run").chmod(0o755)
    return tree


@pytest.mark.parametrize("overlay", KINDS, ids=["overlay", "copy"])
def test_changes_stay_whatever_is_repeated_and_the_base_is_as_it_was(folder: Path, overlay: bool) -> None:
    trees, tree = SessionTrees(folder, overlay=overlay), workspace(folder)
    base = base_of(folder, tree.workspace, tree.commit)
    before = digest(base)
    merged = trees.prepare(tree, never)
    assert os.path.ismount(merged) is overlay
    (merged / "README").write_text("changed")
    (merged / "src").rename(merged / "lib")
    (merged / "new").write_text("new")
    changed = digest(merged)
    assert trees.prepare(tree, never) == merged == trees.mount(tree.session)
    # The host starts again: nothing is mounted, all is there.
    unmount(merged)
    SessionTrees(folder).mount_all()
    assert digest(merged) == changed and digest(base) == before
    assert len(mounts(folder)) == (1 if overlay else 0)
    unmount_below(folder)
    assert not mounts(folder) and trees.mount(tree.session) == merged
    with pytest.raises(EngineRefused):
        trees.prepare(tree.model_copy(update={"workspace": workspace(folder).workspace}), never)
    held = (merged / "new").open()
    trees.remove(tree.session)
    trees.remove(tree.session)
    assert held.read() == "new" and not (folder / "sessions" / str(tree.session)).exists() and not mounts(folder)
    held.close()
    with pytest.raises(NotFound):
        trees.mount(tree.session)
    assert digest(base) == before


def test_a_session_of_what_is_not_here_is_refused_and_leaves_nothing(folder: Path) -> None:
    trees, tree = SessionTrees(folder), workspace(folder)
    with pytest.raises(NotFound):
        trees.prepare(tree.model_copy(update={"commit": "2" * 40}), never)
    assert trees.found() == []


def test_what_died_at_any_point_is_finished_or_removed(folder: Path) -> None:
    """Every order in which a prepare, or a remove, may have stopped."""
    trees = SessionTrees(folder)
    for removed in (False, True):
        for step in range(4):
            tree = workspace(folder)
            made = folder / "sessions" / str(tree.session)
            if step == 0:
                made.mkdir(parents=True)
            else:
                merged = trees.prepare(tree, never)
                (merged / "new").write_text("new")
            if step in (1, 3):  # before its record was written, or after it was taken away
                (made / session_trees.RECORD).unlink()
            if step in (2, 3):
                unmount(made / "merged")
            if removed:
                trees.remove(tree.session)
                assert not made.exists()
                continue
            merged = trees.prepare(tree, never)
            assert (merged / "README").read_text() == "base"
            assert len(mounts(made)) == 1
    assert len(trees.found()) == 4


def test_sixteen_at_once_make_one(folder: Path) -> None:
    trees, tree = SessionTrees(folder), workspace(folder)
    threads = [threading.Thread(target=trees.prepare, args=(tree, never)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mounts(folder)) == 1


def test_a_copy_that_is_called_off_is_made_anew(folder: Path) -> None:
    trees, tree = SessionTrees(folder, overlay=False), workspace(folder)
    shutil.copytree(Path(session_trees.__file__).parent, base_of(folder, tree.workspace, tree.commit) / "lib")
    with pytest.raises(Cancelled):
        trees.prepare(tree, lambda: True)
    merged = trees.prepare(tree, never)
    assert len(list(merged.rglob("*"))) == len(list(base_of(folder, tree.workspace, tree.commit).rglob("*")))


def test_a_mount_that_vanished_below_a_sandbox_is_not_made_twice(folder: Path) -> None:
    trees, tree = SessionTrees(folder), workspace(folder)
    merged = trees.prepare(tree, never)
    # It has the mount in a view of its own, as a container has.
    sandbox = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert sandbox.stdout is not None and sandbox.stdout.read(1)
        unmount(merged)
        with pytest.raises(EngineUnavailable, match="stop the session"):
            trees.mount(tree.session)
        trees.mount_all()
        assert not mounts(folder)
    finally:
        sandbox.kill()
        sandbox.communicate()
    assert (trees.mount(tree.session) / "README").read_text() == "base"


def test_what_was_left_half_made_is_tidied_and_what_is_whole_is_told(folder: Path) -> None:
    trees, tree, old, new = SessionTrees(folder), workspace(folder), uuid4(), uuid4()
    trees.prepare(tree.model_copy(update={"project": UUID(int=7)}), never)
    for half in (old, new):
        (folder / "sessions" / str(half)).mkdir()
    os.utime(folder / "sessions" / str(old), (0, 0))
    trees.tidy()
    assert set(trees.found()) == {tree.session, new}
    # One that was made whole after it was looked at.
    trees.remove(tree.session, unless_whole=True)
    assert trees.held() == [(tree.session, UUID(int=7))]


def test_a_killed_agent_leaves_a_mount_that_the_next_one_finds(folder: Path) -> None:
    tree = workspace(folder)
    script = (
        "import sys, os; from pathlib import Path; from drivers.session_trees import SessionTrees;"
        "from model.sessions import SessionTree; tree = SessionTree.model_validate_json(sys.argv[2]);"
        "merged = SessionTrees(Path(sys.argv[1])).prepare(tree, lambda: False);"
        "(merged / 'new').write_text('new'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder), tree.model_dump_json()], check=False)
    assert killed.returncode == -9
    trees = SessionTrees(folder)
    assert (trees.prepare(tree, never) / "new").read_text() == "new"
    assert len(mounts(folder)) == 1
    assert trees.found() == [UUID(str(tree.session))]
