"""Cache volumes on a host: folders that sandboxes of one project see, and fill, at once.

``caches/<project>/<volume>`` in the trees of an agent is mounted into containers as it is. Whoever is in one of these
is root in it, and may make of its content whatever files, links and folders can be made, at any moment: so nothing
here goes by a path below it. What is to go is renamed, to ``caches/<project>/.<volume>.<name>``, where no sandbox sees
it, and is deleted there, folder by folder, through descriptors, without following a link or entering another file
system. ``tidy`` goes on with what a process that died has left there.

The folder itself cannot be replaced from within a sandbox. It needs no mount of its own: only the agent's user can
enter ``caches``, so a program with a set-user-id bit is of no use to anybody of the host, and containers gain no
rights from one (``no-new-privileges``), nor open devices that the engine does not give them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from drivers import beneath, deep, faults
from drivers.machines import Cancelled, Check
from drivers.session_trees import is_id
from drivers.workspaces import Held
from model.cache_volumes import CacheSpec
from model.errors import EngineUnavailable
from model.instances import MachineSpec

#: Programs of any user are in sandboxes. No sticky bit: with that not even root may write to what another has made.
MODE = 0o777
_ROOT = 0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What the last of a project leaves may go at the moment at which another one comes.
_TRIES = 10
_GONE = (FileNotFoundError, NotADirectoryError)
#: It has gone, or a file or a link is in its place.
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
log = structlog.get_logger()


class CacheTrees:
    """Those of one host, in its agent's folder ``trees``. May be used by several threads."""

    def __init__(self, trees: Path, *, own: bool = True) -> None:
        """``own`` False: they are this process's user's, as no sandbox looks at them (what is simulated)."""
        self._root = trees / "caches"
        self._own = own

    def make(self, cache: CacheSpec) -> Path:
        """Find or make it; the folder that sandboxes are to see. It is root's, as programs that look at whose their
        cache is run as root more often than not; everybody may write to it. Raises EngineUnavailable."""
        folder = self._folder(cache)
        for _ in range(_TRIES):
            # Somebody removes it as it is found: one of both errors.
            with _told(cache), contextlib.suppress(FileNotFoundError, FileExistsError):
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.parent.mkdir(mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(folder, _FOLDER)
                try:
                    # Also of one that is there: it may be half made, and a sandbox may have changed that.
                    if self._own:
                        os.fchown(descriptor, _ROOT, _ROOT)
                    os.fchmod(descriptor, MODE)
                finally:
                    os.close(descriptor)
                return folder
        raise EngineUnavailable(f"{folder} is removed again and again")

    def ready(self, spec: MachineSpec) -> None:
        """Before a machine starts: that all that it has are where it sees them."""
        for cache in spec.caches:
            self.make(CacheSpec(id=cache.id, project_id=spec.project_id))

    def clear(self, cache: CacheSpec, cancelled: Check = lambda: False) -> None:
        """Empty it. What is in it when this begins goes from all sandboxes' sight, one by one; the folder stays, and
        so does what comes later. Success where it is absent. Raises EngineUnavailable, Cancelled."""
        with _told(cache), contextlib.suppress(FileNotFoundError), self._project(cache) as project:
            if project is not None:
                # Who deletes what was taken aside does not take its folder away meanwhile.
                with _locked(project):
                    self._set_aside(cache, project, cancelled)
        self._finish(cache, cancelled)

    def _set_aside(self, cache: CacheSpec, project: int, cancelled: Check) -> None:
        """All that is in it."""
        with _opened(project, str(cache.id)) as folder:
            if folder is None:
                return
            doomed = _doomed(cache)
            os.mkdir(doomed, 0o700, dir_fd=project)
            with _opened(project, doomed) as aside:
                if aside is not None:
                    with os.scandir(folder) as found:
                        for entry in found:
                            _check(cancelled)
                            _move(folder, entry.name, aside)
        faults.reached("after_effect")

    def remove(self, cache: CacheSpec, cancelled: Check = lambda: False) -> None:
        """Take it away; success where it is absent. A sandbox that still has it writes into nothing from then on.
        Raises EngineUnavailable, Cancelled."""
        with _told(cache), self._project(cache) as project:
            if project is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(str(cache.id), _doomed(cache), src_dir_fd=project, dst_dir_fd=project)
                faults.reached("after_effect")
        self._finish(cache, cancelled)
        with contextlib.suppress(OSError):  # others of the project are there
            self._folder(cache).parent.rmdir()

    def found(self) -> list[CacheSpec]:
        """All that have a folder."""
        return [
            CacheSpec(id=UUID(name), project_id=UUID(project))
            for project in _names(self._root)
            for name in _names(self._root / project)
            if is_id(project) and is_id(name)
        ]

    def held(self) -> list[Held]:
        return [Held(one.id, one.project_id) for one in self.found()]

    def forget(self, volume: UUID) -> None:
        """Remove what nobody needs any more, whosever it was."""
        for cache in self.found():
            if cache.id == volume:
                self.remove(cache)

    def tidy(self) -> None:
        """Go on with what was being deleted when its agent died."""
        for project in _names(self._root):
            for name in _names(self._root / project):
                volume = name[1:].partition(".")[0]
                if name.startswith(".") and is_id(project) and is_id(volume):
                    try:
                        self._finish(CacheSpec(id=UUID(volume), project_id=UUID(project)), lambda: False)
                    except EngineUnavailable as error:  # the others go all the same
                        log.warning("cache.not_deleted", volume=volume, error=error.message)

    def _folder(self, cache: CacheSpec) -> Path:
        return self._root / str(cache.project_id) / str(cache.id)

    @contextmanager
    def _project(self, cache: CacheSpec) -> Iterator[int | None]:
        """The folder of its project; None: there is none."""
        with _opened(None, str(self._folder(cache).parent)) as project:
            yield project

    def _finish(self, cache: CacheSpec, cancelled: Check) -> None:
        """Delete what was taken aside of it, by this call or by one before. Two may do it at once."""
        with _told(cache), self._project(cache) as project:
            if project is None:
                return
            for name in os.listdir(project):
                if name.startswith(f".{cache.id}."):
                    _delete(project, name, cancelled)


def _doomed(cache: CacheSpec) -> str:
    return f".{cache.id}.{uuid4().hex}"


def _delete(above: int, name: str, cancelled: Check) -> None:
    """A folder of ours, with all that is in it."""
    if deep.unlinked(above, name):
        return
    while True:
        with _opened(above, name) as top:
            if top is None:
                return
            deep.empty(top, cancelled)
        with _locked(above):
            if deep.removed(above, name):
                return


def _move(folder: int, name: str, to: int) -> None:
    """Under a name that nothing there has."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, uuid4().hex, src_dir_fd=folder, dst_dir_fd=to)


@contextmanager
def _locked(project: int) -> Iterator[None]:
    """One at a time, in whichever process; for moments. Of a folder that no sandbox sees: else one could hold it."""
    fcntl.flock(project, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(project, fcntl.LOCK_UN)


@contextmanager
def _opened(above: int | None, name: str) -> Iterator[int | None]:
    """A folder of this one; None: there is none (any more). What is mounted there is refused. ``above`` None: ``name``
    is a path of ours."""
    try:
        descriptor = os.open(name, _FOLDER) if above is None else beneath.open_beneath(above, [name], _FOLDER)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except _GONE:
        return []


def _check(cancelled: Check) -> None:
    if cancelled():
        raise Cancelled


@contextmanager
def _told(cache: CacheSpec) -> Iterator[None]:
    """What the kernel refuses, in words of ours."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise EngineUnavailable(
                f"something is mounted in the files of cache volume {cache.id} on this host: unmount it there"
            ) from error
        raise EngineUnavailable(f"the files of cache volume {cache.id}: {error.strerror}") from error
