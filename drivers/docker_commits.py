"""What sessions have changed, seen and committed by git in sandboxes of a Docker engine.

Git looks at a session's files in a sandbox that can change nothing but the folder it is given: what it finds there was
written by strangers. Only files that it wrote, objects by their names, come into the workspace's repository.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import UUID

from drivers import faults, git_words, trees
from drivers.beneath import LONGEST_PATH
from drivers.docker_git import GitSandbox, GitSandboxes
from drivers.machines import Cancelled, Check
from drivers.session_trees import SessionTrees, commits_in_use
from drivers.trees import Trees
from model.errors import EngineRefused, EngineUnavailable, FetchFailed, InvalidState, NotFound
from model.sessions import CommitSpec, Difference, TextOf

#: The branch that a workspace's repository is on.
#: Where sandboxes see what they work on.
SESSION, REPOSITORY, MADE, WORKSPACE = "/session", "/repository", "/made", "/workspace"
#: Of a difference: bytes of text and of names, files, and seconds.
MOST_TEXT, MOST_NAMES, MOST_FILES, DIFF_SECONDS = 1 << 20, 3 << 20, 10_000, 100.0
#: Of a file that is no text and is to be in a patch, bytes: git reads all of it before it writes any.
MOST_BINARY = 64 << 20
#: How long a difference waits for another, or for a commit.
BUSY_SECONDS = 20.0
#: What a run that was ended from outside left is removed after so long.
LEFT_OVER = 86400.0
#: In the folder of a commit: its id, once all of it is there.
_NOTE = "commit"
#: Nothing of what a repository says about itself runs or changes how its files are seen.
_SEEN_ALIKE = ("-c", "core.bare=false", "-c", "core.fileMode=true", "-c", "advice.addEmbeddedRepo=false")


#: Paths of the index that are repositories of their own, each behind a "=": git's mode of these is 160000
#: (gitformat-index(5)). A pipe does not tell that its first program failed.
_REPOSITORIES = (
    "{ git -c core.quotePath=off ls-files --stage || echo failed; } | "
    "sed -n -e 's/^160000 [0-9a-f]* [0-3]\t/=/p' -e '/^failed$/p'"
)
#: What is still there when all has been added so often could not be. (Else a program made it meanwhile.)
ADDS = 3
#: Bytes that are no text, as file names of the system are read.
_ODD = re.compile("[\udc80-\udcff]")
#: Files below a folder that were changed, and removed.
Changed = Callable[[str], tuple[set[str], set[str]]]


class Alone(Protocol):
    """Holds off whoever else works on a thing of a number, in whichever process."""

    def __call__(self, what: str, number: int, cancelled: Check) -> AbstractContextManager[None]: ...


class Limit(Protocol):
    """A check that a folder does not become too large; ``size_of``: how large it counts."""

    def __call__(self, folder: Path, size_of: Callable[[], int] | None = None) -> Callable[[], None]: ...


class Means(NamedTuple):
    """What it shares with the workspaces of its engine."""

    git: GitSandboxes
    trees: Trees
    sessions: SessionTrees
    #: The engine's id of the image with git.
    image: Callable[[Check], str]
    alone: Alone
    limit: Limit


class DockerCommits:
    """The commit port on one Docker engine, for one owner."""

    def __init__(self, means: Means) -> None:
        self._git = means.git
        self._trees = means.trees
        self._sessions = means.sessions
        self._image = means.image
        self._alone = means.alone
        self._limit = means.limit

    def write(self, spec: CommitSpec, cancelled: Check) -> str | None:
        session, workspace = spec.tree.session, spec.tree.workspace
        with _in_words(), self._alone("session", session.int, cancelled):
            commit = self._made(spec) or self._make(spec, cancelled)
        if commit is not None:
            with _in_words(), self._alone("workspace", workspace.int, cancelled):
                self._trees.link_objects(self._folder(spec) / "made", self._trees.repository(workspace))
                self._check_out(spec, commit, cancelled)
        faults.reached("after_effect")
        return commit

    def publish(self, spec: CommitSpec, commit: str, cancelled: Check) -> None:
        workspace, session = spec.tree.workspace, spec.tree.session
        with _in_words(), self._alone("workspace", workspace.int, cancelled):
            # What was advanced to is too late to refuse, however large it is.
            with self._inside(spec, cancelled, limited=False) as sandbox:
                # Whatever a sync makes of the branch, what was committed stays.
                for ref in (trees.BRANCH, f"refs/sessions/{session}"):
                    moved = "the branch could not be moved"
                    sandbox.git("update-ref", ref, commit, at=f"{WORKSPACE}/repo.git", what=moved)
            self._clear(spec)
            if commit != spec.parent:
                self._trees.leave(workspace, spec.parent)
            self._trees.forget_left(workspace, lambda: commits_in_use(self._trees.root, workspace))
            faults.reached("after_effect")

    def discard(self, spec: CommitSpec, cancelled: Check) -> None:
        self._git.end(spec.tree.session)
        with self._alone("workspace", spec.tree.workspace.int, cancelled):
            commit = self._made(spec)
            if commit is not None and commit != spec.parent:
                trees.clear(self._trees.base(spec.tree.workspace, commit))
            self._clear(spec)
            faults.reached("after_effect")

    def diff(
        self, session: UUID, project_id: UUID, base: str, path: str, *, text: TextOf | None, cancelled: Check
    ) -> Difference:
        record = self._sessions.record(session)
        repository, until = self._trees.repository(record.tree.workspace), time.monotonic() + DIFF_SECONDS

        def check() -> None:
            if time.monotonic() > until:
                raise EngineRefused(f"the difference took longer than {DIFF_SECONDS:g} s: ask for that of a path")

        with _in_words(), self._alone_soon(session, cancelled):
            shown = {SESSION: self._sessions.mount(session, cancelled), REPOSITORY: repository}
            image = self._image(cancelled)
            with self._git.opened(session, project_id, image, {}, cancelled, check=check, shown=shown) as sandbox:
                return _difference(sandbox, base, path, text, partial(self._sessions.changed, session))

    @contextmanager
    def _alone_soon(self, session: UUID, cancelled: Check) -> Iterator[None]:
        """Raises EngineUnavailable where a commit takes longer: who asks waits for the answer."""
        until = time.monotonic() + BUSY_SECONDS
        with contextlib.ExitStack() as held:
            waited = self._alone("session", session.int, lambda: cancelled() or time.monotonic() > until)
            try:
                held.enter_context(waited)
            except Cancelled:
                if cancelled():
                    raise
                raise EngineUnavailable(
                    f"the changes of session {session} are being committed or compared just now: try again in a moment"
                ) from None
            yield

    def _make(self, spec: CommitSpec, cancelled: Check) -> str | None:
        """Write the commit into a folder of its own."""
        folder, workspace = self._folder(spec), spec.tree.workspace
        if not self._trees.repository(workspace).is_dir():
            raise NotFound(f"workspace {workspace} has no repository on this host", path="")
        self._forget_others(folder)
        trees.clear(folder)
        self._trees.make(folder.parent)
        self._trees.make(folder)
        made = folder / "made"
        made.mkdir()
        merged = self._sessions.mount(spec.tree.session, cancelled)
        shown = {SESSION: merged, REPOSITORY: self._trees.repository(workspace)}
        sandboxed = self._git.opened(
            spec.tree.session,
            spec.project_id,
            self._image(cancelled),
            {MADE: made},
            cancelled,
            check=self._limit(made),
            shown=shown,
        )
        with sandboxed as sandbox:
            commit = _commit(sandbox, spec, partial(self._sessions.changed, spec.tree.session))
        if commit is None:
            self._clear(spec)
            return None
        note = folder / f".{_NOTE}"
        with note.open("w") as file:
            file.write(commit)
            file.flush()
            os.fsync(file.fileno())
        note.rename(folder / _NOTE)
        return commit

    def _check_out(self, spec: CommitSpec, commit: str, cancelled: Check) -> None:
        """Its files, as sessions of the workspace begin with them."""
        folder, base = self._folder(spec), self._trees.base(spec.tree.workspace, commit)
        if base.is_dir():
            return
        files, at = folder / "files", f"{WORKSPACE}/commits/{spec.id}"
        trees.clear(files)
        self._trees.make(files)
        trees.drop_index(folder)
        with self._inside(spec, cancelled) as sandbox:
            tree = ["--git-dir", f"{WORKSPACE}/repo.git", "--work-tree", f"{at}/files", "-c", "core.bare=false"]
            env = {"GIT_INDEX_FILE": f"{at}/{trees.INDEX}"}
            failed = "the commit could not be checked out"
            sandbox.git(*tree, "read-tree", "--reset", "-u", commit, at=f"{at}/files", env=env, what=failed)
        files.rename(base)

    @contextmanager
    def _inside(self, spec: CommitSpec, cancelled: Check, *, limited: bool = True) -> Iterator[GitSandbox]:
        """Git at work on the workspace."""
        workspace = spec.tree.workspace
        trees.unlock(self._trees.repository(workspace))
        folder = self._trees.workspace(workspace)
        image, folders = self._image(cancelled), {WORKSPACE: folder}
        limit = self._limit(folder, lambda: self._trees.size(workspace)) if limited else _unlimited
        with self._git.opened(workspace, spec.project_id, image, folders, cancelled, check=limit) as sandbox:
            yield sandbox

    def _folder(self, spec: CommitSpec) -> Path:
        return self._trees.workspace(spec.tree.workspace) / "commits" / str(spec.id)

    def _made(self, spec: CommitSpec) -> str | None:
        try:
            return (self._folder(spec) / _NOTE).read_text()
        except FileNotFoundError:
            return None

    def _clear(self, spec: CommitSpec) -> None:
        folder = self._folder(spec)
        trees.clear(folder)
        with contextlib.suppress(OSError):  # others are in it, or it was never there
            folder.parent.rmdir()

    def _forget_others(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            for other in folder.parent.iterdir():
                if other != folder and time.time() - other.stat().st_mtime > LEFT_OVER:
                    trees.clear(other)


def _unlimited() -> None:
    """Nothing is too large."""


def _seen(sandbox: GitSandbox, git_dir: str, base: str, failed: str) -> dict[str, str]:
    """With what git sees a session's files as those of a repository, at a commit."""
    sandbox.git("init", "-q", "--bare", "--template=", git_dir, what=failed)
    env = {
        "GIT_DIR": git_dir,
        "GIT_WORK_TREE": SESSION,
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{REPOSITORY}/objects",
    }
    sandbox.git(*_SEEN_ALIKE, "read-tree", base, at=SESSION, env=env, what=failed)
    return env


def _commit(sandbox: GitSandbox, spec: CommitSpec, changed: Changed) -> str | None:
    failed = "what the session has changed could not be committed"
    env = _seen(sandbox, MADE, spec.parent, failed)
    _add_whole(sandbox, env, "--all", "", changed, failed)
    tree = sandbox.git("write-tree", at=SESSION, env=env, what=failed).strip()
    before = sandbox.git("rev-parse", "--verify", f"{spec.parent}^{{tree}}", at=SESSION, env=env, what=failed).strip()
    if tree == before:
        return None
    env |= _names(spec)
    told = ["commit-tree", "-p", spec.parent, "-m", spec.message, tree]
    return sandbox.git(*told, at=SESSION, env=env, what=failed).strip()


def _names(spec: CommitSpec) -> Mapping[str, str]:
    when = f"@{spec.at} +0000"
    # Commits of two sessions are never the same one.
    committer = {"GIT_COMMITTER_NAME": "Cairn", "GIT_COMMITTER_EMAIL": f"session-{spec.tree.session}@localhost"}
    author = {}
    if spec.author is not None:
        name, _, mail = spec.author.rstrip(">").rpartition(" <")
        author = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail}
    return {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when} | committer | author


def _difference(sandbox: GitSandbox, base: str, path: str, text: TextOf | None, changed: Changed) -> Difference:
    failed = "what the session has changed could not be seen"
    env = _seen(sandbox, "/tmp/git", base, failed)  # noqa: S108 - of a container of its own
    # What is the same is known from then on: all that follows reads only what is not.
    sandbox.git(*_SEEN_ALIKE, "update-index", "-q", "--refresh", at=SESSION, env=env, what=failed, fine=(0, 1))
    # Of what nobody has added only names are noted.
    whole = text == "binary"
    if whole:
        _add_whole(sandbox, env, "--intent-to-add", path, changed, failed)
    else:
        _add(sandbox, env, "--intent-to-add", failed)
    asked = ["--literal-pathspecs", *_SEEN_ALIKE, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "-M"]
    asked += ["--ignore-submodules=dirty"]
    below = ["--", path] if path else ["--"]

    def found(*how: str, most: int, exact: bool = False) -> tuple[str, bool]:
        said = sandbox.git(*asked, *how, base, *below, at=SESSION, env=env, what=failed, most=most, exact=exact)
        return (said, False) if len(said.encode()) <= most else (said[:most], True)

    statuses, more = found("--name-status", "-z", most=MOST_NAMES)
    lines, _ = found("--numstat", "-z", most=MOST_NAMES)
    files = git_words.changed_files(statuses, lines)
    more = more or len(files) > MOST_FILES
    if whole and more:
        return Difference(base=base, files=files[:MOST_FILES], diff="", truncated=True)
    said = None
    if whole:
        size, name = git_words.largest_binary(found(f"--stat={4 * LONGEST_PATH}", most=MOST_NAMES)[0])
        if size > MOST_BINARY:
            raise _in_no_patch(name, f"has {size >> 20} MiB")
    if text:
        try:
            said, cut = found("--patch", *(["--binary"] if whole else []), most=MOST_TEXT, exact=whole)
        except UnicodeDecodeError as error:
            raise _in_no_patch(git_words.file_at(error.object, error.start), "is text that is not UTF-8") from error
        said = said[: said.rfind("\n") + 1] if cut else said
        more = more or cut
    return Difference(base=base, files=files[:MOST_FILES], diff=said, truncated=more)


def _add(sandbox: GitSandbox, env: Mapping[str, str], how: str, failed: str) -> None:
    """Tell the index of all files; a repository without a commit in it is passed over."""
    told = [*_SEEN_ALIKE, "add", how, "--ignore-errors", "."]
    sandbox.git(*told, at=SESSION, env=env, what=failed, fine=(0, 1))


def _add_whole(sandbox: GitSandbox, env: Mapping[str, str], how: str, path: str, changed: Changed, failed: str) -> None:
    """The same. Raises InvalidState where files at the path are in no commit: of a repository of the session's own git
    keeps a name at most, and it sees nothing below a place at which the workspace has one."""
    before = _repositories(sandbox, env, failed)
    left: set[str] | None = None
    for _ in range(ADDS):
        _add(sandbox, env, how, failed)
        now = _others(sandbox, env, ".", failed)
        left = now if left is None else left & now
        if not left:
            break
    new = [name for name in _repositories(sandbox, env, failed) if name not in before]
    for name in [*new, *sorted(left or ())]:
        if _meet(name, path):
            is_repository = name in new or name.endswith("/")
            raise _in_no_patch(name, "is a repository of its own" if is_repository else "could not be added")
    for place in before:
        if _meet(place, path):
            written, removed = changed(place)
            seen = _others(sandbox, {**env, "GIT_INDEX_FILE": "/none"}, place, failed) if written else set()
            if removed or _shown(written, seen):
                raise _in_no_patch(place, "is the place of a submodule, and has files")


def _repositories(sandbox: GitSandbox, env: Mapping[str, str], failed: str) -> list[str]:
    lines = sandbox.shell(_REPOSITORIES, at=SESSION, env=env, what=failed).split("\n")
    if "failed" in lines:
        raise FetchFailed(f"{failed}: its files could not be listed")
    return [git_words.unquoted(line[1:]) for line in lines if line]


def _others(sandbox: GitSandbox, env: Mapping[str, str], path: str, failed: str) -> set[str]:
    """What the index does not have, and no ``.gitignore`` names: a folder, with a "/" behind it, is a repository."""
    asked = ["--literal-pathspecs", *_SEEN_ALIKE, "ls-files", "--others", "--exclude-standard", "-z", "--", path]
    said = sandbox.git(*asked, at=SESSION, env=env, what=failed, most=MOST_NAMES)
    if len(said) >= MOST_NAMES:
        raise _in_no_patch(path, "has too many files that could not be added")
    return set(filter(None, said.split("\0")))


def _meet(one: str, other: str) -> bool:
    """Whether one of two paths is below the other, or is it. "" is above all."""
    one, other = one.rstrip("/"), other.rstrip("/")
    return not (one and other) or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _shown(written: set[str], shown: set[str]) -> bool:
    """Whether git shows one of these files, or a folder that it is in. What is not UTF-8 cannot be compared."""
    folders = tuple(name for name in shown if name.endswith("/"))
    return any(name in shown or name.startswith(folders) or _ODD.search(name) for name in written)


def _in_no_patch(path: str, why: str) -> InvalidState:
    shown = "".join(c if c.isprintable() else "?" for c in path.rstrip("/"))[:200]
    return InvalidState(f"{shown} {why}: that is in no commit, and in no patch", state="not_in_a_patch")


@contextmanager
def _in_words() -> Iterator[None]:
    """What git said is not that it could not fetch."""
    try:
        yield
    except FetchFailed as error:
        raise EngineRefused(error.message) from error
