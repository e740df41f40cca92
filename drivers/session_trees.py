"""The files of sessions on a host: what a workspace has, and above it what the session has changed.

``sessions/<id>/`` in the trees of an agent holds ``upper`` and ``work``, the changes, and ``merged``, both together: an
overlay file system whose lower part are the files of the workspace's commit, which nobody changes. Where the kernel
or the disk cannot do that, ``merged`` is a copy. ``tree.json`` says of what it was made: what has none is half made or
half removed.

An agent that dies leaves its mounts; a host that starts again has none. So everything here finds or makes, and may be
repeated at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import UUID

import structlog
from pydantic import ValidationError

from drivers import beneath, deep, faults, mounts
from drivers.machines import Cancelled, Check
from drivers.trees import clear, using
from drivers.workspaces import Held
from model.base import Frozen
from model.errors import EngineRefused, EngineUnavailable, NotFound
from model.sessions import SessionTree

RECORD = "tree.json"
LOOK_SECONDS = 0.1
#: What is there is no folder of the session's.
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}
#: What has no record for so long is nobody's who still makes it.
HALF_MADE_SECONDS = 600
#: What a kernel or a file system answers that has no overlays, or not for this process.
_IMPOSSIBLE = frozenset({errno.EPERM, errno.EACCES, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_NOSUID, _NODEV = 2, 4
_libc = ctypes.CDLL(None, use_errno=True)
log = structlog.get_logger()


class Record(Frozen):
    """What is in ``tree.json``."""

    tree: SessionTree
    kind: Literal["overlay", "copy"]


def commits_in_use(trees: Path, workspace: UUID) -> set[str]:
    """Of which of its commits there are sessions on this host."""
    kept = SessionTrees(trees, overlay=False)
    trees_of = [record.tree for one in kept.found() if (record := _read(kept.folder(one))) is not None]
    return {tree.commit for tree in trees_of if tree.workspace == workspace}


def base_of(trees: Path, workspace: UUID, commit: str) -> Path:
    """The files of a workspace's commit; nobody changes them as long as a session is made of it."""
    return trees / "workspaces" / str(workspace) / "bases" / commit


class SessionTrees:
    """Those of one host, in its agent's folder ``trees``. May be used by several threads."""

    def __init__(self, trees: Path, *, overlay: bool = True) -> None:
        """``overlay`` False: never, where the kernel can too. Nor where the engine would not see them."""
        self._trees = trees
        self._overlay = overlay and mounts.seen_by_engine(trees)

    def merged(self, session: UUID) -> Path:
        """Where its files are, when it is mounted."""
        return self.folder(session) / "merged"

    def prepare(self, tree: SessionTree, cancelled: Check) -> Path:
        """Find or make the session's tree, and mount it. Repeated, it is the same, with what was changed in it.

        Raises NotFound where the workspace has no files of that commit here, Cancelled.
        """
        base = base_of(self._trees, tree.workspace, tree.commit)
        folder = self.folder(tree.session)
        # Until it is written down that they are needed nobody removes them.
        with using(base) as there:
            if not there:
                raise NotFound(f"workspace {tree.workspace} has no files of commit {tree.commit} on this host: sync it")
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            with self._locked(tree.session) as (folder, lock):
                record = _read(folder)
                if record is not None and record.tree != tree:
                    raise EngineRefused(f"{folder} is of another workspace or commit: remove that session first")
                if record is None:
                    record = Record(tree=tree, kind=self._kind(base, folder))
                    _write(folder, record)
                self._mount(record, folder, lock, cancelled)
        faults.reached("after_effect")
        return folder / "merged"

    def record(self, session: UUID) -> Record:
        """Of what it was made. Raises NotFound where there is none."""
        record = _read(self.folder(session))
        if record is None:
            raise NotFound(f"session {session} has no files on this host", path="")
        return record

    def mount(self, session: UUID, cancelled: Check = lambda: False, moment: float = mounts.MOMENT_SECONDS) -> Path:
        """Mount what was prepared; success where it is mounted. Raises NotFound where there is none, and
        EngineUnavailable where it is mounted elsewhere for longer than a ``moment``, in seconds."""
        with self._locked(session) as (folder, lock):
            record = _read(folder)
            if record is None:
                raise NotFound(f"session {session} has no files on this host", path="")
            self._mount(record, folder, lock, cancelled, moment)
        return folder / "merged"

    def changed(self, session: UUID, path: str) -> tuple[set[str], set[str]]:
        """Files below a folder, where there is one, that are not as in the workspace's commit, and those of it that are
        gone; of a session that is mounted. Not what they hold is compared, but their kinds, permissions, sizes and
        times, as rsync(1) does. Raises EngineUnavailable where they cannot be seen."""
        folder = self.folder(session)
        if (record := _read(folder)) is None:
            return set(), set()
        now = _files(folder / "merged", path)
        before = _files(base_of(self._trees, record.tree.workspace, record.tree.commit), path) or {}
        if now is None:
            return set(), set()
        return {name for name, file in now.items() if before.get(name) != file}, before.keys() - now.keys()

    def mount_all(self) -> None:
        """Mount all that were prepared: after the host has started again, files are there before anybody asks."""
        until = time.monotonic() + mounts.MOMENT_SECONDS
        for session in self.found():
            try:
                # However many are mounted elsewhere, the agent begins soon.
                self.mount(session, moment=max(0.0, until - time.monotonic()))
            except (NotFound, EngineUnavailable) as error:
                log.warning("session.not_mounted", session=str(session), error=error.message)

    def remove(self, session: UUID, *, unless_whole: bool = False) -> None:
        """Unmount and delete it, whole or half made; success where it is absent. What is open of it ends with its
        file."""
        try:
            with self._locked(session) as (folder, held):
                if unless_whole and _read(folder) is not None:
                    return
                # From here on nobody takes it for a tree.
                (folder / RECORD).unlink(missing_ok=True)
                mounts.unmount(folder / "merged")
                faults.reached("after_effect")
                deep.empty(held)
                folder.rmdir()
        except NotFound:
            return
        except OSError as error:
            raise EngineUnavailable(f"the files of session {session} cannot be deleted: {error}") from error

    def found(self) -> list[UUID]:
        """All that have a folder, half made ones too."""
        try:
            names = os.listdir(self._trees / "sessions")
        except FileNotFoundError:
            return []
        return [UUID(name) for name in names if is_id(name)]

    def held(self) -> list[Held]:
        """All that were prepared, and of which project they are."""
        records = [record for session in self.found() if (record := _read(self.folder(session))) is not None]
        return [Held(one.tree.session, one.tree.project) for one in records if one.tree.project is not None]

    def tidy(self) -> None:
        """Remove what was half made, or half removed, and left so."""
        for session in self.found():
            folder = self.folder(session)
            try:
                if _read(folder) is None and time.time() - folder.stat().st_mtime > HALF_MADE_SECONDS:
                    log.warning("session.leftover_removed", session=str(session))
                    # Somebody may just have gone on with it.
                    self.remove(session, unless_whole=True)
            except FileNotFoundError:
                continue
            except Exception:  # the others go all the same
                log.exception("session.leftover_not_removed", session=str(session))

    def folder(self, session: UUID) -> Path:
        """Where all of it is, mounted or not."""
        return self._trees / "sessions" / str(session)

    @contextmanager
    def _locked(self, session: UUID) -> Iterator[tuple[Path, int]]:
        """Its folder, at which nobody else works, in whichever process, and what holds that off. Raises NotFound."""
        folder = self.folder(session)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"session {session} has no files on this host", path="") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:  # who had the lock has removed it
                raise NotFound(f"session {session} has no files on this host", path="")
            yield folder, descriptor
        finally:
            os.close(descriptor)

    def _kind(self, base: Path, folder: Path) -> Literal["overlay", "copy"]:
        """What this host can; tried where the tree will be."""
        if not self._overlay:
            return "copy"
        try:
            _mount_overlay(base, folder)
        except OSError as error:
            if error.errno not in _IMPOSSIBLE:
                raise EngineUnavailable(f"{folder} cannot be mounted: {error.strerror}") from error
            log.warning("session.copied", folder=str(folder), reason=error.strerror)
            return "copy"
        if os.statvfs(folder / "merged").f_flag & os.ST_RDONLY:  # so it is where the disk lacks what changes need
            mounts.unmount(folder / "merged")
            return "copy"
        return "overlay"

    def _mount(
        self,
        record: Record,
        folder: Path,
        lock: int,
        cancelled: Check,
        moment: float = mounts.MOMENT_SECONDS,
    ) -> None:
        base = base_of(self._trees, record.tree.workspace, record.tree.commit)
        merged = folder / "merged"
        if record.kind == "copy":
            if not merged.is_dir() or not (folder / "copied").exists():
                _copy(base, folder, lock, cancelled)
        elif not os.path.ismount(merged):
            if not self._overlay:
                raise EngineUnavailable(f"{merged} cannot be mounted: the engine would not see it (docs/sessions.md)")
            if mounts.is_held(folder / "upper", moment):
                # Two overlays of the same changes would tear them.
                raise EngineUnavailable(
                    f"the files of session {record.tree.session} are mounted in its sandbox, and nowhere else any "
                    "more: stop the session, and start it"
                )
            try:
                _mount_overlay(base, folder)
            except OSError as error:
                raise EngineUnavailable(f"{merged} cannot be mounted: {error.strerror}") from error


def _files(root: Path, path: str) -> dict[str, tuple[int, int, int]] | None:
    """Mode, size and time of what is below a folder, apart from folders; by its path from ``root``. None: there is no
    such folder."""
    found: dict[str, tuple[int, int, int]] = {}
    try:
        above = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            with beneath.opened(above, beneath.parts_of(path), os.O_RDONLY | os.O_DIRECTORY) as folder:
                for at, folders, files, inside in os.fwalk(".", dir_fd=folder):
                    for name in (*folders, *files):  # a link to a folder is among these
                        with contextlib.suppress(FileNotFoundError):  # a program works there
                            seen = os.stat(name, dir_fd=inside, follow_symlinks=False)
                            if not stat.S_ISDIR(seen.st_mode):
                                found[f"{path}/{at}/{name}".replace("/./", "/")] = (
                                    *(seen.st_mode, seen.st_size, seen.st_mtime_ns),
                                )
        finally:
            os.close(above)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise EngineUnavailable(f"the files below {path} cannot be seen: {error.strerror}") from error
        return None
    return found


def _mount_overlay(base: Path, folder: Path) -> None:
    """Raises OSError. What is in it is no device, and lends nobody's rights: it was written by strangers."""
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    for one in (upper, work, merged):
        one.mkdir(exist_ok=True)
    # The root of both is as its upper part is.
    upper.chmod(0o755)
    if os.path.ismount(merged):
        return
    # Folders can be renamed as in any file system.
    options = [f"lowerdir={_escaped(base)}", f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}"]
    options += ["redirect_dir=on", "metacopy=off"]
    target, flags = os.fsencode(merged), ctypes.c_ulong(_NOSUID | _NODEV)
    if _libc.mount(b"overlay", target, b"overlay", flags, os.fsencode(",".join(options))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(merged))


def _escaped(path: Path) -> str:
    return "".join(f"\\{letter}" if letter in "\\:," else letter for letter in str(path.absolute()))


def _copy(base: Path, folder: Path, lock: int, cancelled: Check) -> None:
    """Blocks of one disk are shared where that can. What outlives its agent holds the lock."""
    merged = folder / "merged"
    clear(merged, cancelled)
    merged.mkdir(mode=0o755)
    # Its own program: it knows all ways of all file systems, and can be ended in the middle.
    command = ["cp", "-a", "--reflink=auto", "--", f"{base}/.", str(merged)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[lock]
    ) as copying:
        try:
            while copying.poll() is None:
                if cancelled():
                    raise Cancelled
                time.sleep(LOOK_SECONDS)
        finally:
            copying.kill()
        said = copying.stderr.read().decode(errors="replace") if copying.stderr else ""
    if copying.returncode != 0:
        raise EngineRefused(f"the files of the workspace cannot be copied: {said.strip()[:300]}")
    merged.chmod(0o755)
    (folder / "copied").touch()


def _read(folder: Path) -> Record | None:
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(folder: Path, record: Record) -> None:
    new = folder / f".{RECORD}"
    new.write_text(record.model_dump_json())
    with new.open() as written:
        os.fsync(written.fileno())
    new.rename(folder / RECORD)


def is_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
