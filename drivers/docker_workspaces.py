"""Workspaces of a Docker host: git runs in sandboxes of the engine, the files lie in the agent's folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog

from drivers import deep, docker_names, faults, git_words, outbound, progress, room, trees
from drivers.docker_commits import DockerCommits, Means
from drivers.docker_engine import DockerEngine, calling
from drivers.docker_git import GitSandbox, GitSandboxes, as_user
from drivers.images import Images
from drivers.locks import alone, of_engine
from drivers.machines import Cancelled, Check
from drivers.ownership import Owner
from drivers.secret_files import SecretFiles
from drivers.session_trees import SessionTrees, commits_in_use
from drivers.trees import INCOMING, Trees
from drivers.workspaces import Held
from model import git_urls
from model.errors import EngineRefused, EngineUnavailable, FetchFailed, WorkspaceTooLarge
from model.git_urls import GitUrl
from model.images import ImageWanted
from model.workspaces import GitLogin, WorkspaceFacts, WorkspaceSpec

#: Files of locks there are, for workspaces and for mirrors: none is left for each that ever was.
LOCKS = 512
#: How much longer than a look at sizes it takes until the next.
SHARE = 10
#: Where sandboxes see what they work on.
MIRROR, WORKSPACE = "/mirror", "/workspace"
log = structlog.get_logger()
_INDEX = {"GIT_INDEX_FILE": f"{WORKSPACE}/{trees.INDEX}"}


class DockerWorkspaces:
    """The workspace port on one Docker engine, for one owner."""

    name = "docker"

    def __init__(
        self,
        base_url: str,
        *,
        installation: UUID,
        host_id: UUID,
        root: Path,
        images: Images,
        image: str,
        secrets: SecretFiles,
        most_bytes: int,
        seconds: float,
        networks: outbound.Networks = (),
        paths: Sequence[str] = (),
        authorities: bytes | None = None,
    ) -> None:
        """``root``: the folder of trees. ``paths``: below which folders may be copied. ``secrets``: of git alone."""
        self._base_url = base_url
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))
        user, owner = as_user()
        self._trees = Trees(root, owner)
        self._git = GitSandboxes(
            self._engine, secrets, user=user, seconds=seconds, networks=networks, authorities=authorities
        )
        self._images = images
        self._image = image
        self._most_bytes = most_bytes
        self._paths = paths

    def bring(self, spec: WorkspaceSpec, login: Callable[[], GitLogin] | None, cancelled: Check) -> WorkspaceFacts:
        with self._alone("workspace", spec.id.int, cancelled):
            image = self._usable(cancelled)
            self._trees.begin(spec.id, spec.project_id)
            try:
                with self._trees.unchanged_by_failure(spec.id):
                    if spec.git_url is None:
                        commit, ref = self._copy(spec, image, cancelled)
                    else:
                        commit, ref = self._fetch(spec, image, login() if login else None, cancelled)
                size = self._trees.size(spec.id, spec.keep)
                self._trees.settle(spec.id, commit, spec.keep)
            finally:
                self._trees.drop_incoming(spec.id)
            faults.reached("after_effect")
            return WorkspaceFacts(commit=commit, ref=ref, size_bytes=size)

    def commits(self, sessions: SessionTrees) -> DockerCommits:
        """The commit port on the same engine and folder."""
        means = Means(self._git, self._trees, sessions, self._usable, self._alone, self._limit)
        return DockerCommits(means)

    def remove(self, workspace: UUID, cancelled: Check) -> None:
        # What works on it is ended first: it may be of an agent that died, and holds no lock of ours.
        self._git.end(workspace)
        with self._alone("workspace", workspace.int, cancelled):
            self._git.end(workspace)
            self._trees.remove(workspace)
            faults.reached("after_effect")

    def held(self) -> list[Held]:
        return self._trees.held()

    def tidy(self) -> None:
        self._git.end_forgotten()
        self._trees.forget_mirrors(lambda mirror: self._alone_at(mirror, lambda: True))
        for held in self._trees.held():
            in_use = partial(commits_in_use, self._trees.root, held.id)
            # Whoever works on it does so itself, or the next time does.
            with contextlib.suppress(Cancelled), self._alone("workspace", held.id.int, lambda: True):
                try:
                    self._trees.forget_left(held.id, in_use)
                except (EngineUnavailable, OSError) as error:
                    log.warning("workspace.not_tidied", id=str(held.id), error=str(error))

    def _usable(self, cancelled: Check) -> str:
        """The engine's id of the image with git."""
        self._images.ensure(ImageWanted(reference=self._image), cancelled)
        with calling():
            found = docker_names.find(self._engine.client, ImageWanted(reference=self._image))
        if found is None:
            raise EngineRefused(f"the image {self._image}, in which git runs, is not on the engine (CAIRN_GIT_IMAGE)")
        return str(found["Id"])

    def _fetch(
        self, spec: WorkspaceSpec, image: str, login: GitLogin | None, cancelled: Check
    ) -> tuple[str, str | None]:
        url = git_urls.parse(spec.git_url or "")
        if login is not None and (login.host, login.type) != (url.host, url.scheme):
            raise FetchFailed(f"the credential is for {login.type} to {login.host}, and not for {spec.git_url}")
        if spec.depth is not None:
            return self._fetch_shallow(spec, url, image, login, cancelled)
        mirror = self._trees.mirror(spec.project_id, spec.git_url or "")
        with contextlib.ExitStack() as held:
            held.enter_context(self._alone_at(mirror, cancelled))
            self._trees.make(mirror)
            trees.unlock(mirror)
            try:
                with self._git.opened(
                    spec.id,
                    spec.project_id,
                    image,
                    {MIRROR: mirror},
                    cancelled,
                    url=url,
                    login=login,
                    check=self._limit(mirror),
                ) as sandbox:
                    sandbox.git("init", "-q", "--bare", "--template=", MIRROR, what="making a mirror failed")
                    full, ref = _wanted(sandbox, spec)
                    branches = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
                    fetch = ["fetch", "--progress", "--force", "--prune", "--no-tags", "--no-write-fetch-head"]
                    failed = f"{spec.git_url} could not be fetched"
                    sandbox.git(*fetch, "--", spec.git_url or "", *branches, at=MIRROR, what=failed)
                    if ref is None and not sandbox.succeeds("cat-file", "-e", f"{full}^{{commit}}", at=MIRROR):
                        # A commit of no branch, which some servers give all the same.
                        kept = f"+{full}:refs/cairn/{full}"
                        fetch.remove("--prune")
                        sandbox.git(*fetch, "--", spec.git_url or "", kept, at=MIRROR, what=failed)
                    found = sandbox.git("rev-parse", "--verify", f"{full}^{{commit}}", at=MIRROR, what=failed)
            except BaseException:
                self._trees.drop_partial(mirror)
                raise
            commit = found.strip()
            os.utime(mirror)
            if (size := deep.size_of(mirror)) > self._most_bytes:
                self._trees.drop_mirror(mirror)
                raise self._too_large(size)
            with self._inside(spec, image, url if spec.submodules else None, login, cancelled) as sandbox:
                _init(sandbox)
                self._trees.link_packs(mirror, self._trees.repository(spec.id))
                # From here on it needs nothing of the mirror: others may fetch.
                held.close()
                self._check_out(sandbox, spec, commit)
                self._take(sandbox, spec, commit)
        return commit, ref

    def _fetch_shallow(
        self, spec: WorkspaceSpec, url: GitUrl, image: str, login: GitLogin | None, cancelled: Check
    ) -> tuple[str, str | None]:
        """Into the workspace's own repository: a mirror has all or nothing."""
        with self._inside(spec, image, url, login, cancelled) as sandbox:
            repository = _init(sandbox)
            full, ref = _wanted(sandbox, spec)
            failed = f"{spec.git_url} could not be fetched"
            fetch = ["fetch", "--progress", "--force", "--no-tags", "--no-write-fetch-head", f"--depth={spec.depth}"]
            sandbox.git(*fetch, "--", spec.git_url or "", f"+{full}:{INCOMING}", at=repository, what=failed)
            commit = sandbox.git("rev-parse", "--verify", f"{INCOMING}^{{commit}}", at=repository, what=failed).strip()
            self._check_out(sandbox, spec, commit)
            self._take(sandbox, spec, commit)
            sandbox.git("update-ref", "-d", INCOMING, at=repository, what=failed)
        return commit, ref

    def _copy(self, spec: WorkspaceSpec, image: str, cancelled: Check) -> tuple[str, None]:
        progress.say("copying")
        source = trees.open_below(spec.path or "", self._paths)
        try:
            self._trees.copy(source, self._trees.incoming(spec.id), self._most_bytes, cancelled)
        finally:
            os.close(source)
        with self._inside(spec, image, None, None, cancelled) as sandbox:
            repository = _init(sandbox)
            failed = "what was copied could not be committed"
            tree = ["--git-dir", repository, "--work-tree", f"{WORKSPACE}/incoming"]
            at = f"{WORKSPACE}/incoming"
            sandbox.git(*tree, "-c", "core.bare=false", "add", "--all", "--force", ".", at=at, env=_INDEX, what=failed)
            written = sandbox.git("write-tree", at=repository, env=_INDEX, what=failed).strip()
            commit = sandbox.git("commit-tree", "-m", "As copied", written, at=repository, what=failed).strip()
            self._take(sandbox, spec, commit)
        return commit, None

    def _check_out(self, sandbox: GitSandbox, spec: WorkspaceSpec, commit: str) -> None:
        """The files of the commit, into what is incoming."""
        progress.say("checking out")
        repository, at = f"{WORKSPACE}/repo.git", f"{WORKSPACE}/incoming"
        tree = ["--git-dir", repository, "--work-tree", at, "-c", "core.bare=false"]
        failed = "the commit could not be checked out"
        sandbox.git(*tree, "read-tree", "--reset", "-u", "-v", commit, at=at, env=_INDEX, what=failed)
        if spec.submodules:
            inside = _INDEX | {"GIT_DIR": repository, "GIT_WORK_TREE": at}
            for name, value in (("core.bare", "false"), ("remote.origin.url", spec.git_url or "")):
                sandbox.git("config", name, value, at=repository, what=failed)
            update = ["submodule", "update", "--init", "--recursive", "--force", "--progress"]
            depth = [f"--depth={spec.depth}"] if spec.depth is not None else []
            sandbox.git(*update, *depth, at=at, env=inside, what="its submodules could not be fetched")
            sandbox.git("config", "core.bare", "true", at=repository, what=failed)
            # They lead into a repository that nobody else sees at this place.
            trees.drop_files(self._trees.incoming(spec.id), lambda name: name == ".git")

    @contextmanager
    def _inside(
        self, spec: WorkspaceSpec, image: str, url: GitUrl | None, login: GitLogin | None, cancelled: Check
    ) -> Iterator[GitSandbox]:
        folder = self._trees.workspace(spec.id)
        trees.unlock(self._trees.repository(spec.id))
        check = self._limit(folder, lambda: self._trees.size(spec.id, spec.keep))
        with self._git.opened(
            spec.id,
            spec.project_id,
            image,
            {WORKSPACE: folder},
            cancelled,
            url=url,
            login=login if url is not None else None,
            check=check,
        ) as sandbox:
            yield sandbox

    def _take(self, sandbox: GitSandbox, spec: WorkspaceSpec, commit: str) -> None:
        """Let the branch be at what came, all of which is there. Raises WorkspaceTooLarge, and has changed nothing."""
        trees.drop_index(self._trees.workspace(spec.id))
        size = self._trees.size(spec.id, spec.keep)
        if size > self._most_bytes:
            raise self._too_large(size)
        repository = f"{WORKSPACE}/repo.git"
        sandbox.git("update-ref", trees.BRANCH, commit, at=repository, what="the commit could not be taken")

    def _too_large(self, size: int) -> WorkspaceTooLarge:
        return WorkspaceTooLarge(
            f"the workspace would take {size} bytes, and may take {self._most_bytes} (CAIRN_WORKSPACE_MAX_BYTES): what "
            "its sessions were made of counts too"
        )

    def _limit(self, folder: Path, size_of: Callable[[], int] | None = None) -> Callable[[], None]:
        """Looks at how much there is; the more it is, the less often."""
        due = 0.0

        def check() -> None:
            nonlocal due
            began = time.monotonic()
            if began < due:
                return
            size = size_of() if size_of is not None else deep.size_of(folder)
            due = time.monotonic() + max(0.5, SHARE * (time.monotonic() - began))
            if size > self._most_bytes:
                raise WorkspaceTooLarge(
                    f"the workspace would take more than {self._most_bytes} bytes (CAIRN_WORKSPACE_MAX_BYTES)"
                )
            with contextlib.suppress(FileNotFoundError):
                room.check(folder)

        return check

    def _alone_at(self, mirror: Path, cancelled: Check) -> AbstractContextManager[None]:
        return self._alone("mirror", int(mirror.name[:8], 16), cancelled)

    @contextmanager
    def _alone(self, what: str, number: int, cancelled: Check) -> Iterator[None]:
        with alone(of_engine(self._base_url, f"{what} {number % LOCKS}"), cancelled):
            yield


def _init(sandbox: GitSandbox) -> str:
    """The workspace's repository, made where there is none."""
    repository = f"{WORKSPACE}/repo.git"
    sandbox.git("init", "-q", "--bare", "--template=", repository, what="making a repository failed")
    return repository


def _wanted(sandbox: GitSandbox, spec: WorkspaceSpec) -> tuple[str, str | None]:
    """What is to be fetched, as git names it, and the branch or tag that this is. Raises FetchFailed."""
    progress.say("asking")
    url, ref = spec.git_url or "", spec.ref
    asked = ["HEAD"] if ref is None else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    listed = sandbox.git("ls-remote", "--symref", "--", url, *asked, what=f"{url} could not be read")
    head, refs = git_words.found_refs(listed)
    if ref is None:
        if head is None and "HEAD" not in refs:
            raise FetchFailed(f"{url} has no commit yet: push one first, or name a branch")
        full = head or refs["HEAD"]
        return full, full.removeprefix("refs/heads/") if head else None
    for name in asked:
        if name in refs:
            return name, ref
    if git_urls.is_commit(ref):
        return ref, None
    raise FetchFailed(f"{url} has no branch and no tag '{ref}'")
