"""What sessions have changed, seen and committed by real git in real sandboxes, of files that strangers wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import docker
import pytest

from drivers import docker_commits, docker_git, trees
from drivers.docker_workspaces import DockerWorkspaces
from drivers.machines import Cancelled
from drivers.ownership import PREFIX
from drivers.secret_files import SecretFiles
from drivers.session_trees import SessionTrees
from model.errors import EngineRefused, EngineUnavailable, InvalidState, NotFound, WorkspaceTooLarge
from model.sessions import CommitSpec, Difference, SessionTree, TextOf
from model.workspaces import WorkspaceSpec
from tests.drivers.conftest import never
from tests.engines.conftest import image_driver
from tests.git_server import git, git_server
from tests.services import until
from worker import engine, git_image

pytestmark = pytest.mark.engine
PROJECT = UUID(int=7)
BRANCH = trees.BRANCH


class Host:
    """A host with a workspace of a folder, or of a repository."""

    @classmethod
    def again(cls, other: Host, **more: Any) -> Host:
        """The same, as another agent has it."""
        made = cls(other.folder, **more)
        shutil.rmtree(made.secrets, ignore_errors=True)
        return made

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder, self.id = folder, uuid4()
        self.secrets = Path(f"/dev/shm/cairn-test-{uuid4().hex[:12]}")  # noqa: S108 - a name that nobody guesses
        given: dict[str, Any] = {"most_bytes": 1 << 30, "seconds": 120.0, "paths": (str(folder),)}
        self.workspaces = DockerWorkspaces(
            engine.SOCKET,
            installation=uuid4(),
            host_id=self.id,
            root=folder / "trees",
            images=image_driver(folder / "images"),
            image=git_image.IMAGE,
            secrets=SecretFiles(self.secrets, self.id),
            **given | more,
        )
        self.sessions = SessionTrees(folder / "trees")
        self.commits = self.workspaces.commits(self.sessions)

    def workspace(self, **source: Any) -> tuple[UUID, str]:
        spec = WorkspaceSpec(id=uuid4(), project_id=PROJECT, name="shop", **source)
        return spec.id, self.workspaces.bring(spec, None, never).commit

    def session(self, workspace: UUID, commit: str) -> tuple[SessionTree, Path]:
        tree = SessionTree(session=uuid4(), workspace=workspace, commit=commit)
        return tree, self.sessions.prepare(tree, never)

    def repository(self, workspace: UUID) -> Path:
        return self.folder / "trees" / "workspaces" / str(workspace) / "repo.git"

    def base(self, workspace: UUID, commit: str) -> Path:
        return self.repository(workspace).with_name("bases") / commit

    def diff(self, tree: SessionTree, base: str, path: str = "", *, text: TextOf | None = "text") -> Difference:
        return self.commits.diff(tree.session, PROJECT, base, path, text=text, cancelled=never)

    def sandboxes(self) -> list[str]:
        client = docker.APIClient(engine.SOCKET)
        found = client.containers(all=True, filters={"label": [f"{PREFIX}.host={self.id}"]})
        client.close()
        return [one["Names"][0] for one in found]


def spec_of(tree: SessionTree, parent: str, message: str = "Mend it", **more: Any) -> CommitSpec:
    return CommitSpec(
        id=uuid4(), project_id=PROJECT, tree=tree, parent=parent, message=message, at=1_700_000_000, **more
    )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    made = Host(tmp_path)
    yield made
    for session in made.sessions.found():
        made.sessions.remove(session)
    shutil.rmtree(made.secrets, ignore_errors=True)
    assert not made.sandboxes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "src").mkdir(parents=True)
    (folder / "README").write_text("one\ntwo\n")
    (folder / "gone").write_text("gone\n")
    (folder / "src" / "long.py").write_text("".join(f"line {n}\n" for n in range(50)))
    (folder / ".gitignore").write_text("*.o\n")
    return folder


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.is_file():
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found.update(f"{path.relative_to(folder)} {path.lstat().st_mode & 0o100}".encode() + content)
    return found.hexdigest()


def change(merged: Path) -> None:
    """All that can become of a file, as a program in the sandbox does it."""
    (merged / "README").write_text("one\n2\n")
    (merged / "gone").unlink()
    (merged / "src" / "long.py").rename(merged / "src" / "moved.py")
    (merged / "new folder").mkdir(mode=0o700)
    (merged / "new folder" / "für.txt").write_text("secret\n")
    (merged / "new folder" / "für.txt").chmod(0o600)
    (merged / "data.bin").write_bytes(bytes(range(256)) * 10)
    (merged / "run").write_text("#!/bin/sh\n")
    (merged / "run").chmod(0o755)
    (merged / "made.o").write_text("ignored")
    (merged / "out").symlink_to("/etc/passwd")
    os.mkfifo(merged / "pipe")
    # What it says about itself is nothing to us, and nothing of it runs.
    (merged / ".git").mkdir()
    (merged / ".git" / "config").write_text("[core]\n\tfsmonitor = touch /made/evil\n")
    (merged / ".gitattributes").write_text("* filter=evil diff=evil\n")


def test_a_diff_tells_all_that_was_changed_and_changes_nothing(host: Host, source: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    assert host.diff(tree, first) == Difference(base=first, files=[], diff="")
    change(merged)
    (merged / ".gitattributes").unlink()
    git("init", "-q", "nested", at=merged)
    before = digest(merged)
    found = host.diff(tree, first)
    about = {change.path: (change.status, change.additions, change.deletions) for change in found.files}
    assert about == {
        "README": ("modified", 1, 1),
        "gone": ("deleted", 0, 1),
        "src/moved.py": ("renamed", 0, 0),
        "new folder/für.txt": ("added", 1, 0),
        "data.bin": ("added", None, None),
        "run": ("added", 1, 0),
        "out": ("added", 1, 0),
    }
    assert next(change.old_path for change in found.files if change.status == "renamed") == "src/long.py"
    assert found.diff is not None and "-two\n+2\n" in found.diff and "+secret\n" in found.diff
    assert not found.truncated and digest(merged) == before
    part = host.diff(tree, first, "new folder", text=None)
    assert ([change.path for change in part.files], part.diff) == (["new folder/für.txt"], None)
    # More than is shown is cut at a line.
    (merged / "large").write_text("0123456789\n" * 200_000)
    found = host.diff(tree, first)
    assert found.truncated and found.diff is not None and found.diff.endswith("\n")
    assert docker_commits.MOST_TEXT - 100 < len(found.diff) <= docker_commits.MOST_TEXT
    with pytest.raises(EngineRefused, match="could not be seen"):
        host.diff(tree, "f" * 40)


def test_a_whole_diff_is_what_git_apply_takes(host: Host, source: Path, tmp_path: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    change(merged)
    (merged / ".gitattributes").unlink()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(source, elsewhere, symlinks=True)
    git("init", "-q", at=elsewhere)
    found = host.diff(tree, first, text="binary")
    assert found.diff is not None and not found.truncated
    (tmp_path / "patch").write_text(found.diff)
    git("apply", str(tmp_path / "patch"), at=elsewhere)
    shutil.rmtree(elsewhere / ".git")
    shutil.rmtree(merged / ".git")
    (merged / "made.o").unlink()
    assert digest(elsewhere) == digest(merged)
    # What JSON cannot hold is not replaced by something else.
    (merged / "latin").write_bytes("für\n".encode("latin-1"))
    assert "+f�r\n" in (host.diff(tree, first).diff or "")
    with pytest.raises(InvalidState, match=r"^latin is text that is not UTF-8"):
        host.diff(tree, first, text="binary")
    (merged / "latin").unlink()
    # Git would read all of it before it writes any.
    with (merged / "huge").open("wb") as file:
        file.truncate(docker_commits.MOST_BINARY + 1)
    with pytest.raises(InvalidState, match=r"^huge has 64 MiB"):
        host.diff(tree, first, text="binary")
    (merged / "huge").unlink()


@pytest.mark.parametrize("committed", [False, True])
def test_a_patch_without_the_files_of_a_repository_is_none(host: Host, source: Path, committed: bool) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    (merged / "README").write_text("one\n2\n")
    git("init", "-q", "nested", at=merged)
    (merged / "nested" / "file").write_text("all of it\n")
    if committed:
        git("add", "file", at=merged / "nested")
        git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "one", at=merged / "nested")
    with pytest.raises(InvalidState, match=r"^nested") as refused:
        host.diff(tree, first, text="binary")
    assert refused.value.details == {"state": "not_in_a_patch"}
    for path in ("nested", "nested/file"):
        with pytest.raises(InvalidState, match=r"^nested is a repository of its own"):
            host.diff(tree, first, path, text="binary")
    # Nor is it in a commit, which is not made without it; what is ignored is in none.
    with pytest.raises(InvalidState, match=r"^nested is a repository of its own"):
        host.commits.write(spec_of(tree, first), never)
    part = host.diff(tree, first, "README", text="binary")
    assert part.diff is not None and "+2\n" in part.diff and not part.truncated
    assert "README" in {one.path for one in host.diff(tree, first).files}
    (merged / ".gitignore").write_text("nested\n")
    assert host.commits.write(spec_of(tree, first), never)


def test_what_comes_and_goes_meanwhile_is_no_reason_to_refuse(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    others, number = docker_commits._others, iter(range(100))

    def busy(*asked: Any) -> set[str]:
        (merged / f"temporary-{next(number)}").write_text("for a moment\n")
        return others(*asked)

    monkeypatch.setattr(docker_commits, "_others", busy)
    assert "temporary-0" in (host.diff(tree, first, text="binary").diff or "")
    assert host.commits.write(spec_of(tree, first), never)


@pytest.mark.parametrize("committed", [False, True])
def test_files_in_the_place_of_a_submodule_are_not_lost(tmp_path: Path, committed: bool) -> None:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    with git_server() as server:
        server.repository("outer", {"README": b"one\n", "src/a": b"a\n"})
        work = server.folder / "work" / "open" / "outer"
        git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},src/sub", at=work)
        git("commit", "-qm", "with a submodule", at=work)
        server.push("outer", "main")
        loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
        host = Host(tmp_path, networks=loopback, authorities=server.certificate.read_bytes())
        workspace, first = host.workspace(git_url=server.url("outer"))
        tree, merged = host.session(workspace, first)
    place = merged / "src" / "sub"
    try:
        (merged / "README").write_text("2\n")
        assert host.diff(tree, first, text="binary").diff and list(place.iterdir()) == []
        # Nothing is lost of what would be in no commit anywhere.
        (merged / ".gitignore").write_text("build/\n")
        (place / "build").mkdir()
        (place / "build" / "made.o").write_bytes(b"made")
        assert host.diff(tree, first, text="binary").diff
        (place / "new.py").write_text("print()\n")
        if committed:
            git("init", "-q", at=place)
            git("add", "new.py", at=place)
            git("commit", "-qm", "one", at=place)
        for path in ("", "src", "src/sub", "src/sub/new.py"):
            with pytest.raises(InvalidState, match=r"^src/sub is the place of a submodule"):
                host.diff(tree, first, path, text="binary")
        with pytest.raises(InvalidState, match=r"^src/sub is the place of a submodule"):
            host.commits.write(spec_of(tree, first), never)
        assert host.diff(tree, first, "README", text="binary").diff
    finally:
        host.sessions.remove(tree.session)
        shutil.rmtree(host.secrets, ignore_errors=True)


@pytest.mark.parametrize("overlay", [True, False])
def test_files_of_a_submodule_that_was_brought_are_not_lost(
    tmp_path: Path, overlay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    with git_server() as server:
        server.repository("inner", {"f": b"one\n", ".gitignore": b"*.o\n"})
        server.repository("outer", {"README": b"one\n"})
        work = server.folder / "work" / "open" / "outer"
        git("submodule", "add", "-q", str(server.folder / "open" / "inner.git"), 'a "sub"', at=work)
        git("config", "-f", ".gitmodules", 'submodule.a "sub".url', "../inner.git", at=work)
        git("commit", "-qam", "with a submodule", at=work)
        server.push("outer", "main")
        loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
        host = Host(tmp_path, networks=loopback, authorities=server.certificate.read_bytes())
        if not overlay:
            monkeypatch.setattr(host.sessions, "_overlay", False)
        workspace, first = host.workspace(git_url=server.url("outer"), submodules=True)
        tree, merged = host.session(workspace, first)
    place = merged / 'a "sub"'
    try:
        (merged / "README").write_text("2\n")
        (place / "made.o").write_bytes(b"made")
        assert "+2\n" in (host.diff(tree, first, text="binary").diff or "")
        (place / "f").write_text("two\n")
        with pytest.raises(InvalidState, match=r"^a .sub. is the place of a submodule"):
            host.diff(tree, first, text="binary")
        (place / "f").unlink()
        with pytest.raises(InvalidState, match=r"^a .sub. is the place of a submodule"):
            host.diff(tree, first, 'a "sub"/f', text="binary")
    finally:
        host.sessions.remove(tree.session)
        shutil.rmtree(host.secrets, ignore_errors=True)


def test_a_diff_of_nothing_there(host: Host, source: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, _ = host.session(workspace, first)
    with pytest.raises(NotFound):
        host.diff(tree.model_copy(update={"session": uuid4()}), first)


def test_a_commit_is_the_session_s_files_and_the_same_one_however_often_it_is_written(host: Host, source: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    other, _ = host.session(workspace, first)
    repository = host.repository(workspace)
    unchanged = spec_of(tree, first)
    assert host.commits.write(unchanged, never) is None
    assert not (repository.with_name("commits")).exists()
    change(merged)
    spec = spec_of(tree, first, "Mend it\n\nAll of it.", author="Ada Lovelace <ada@example.org>")
    commit = host.commits.write(spec, never)
    assert commit is not None
    # Its agent died, or its answer was lost; and the session goes on meanwhile.
    (merged / "later").write_text("later\n")
    assert host.commits.write(spec, never) == commit
    shutil.rmtree(host.base(workspace, commit))
    assert host.commits.write(spec, never) == commit
    assert git("rev-parse", BRANCH, at=repository) == first, "it counts when it is published"
    for _ in range(2):
        host.commits.publish(spec, commit, never)
    assert git("rev-parse", BRANCH, f"refs/sessions/{tree.session}", at=repository).split() == [commit, commit]
    assert sorted(path.name for path in repository.parent.iterdir()) == ["bases", "project", "repo.git"]
    shown = git("log", "-1", "--format=%P|%an|%ae|%cn|%at|%B", commit, at=repository)
    assert shown.strip() == f"{first}|Ada Lovelace|ada@example.org|Cairn|1700000000|Mend it\n\nAll of it."
    git("fsck", "--strict", at=repository)
    # New sessions begin with what was committed: all but what is ignored, and no file of git.
    base = host.base(workspace, commit)
    for extra in ("later", "made.o", "pipe"):
        (merged / extra).unlink()
    shutil.rmtree(merged / ".git")
    assert digest(base) == digest(merged)
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    assert {path.lstat().st_uid for path in [*base.rglob("*"), *repository.rglob("*")]} == {user}
    assert host.diff(tree, commit) == Difference(base=commit, files=[], diff="")
    # The next one follows; another session's is another, though it were the same.
    (merged / "second").write_text("second\n")
    second = spec_of(tree, commit)
    latest = host.commits.write(second, never)
    assert latest is not None
    host.commits.publish(second, latest, never)
    assert git("log", "--format=%H", BRANCH, at=repository).split() == [latest, commit, first]
    (host.sessions.merged(other.session) / "second").write_text("second\n")
    apart = host.commits.write(spec_of(other, first), never)
    assert apart not in (None, latest) and host.base(workspace, str(apart)).is_dir()


def test_what_is_called_off_leaves_nothing_and_what_it_cannot_do_says_why(host: Host, source: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    (merged / "new").write_text("new")
    spec = spec_of(tree, first)
    with pytest.raises(Cancelled):
        host.commits.write(spec, lambda: True)
    commit = host.commits.write(spec, never)
    assert commit is not None and host.base(workspace, commit).is_dir()
    for _ in range(2):
        host.commits.discard(spec, never)
        assert [path.name for path in host.base(workspace, first).parent.iterdir()] == [first]
        assert not host.repository(workspace).with_name("commits").exists()
    git("init", "-q", "nested", at=merged)
    with pytest.raises(InvalidState, match=r"^nested is a repository of its own"):
        host.commits.write(spec, never)
    with pytest.raises(NotFound):
        host.commits.write(spec_of(tree.model_copy(update={"session": uuid4()}), first), never)


def test_a_shallow_workspace_can_be_committed_to(tmp_path: Path) -> None:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    with git_server() as server:
        server.repository("deep", {"a": b"1"})
        server.commit("deep", {"a": b"2"})
        server.push("deep", "main")
        loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
        host = Host(tmp_path, networks=loopback, authorities=server.certificate.read_bytes())
        workspace, first = host.workspace(git_url=server.url("deep"), depth=1)
        tree, merged = host.session(workspace, first)
        try:
            (merged / "a").write_text("3")
            spec = spec_of(tree, first)
            commit = host.commits.write(spec, never)
            assert commit is not None
            host.commits.publish(spec, commit, never)
            assert git("log", "--format=%H", BRANCH, at=host.repository(workspace)).split() == [commit, first]
            assert (host.base(workspace, commit) / "a").read_text() == "3"
        finally:
            host.sessions.remove(tree.session)
            shutil.rmtree(host.secrets, ignore_errors=True)


def test_files_of_commits_that_were_left_go_once_no_session_is_made_of_them(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "big").write_bytes(os.urandom(1 << 20))
    workspace, first = host.workspace(path=str(source))
    host = Host.again(host, most_bytes=9 << 20)
    tree, merged = host.session(workspace, first)
    bases = host.base(workspace, first).parent
    parent = first
    for number in range(3):
        (merged / "counted").write_text(f"{number}\n")
        spec = spec_of(tree, parent)
        commit = host.commits.write(spec, never)
        assert commit is not None
        host.commits.publish(spec, commit, never)
        parent, before = commit, parent
    # Sessions may be on their way that are made of what was left a moment ago.
    assert len(commits_in(bases)) == 4
    late, _ = host.session(workspace, before)
    monkeypatch.setattr(trees, "LEFT_SECONDS", 0.0)
    with trees.using(bases / before) as there:
        assert there
        host.workspaces.tidy()
        assert commits_in(bases) == {first, before, parent}, "those of sessions, and where the workspace is"
    host.sessions.remove(tree.session)
    with trees.using(bases / first):
        host.workspaces.tidy()
        assert commits_in(bases) == {first, before, parent}, "one is being prepared just now"
    host.workspaces.tidy()
    assert commits_in(bases) == {before, parent}
    host.sessions.remove(late.session)
    host.workspaces.tidy()
    assert [one.name for one in bases.iterdir()] == [parent]
    with pytest.raises(NotFound, match="sync it"):
        host.session(workspace, before)
    assert host.sessions.found() == []


def test_what_the_workspace_was_advanced_to_is_published_however_large_it_is(host: Host, source: Path) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, merged = host.session(workspace, first)
    (merged / "new").write_text("new")
    spec = spec_of(tree, first)
    commit = host.commits.write(spec, never)
    assert commit is not None
    small = Host.again(host, most_bytes=1)
    with pytest.raises(WorkspaceTooLarge):
        small.commits.write(spec_of(tree, first, "another"), never)
    small.commits.publish(spec, commit, never)
    assert git("rev-parse", BRANCH, at=host.repository(workspace)) == commit


def commits_in(bases: Path) -> set[str]:
    return {one.name for one in bases.iterdir() if one.is_dir()}


def test_what_git_writes_is_not_read_further_than_wanted(host: Host, source: Path) -> None:
    workspace, _ = host.workspace(path=str(source))
    git_of, image = host.workspaces._git, host.workspaces._usable(never)
    with git_of.opened(workspace, PROJECT, image, {}, never) as sandbox:
        code, said, _ = sandbox._run(["cat", "/dev/zero"], "/", {}, 1000)
        assert (code, len(said)) == (0, 1001)
        assert until(lambda: not readers())
        assert sandbox.git("version", what="the next one works").startswith("git version")
        # Who looks at nothing has it wait.
        pieces: docker_git.Pieces
        with docker_git._read(iter(lambda: (b"x", None), None)) as pieces:  # type: ignore[arg-type, misc]
            assert until(lambda: pieces.qsize() == docker_git.MOST_AHEAD)
            time.sleep(0.3)
            assert pieces.qsize() == docker_git.MOST_AHEAD


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "git-reader"]


def test_a_difference_does_not_wait_for_ever_for_a_commit(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, first = host.workspace(path=str(source))
    tree, _ = host.session(workspace, first)
    monkeypatch.setattr(docker_commits, "BUSY_SECONDS", 0.2)
    with host.workspaces._alone("session", tree.session.int, never):
        with pytest.raises(EngineUnavailable, match="try again in a moment"):
            host.diff(tree, first)
        with pytest.raises(Cancelled):
            host.commits.diff(tree.session, PROJECT, first, "", text="text", cancelled=lambda: True)
    assert host.diff(tree, first).files == []
