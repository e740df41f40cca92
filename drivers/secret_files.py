"""Values of secrets as files in a host's memory, each placement of a machine with a folder of its own.

A container's own tmpfs cannot be filled before its program runs: it comes with the start (an archive that is put in
earlier lands beneath it), and is empty after every start that the engine makes by itself. So the files are in a tmpfs
of the host, and the container sees its folder, read-only. The engine may start the container again whenever it likes
and whoever is away; only when the host itself starts again they are gone, until the agent writes them anew.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from uuid import UUID

from model.errors import EngineRefused

IN_MEMORY = ("tmpfs", "ramfs")
#: What no machine has after so many seconds is left over: a machine is created right after its folder.
LEFT_OVER = 600.0
#: Characters of an id, with which the name of a machine ends.
ID = 36
#: Folders are made, and taken away when nothing is in them: not by two steps at once.
_MAKING = threading.Lock()


def default_folder() -> Path:
    """Of this user, in the tmpfs that every Linux machine has and everybody may write to."""
    return Path(f"/dev/shm/cairn-secrets-{os.geteuid()}")  # noqa: S108 - who owns it is looked at


class SecretFiles:
    """Those of one host."""

    def __init__(self, folder: Path, host_id: UUID) -> None:
        self._root = folder
        self._folder = folder / str(host_id)

    def write(self, machine: UUID, generation: int, values: Mapping[str, bytes]) -> Path:
        """The folder, which holds just these. What a program has open stays; each file is the old or the new one.

        Raises EngineRefused where that would not be in memory, or where others could see it.
        """
        folder = self._folder / f"{machine}.{generation}"
        with _MAKING:
            self._prepare()
            folder.mkdir(mode=0o755, exist_ok=True)
        # Nobody but the agent comes here; inside the container its program may be any user.
        folder.chmod(0o755)
        for name, value in values.items():
            new = folder / f".{name}.new"
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(value)
                os.fchmod(opened.fileno(), 0o444)
            new.rename(folder / name)
        for file in folder.iterdir():
            if file.name not in values:
                file.unlink(missing_ok=True)
        return folder

    def remove(self, machine: UUID, generation: int | None = None) -> None:
        """What placements up to ``generation`` have, or all."""
        for folder, (id, number) in self._found().items():
            if id == machine and (generation is None or number <= generation):
                shutil.rmtree(folder, ignore_errors=True)
        self._remove_empty()

    def sweep(self, there: Collection[tuple[UUID, int]]) -> None:
        """Remove what is of none of these machines and generations, and not new."""
        for folder, owner in self._found().items():
            try:
                age = time.time() - folder.stat().st_mtime
            except FileNotFoundError:
                continue
            if owner not in there and age > LEFT_OVER:
                shutil.rmtree(folder, ignore_errors=True)

    def _found(self) -> dict[Path, tuple[UUID, int]]:
        found = {}
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return {}
        for name in names:
            machine, _, generation = name.rpartition(".")
            try:
                found[self._folder / name] = (UUID(machine), int(generation))
            except ValueError:
                continue
        return found

    def _prepare(self) -> None:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root = self._root.lstat()
        except OSError as error:
            raise EngineRefused(f"{self._root}, for secrets, cannot be made: {error.strerror}") from error
        if not stat.S_ISDIR(root.st_mode) or root.st_uid != os.geteuid():
            raise EngineRefused(f"{self._root}, for secrets, is not a folder of this agent's user: remove it")
        if stat.S_IMODE(root.st_mode) != 0o700:  # noqa: PLR2004 - a mode is best read as digits
            # Others may have made something in it before, and may need it as it is: /dev/shm itself, /run.
            raise EngineRefused(
                f"{self._root}, for secrets, is open to others: let it be a folder of its own, mode 0700"
            )
        if kind(self._root) not in IN_MEMORY:
            raise EngineRefused(
                f"{self._root}, for secrets, is not in memory: let CAIRN_SECRETS_DIR name a folder of a tmpfs"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _remove_empty(self) -> None:
        with _MAKING:
            for folder in (self._folder, self._root):
                try:
                    folder.rmdir()
                except OSError:  # others are in it, or it was never there
                    return


def forget(root: Path, machines: Iterable[str]) -> None:
    """Remove what any host's placements of the machines of these names have."""
    for name in machines:
        for folder in root.glob(f"*/{name[-ID:]}.*"):
            shutil.rmtree(folder, ignore_errors=True)


def kind(path: Path) -> str:
    """The type of the file system that a path is on."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""
