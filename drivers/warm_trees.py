"""Places of sandboxes that run before they have a session: folders that their containers see at ``/workspace``, and
into which the files of a session come when one claims the sandbox.

``warm/<sandbox>/`` in the trees of an agent holds ``place`` and, once that is claimed, ``claim.json``. ``place`` is
mounted on itself and shared, so that a container that was given it as a slave sees what is mounted there later: the
session's files (``drivers.session_trees``). Everything here finds or makes, and may be repeated at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from uuid import UUID, uuid4

from pydantic import ValidationError

from drivers import deep, faults, mounts
from drivers.machines import Check
from drivers.session_trees import SessionTrees, is_id
from model.base import Frozen
from model.errors import EngineRefused, EngineUnavailable, InvalidState, NotFound
from model.instances import MachineSpec
from model.sessions import SessionTree

CLAIM = "claim.json"
#: A place of which no container is known may be about to get one.
LEFT_OVER = 600.0
#: How long a command waits for the files of its session, which are on their way.
PATIENCE, LOOK_SECONDS = 10.0, 0.005
_BIND, _SHARED = 4096, 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class Claim(Frozen):
    """What is in ``claim.json``: what commands in the sandbox get, whatever that was launched with."""

    session: UUID
    env: dict[str, str]


class WarmTrees:
    """Those of one host, beside its sessions' trees. May be used by several threads."""

    def __init__(self, folder: Path, trees: SessionTrees, *, really: bool = True) -> None:
        """``really`` False: nothing is mounted, as nothing looks (what is simulated)."""
        self._folder = folder / "warm"
        self._trees = trees
        self._mounts = really

    @cached_property
    def able(self) -> bool:
        """Whether this process may mount what containers are to see."""
        if not self._mounts:
            return True
        if not mounts.seen_by_engine(self._folder):
            return False
        probe = self._folder / f".{uuid4()}"
        try:
            probe.mkdir(mode=0o700, parents=True)
            _share(probe)
            return True
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                mounts.unmount(probe)
                probe.rmdir()

    def make(self, sandbox: UUID) -> Path:
        """Find or make the sandbox's place. Raises EngineUnavailable."""
        folder = self._folder / str(sandbox)
        place = folder / "place"
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            with self._locked(sandbox):
                place.mkdir(mode=0o755, exist_ok=True)
                if self._mounts:
                    _share(place)
        except OSError as error:
            raise EngineUnavailable(f"{place} cannot be mounted: {error.strerror}") from error
        return place

    def ready(self, spec: MachineSpec) -> None:
        """Before a machine starts: that its files are where it will see them."""
        if spec.warm:
            self.make(spec.id)
        if spec.tree is None:
            return
        merged = self._trees.mount(spec.tree)
        if spec.warm:
            with self._locked(spec.id) as folder:
                self._bring(folder, merged, Claim(session=spec.tree, env=spec.env))

    def join(self, tree: SessionTree, spec: MachineSpec, cancelled: Check) -> None:
        """Make the session's files, and bring them into its sandbox, which runs. Repeated, the same.

        Raises NotFound where there is no such sandbox (any more): nothing is made then.
        """
        with self._locked(spec.id) as folder:
            claim = _read(folder)
            if claim is not None and claim.session != tree.session:
                raise EngineRefused(f"sandbox {spec.id} has the files of session {claim.session}")
            self._bring(folder, self._trees.prepare(tree, cancelled), Claim(session=tree.session, env=spec.env))
        faults.reached("after_effect")

    def _bring(self, folder: Path, merged: Path, claim: Claim) -> None:
        """The folder's lock is held."""
        place = folder / "place"
        if self._mounts and not os.path.samefile(place, merged):
            try:
                _mount(merged, place, _BIND)
            except OSError as error:
                raise EngineUnavailable(f"{place} cannot be mounted: {error.strerror}") from error
        new = folder / f".{CLAIM}"
        new.touch(mode=0o600)
        new.write_text(claim.model_dump_json())
        # What is lost with the machine's power is written again before the sandbox starts.
        new.rename(folder / CLAIM)

    def variables(self, sandbox: UUID) -> Mapping[str, str]:
        """What commands in it get, once its files are there; nothing where it is none of these sandboxes.

        Raises InvalidState where the files do not come.
        """
        folder = self._folder / str(sandbox)
        until = time.monotonic() + PATIENCE
        while (claim := _read(folder)) is None:
            if not folder.exists():
                return {}
            if time.monotonic() > until:
                raise InvalidState("the files of its session are not there yet: try again", state="initializing")
            time.sleep(LOOK_SECONDS)
        return claim.env

    def remove(self, sandbox: UUID) -> None:
        """Take the place away; success where there is none. From then on no session joins."""
        try:
            with self._locked(sandbox) as folder:
                (folder / CLAIM).unlink(missing_ok=True)
                mounts.unmount(folder / "place")
                deep.remove(folder)
        except NotFound:
            return
        except OSError as error:
            raise EngineUnavailable(f"the place of sandbox {sandbox} cannot be removed: {error}") from error

    def sweep(self, there: Collection[UUID]) -> None:
        """Remove those of none of these sandboxes, and not new."""
        for sandbox in self.found():
            try:
                age = time.time() - (self._folder / str(sandbox)).stat().st_mtime
            except FileNotFoundError:
                continue
            if sandbox not in there and age > LEFT_OVER:
                self.remove(sandbox)

    def found(self) -> list[UUID]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [UUID(name) for name in names if is_id(name)]

    @contextmanager
    def _locked(self, sandbox: UUID) -> Iterator[Path]:
        """Its folder, at which nobody else works, in whichever process. Raises NotFound."""
        folder = self._folder / str(sandbox)
        gone = f"sandbox {sandbox} is not on this host, or is none that takes a session"
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(gone, path="") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:  # who had the lock has removed it
                raise NotFound(gone, path="")
            yield folder
        finally:
            os.close(descriptor)


def _share(place: Path) -> None:
    """Mount it on itself, where nothing is mounted, so that others see what is mounted there later. Raises OSError."""
    try:
        _mount(None, place, _SHARED)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what is no mount cannot be shared
            raise
        _mount(place, place, _BIND)
        _mount(None, place, _SHARED)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    told = None if source is None else os.fsencode(source)
    if _libc.mount(told, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _read(folder: Path) -> Claim | None:
    try:
        return Claim.model_validate_json((folder / CLAIM).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
