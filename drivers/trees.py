"""Trees of files on a host: mirrors of repositories, workspaces. What git does in them it does in sandboxes.

``mirrors/<project>/<sha256 of the URL>`` is a bare mirror. A workspace has ``repo.git``, a bare repository whose packs
are the mirror's, as links; and ``bases/<commit>``, checked-out files, which are moved there when all of them are there
and are never changed: sessions lie over them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import UUID

from drivers import deep
from drivers.machines import Cancelled, Check
from drivers.workspaces import Held
from model.errors import EngineUnavailable, PathRefused, WorkspaceTooLarge

#: The index of what is checked out: needed until it is there.
INDEX = "index"
#: What a workspace's repository is at.
BRANCH = "refs/heads/workspace"
#: The name of what is fetched, until all of it is there.
INCOMING = "refs/cairn/incoming"
#: Beside files of commits: the names of notes that a commit was left, and of what is being deleted.
_LEFT, _GONE = ".left-", ".gone-"
#: For so long a session may be on its way that is to be made of a commit which the workspace has left.
LEFT_SECONDS = 600.0
#: In a workspace's folder: of which project it is.
_PROJECT = "project"
_CHUNK = 1 << 20
_TRIES = 5
#: Folders of a repository in which objects are.
_OBJECTS = re.compile(r"pack|[0-9a-f]{2}")
#: A mirror from which nothing was fetched for so long is removed.
UNUSED_SECONDS = 14 * 86400.0
#: What git receives it writes on as it comes: what stood still for so long is nobody's.
PARTIAL_SECONDS = 3600.0


class Trees:
    """Those below one folder. ``user``: whose they are (git's, in its sandboxes); None: this process's."""

    def __init__(self, root: Path, user: int | None) -> None:
        self.root = root
        self._user = user

    def mirror(self, project_id: UUID, url: str) -> Path:
        return self.root / "mirrors" / str(project_id) / hashlib.sha256(url.encode()).hexdigest()

    def workspace(self, id: UUID) -> Path:
        return self.root / "workspaces" / str(id)

    def repository(self, id: UUID) -> Path:
        return self.workspace(id) / "repo.git"

    def base(self, id: UUID, commit: str) -> Path:
        """The files of a commit; nobody changes anything in it."""
        return self.workspace(id) / "bases" / commit

    def incoming(self, id: UUID) -> Path:
        return self.workspace(id) / "incoming"

    def make(self, folder: Path) -> Path:
        """A folder that git writes to, where there is none."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Somebody may remove the one that it is to be in, as empty.
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                break
        self.give(folder)
        return folder

    def give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user, self._user, follow_symlinks=False)

    def begin(self, id: UUID, project_id: UUID) -> Path:
        """The folder of a workspace, with an empty one for what comes."""
        folder = self.make(self.workspace(id))
        (folder / _PROJECT).write_text(str(project_id))
        self.drop_incoming(id)
        self.make(folder / "bases")
        self.make(self.incoming(id))
        return folder

    def drop_incoming(self, id: UUID) -> None:
        """What came and was not settled."""
        clear(self.incoming(id))
        drop_index(self.workspace(id))

    def link_packs(self, mirror: Path, repository: Path) -> None:
        """The mirror's packs as the repository's: links, or copies where there can be none. Packs never change."""
        there = self.make(repository / "objects" / "pack")
        self._link(mirror / "objects" / "pack", there)

    def link_objects(self, made: Path, repository: Path) -> None:
        """All objects of a repository as another's: files that never change either. They become git's."""
        for folder in sorted((made / "objects").iterdir()):
            if _OBJECTS.fullmatch(folder.name) and stat.S_ISDIR(folder.lstat().st_mode):
                there = self.make(repository / "objects" / folder.name)
                for linked in self._link(folder, there):
                    self.give(linked)

    def _link(self, folder: Path, there: Path) -> list[Path]:
        """What was not there yet."""
        # An index last: a pack counts from then on.
        found = sorted(folder.iterdir(), key=lambda file: (file.suffix == ".idx", file.name))
        new = []
        for file in found:
            linked = there / file.name
            if file.name.startswith("tmp_") or not stat.S_ISREG(file.lstat().st_mode) or linked.exists():
                continue
            try:
                os.link(file, linked, follow_symlinks=False)
            except OSError:
                shutil.copyfile(file, linked.with_name(f"tmp_{file.name}"), follow_symlinks=False)
                linked.with_name(f"tmp_{file.name}").rename(linked)
                self.give(linked)
            new.append(linked)
        return new

    def settle(self, id: UUID, commit: str, keep: Collection[str]) -> Path:
        """Make what came the files of the commit, and remove those of others than ``keep``."""
        base = self.base(id, commit)
        if base.exists():
            clear(self.incoming(id))
        else:
            self.incoming(id).rename(base)
        for other in list(base.parent.iterdir()):
            # Notes of what was left too: these are kept for other reasons now.
            if other.name != commit and other.name not in keep:
                clear(other)
        return base

    def leave(self, id: UUID, commit: str) -> None:
        """The workspace is not at this commit any more: its files go once no session is made of them."""
        if self.base(id, commit).is_dir():
            note = self._left(id, commit)
            if not note.exists():
                note.touch()

    def forget_left(self, id: UUID, in_use: Callable[[], Collection[str]]) -> None:
        """Remove the files of commits that the workspace has left, and that no session on this host is made of, nor
        soon will be. Nobody else changes the workspace meanwhile; who prepares a session may."""
        bases = self.workspace(id) / "bases"
        for gone in bases.glob(f"{_GONE}*"):
            clear(gone)
        for note in bases.glob(f"{_LEFT}*"):
            commit = note.name.removeprefix(_LEFT)
            base = bases / commit
            if time.time() - note.stat().st_mtime < LEFT_SECONDS:
                continue
            with using(base, shared=False) as free:
                if not free or commit in in_use():
                    continue
                with contextlib.suppress(FileNotFoundError):
                    base.rename(bases / f"{_GONE}{commit}")
            note.unlink(missing_ok=True)
            clear(bases / f"{_GONE}{commit}")

    def _left(self, id: UUID, commit: str) -> Path:
        return self.workspace(id) / "bases" / f"{_LEFT}{commit}"

    def size(self, id: UUID, keep: Collection[str] | None = None) -> int:
        """Bytes that a workspace takes once it has settled; ``keep``: commits whose files it keeps, None: all."""
        folder = self.workspace(id)
        with contextlib.suppress(FileNotFoundError):
            parts = [part for part in folder.iterdir() if part.name != "bases"]
            kept = [base for base in (folder / "bases").iterdir() if self._counts(id, base.name, keep)]
            return deep.size_of(*parts, *kept)
        return 0

    def _counts(self, id: UUID, commit: str, keep: Collection[str] | None) -> bool:
        """Whether the files of this commit stay."""
        if keep is not None:
            return commit in keep
        return not commit.startswith(".") and not self._left(id, commit).exists()

    @contextmanager
    def unchanged_by_failure(self, id: UUID) -> Iterator[None]:
        """What is done to a workspace's repository and fails leaves it as it was: its objects, and what git keeps
        beside them."""
        repository = self.repository(id)
        before = _objects(repository)
        contents = {repository / name: _content(repository / name) for name in ("shallow", "config", BRANCH)}
        try:
            yield
        except BaseException:
            (repository / INCOMING).unlink(missing_ok=True)
            for new in _objects(repository) - before:
                new.unlink(missing_ok=True)
            for file, content in contents.items():
                if content is not None:
                    file.write_bytes(content)
                else:
                    file.unlink(missing_ok=True)
            unlock(repository)
            raise

    def remove(self, id: UUID) -> None:
        clear(self.workspace(id))

    def held(self) -> list[Held]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in (self.root / "workspaces").iterdir():
                with contextlib.suppress(ValueError, OSError):
                    found.append(Held(UUID(folder.name), UUID((folder / _PROJECT).read_text())))
        return found

    def forget_mirrors(self, alone: Callable[[Path], AbstractContextManager[None]]) -> None:
        """Those from which nothing was fetched for long: the next fetch makes another. And those of projects that have
        no workspace here. Of the others what an agent that died has left. ``alone``: raises Cancelled where somebody
        works on a mirror."""
        now = time.time()
        for mirror in self.root.glob("mirrors/*/*"):
            with contextlib.suppress(OSError, EngineUnavailable, Cancelled), alone(mirror):
                # A workspace is there before its mirror is worked on.
                projects = {str(one.project_id) for one in self.held()}
                if now - mirror.stat().st_mtime > UNUSED_SECONDS or mirror.parent.name not in projects:
                    self.drop_mirror(mirror)
                for left in mirror.glob("objects/pack/tmp_*"):
                    if now - left.stat().st_mtime > PARTIAL_SECONDS:
                        left.unlink()

    def drop_partial(self, mirror: Path) -> None:
        """What a fetch into it that has ended early left there; all of it, where nothing was fetched before."""
        if any(mirror.glob("objects/pack/*.pack")):
            unlock(mirror)
            return
        self.drop_mirror(mirror)

    def drop_mirror(self, mirror: Path) -> None:
        """And the folder of its project, where it was the last."""
        clear(mirror)
        with contextlib.suppress(OSError):
            mirror.parent.rmdir()

    def copy(self, source: int, target: Path, most_bytes: int, cancelled: Check) -> None:
        """The files below the folder of this descriptor, but repositories of git: no link is followed, and what is
        neither folder, file nor link is left out. Raises WorkspaceTooLarge, PathRefused."""
        copied = 0

        def look(here: int, names: list[str]) -> list[str]:
            nonlocal copied
            inside, at = [], target.joinpath(*names)
            for name, found in deep.entries(here):
                if cancelled():
                    raise Cancelled("copying")
                if name == ".git":
                    continue
                if stat.S_ISLNK(found.st_mode):
                    os.symlink(os.readlink(name, dir_fd=here), at / name)
                elif stat.S_ISDIR(found.st_mode):
                    (at / name).mkdir()
                    # As git makes them, whatever this process may have masked: users of sandboxes enter them.
                    (at / name).chmod(0o755)
                    inside.append(name)
                elif stat.S_ISREG(found.st_mode):
                    copied += found.st_size
                    if copied > most_bytes:
                        raise WorkspaceTooLarge(f"the folder has more than {most_bytes} bytes")
                    _copy_file(name, here, at / name, 0o755 if found.st_mode & 0o100 else 0o644)
                else:
                    continue
                self.give(at / name)
            return inside

        try:
            deep.walk(source, look, cancelled=cancelled, across=True)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise PathRefused("the folder has others in it that are too deep for git: leave them out") from error
            raise


def _copy_file(name: str, folder: int, target: Path, mode: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as source, open(target, "xb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
        os.fchmod(copy.fileno(), mode)


@contextmanager
def using(base: Path, *, shared: bool = True) -> Iterator[bool]:
    """Hold off, with others or alone, who would remove the files of a commit, or make a session of them; False: they
    are not there, or held by somebody else where this is to be alone."""
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield not shared
        return
    try:
        # Whoever holds it alone does so for a moment.
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            found = os.path.samestat(os.fstat(descriptor), base.stat())
        except FileNotFoundError:
            found = False
    except BlockingIOError:
        found = False
    try:
        yield found
    finally:
        os.close(descriptor)


def _objects(repository: Path) -> set[Path]:
    return {file for file in repository.glob("objects/*/*") if file.is_file()}


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def open_below(path: str, allowed: Collection[str]) -> int:
    """The folder of this path, below one that is allowed, with no link on the way there. Raises PathRefused."""
    refused = PathRefused(
        f"{path} is not a folder that workspaces may be copied from on this host (CAIRN_WORKSPACE_PATHS of its agent)"
    )
    # Who may copy all that is there may learn what is not.
    missing = PathRefused(f"there is no folder {path} on this host that can be read, or a link is on the way there")
    for root in allowed:
        inside = os.path.relpath(path, root)
        if not os.path.isabs(root) or inside == ".." or inside.startswith("../"):
            continue
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            descriptor = os.open(root, flags)
        except OSError:
            continue
        for part in Path(inside).parts:
            try:
                deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError:
                raise missing from None
            finally:
                os.close(descriptor)
            descriptor = deeper
        return descriptor
    raise refused


def unlock(repository: Path) -> None:
    """Remove what a git that was killed has left in a repository which nobody works on."""
    for left in [*repository.glob("*.lock"), *repository.glob("objects/pack/tmp_*")]:
        left.unlink(missing_ok=True)
    # Names of branches may be deep.
    drop_files(repository / "refs", lambda name: name.endswith(".lock"))


def drop_index(folder: Path) -> None:
    """Remove the index of a checkout, and the lock that a git which was killed has left of it."""
    for name in (INDEX, f"{INDEX}.lock"):
        (folder / name).unlink(missing_ok=True)


def drop_files(folder: Path, which: Callable[[str], bool]) -> None:
    """Remove the plain files of such names in it, and in folders in it."""

    def look(here: int, _: list[str]) -> list[str]:
        inside = []
        for name, about in deep.entries(here):
            if stat.S_ISDIR(about.st_mode):
                inside.append(name)
            elif stat.S_ISREG(about.st_mode) and which(name):
                deep.unlinked(here, name)
        return inside

    with contextlib.suppress(FileNotFoundError), deep.opened(folder) as top:
        deep.walk(top, look)


def clear(folder: Path, cancelled: Check = lambda: False) -> None:
    """Remove it, if there; what somebody else removes meanwhile is gone too. Raises EngineUnavailable, Cancelled."""
    try:
        deep.remove(folder, cancelled)
    except OSError as error:
        raise EngineUnavailable(
            f"{folder} cannot be deleted: {error.strerror}; see to the disk of this host, it is tried again"
        ) from error
