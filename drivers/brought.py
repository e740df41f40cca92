"""What Cairn brought to an engine: a small file for each image, written before it is brought.

Engines do not tell who pulled what. So nothing is removed that is not written down here. The file's time is when the
image was last used. Nor do they tell for whom: a repository from which something was brought with a login is a folder,
with a file for each project that its registry has shown it to.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
from pathlib import Path
from uuid import UUID

from drivers.locked_file import LockedFile
from model.images import CachedImage


def brought_folder(agents: Path, host: UUID) -> Path:
    """Where the files of a host are, beside the identity of its agent."""
    return agents / f"{host}.images"


class Brought:
    """The files of one host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def incoming(self) -> Path:
        """Where files are on their way to the engine."""
        return self._folder / "incoming"

    def _path(self, reference: str) -> Path:
        return self._folder / hashlib.sha256(reference.encode()).hexdigest()[:40]

    def note(self, reference: str) -> None:
        """It is about to be brought."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with LockedFile(self._folder / "incoming") as file:
            file.write(reference.encode())
            file.keep(self._path(reference))

    def restrict(self, repository: str) -> None:
        """Something of it is about to be brought with a login: from now on it is there for those alone who had one, or
        needed none."""
        self._shown(repository).mkdir(mode=0o700, parents=True, exist_ok=True)

    def admit(self, repository: str, project_id: UUID | None) -> None:
        """Its registry has shown it to this project."""
        folder = self._shown(repository)
        if project_id is not None and folder.is_dir():
            (folder / str(project_id)).touch(mode=0o600)

    def is_for(self, repository: str, project_id: UUID | None) -> bool:
        folder = self._shown(repository)
        return not folder.is_dir() or (project_id is not None and (folder / str(project_id)).exists())

    def _shown(self, repository: str) -> Path:
        return self._folder / "restricted" / hashlib.sha256(repository.encode()).hexdigest()[:40]

    def touch(self, reference: str) -> None:
        """It is used now; of what was not brought nothing is known."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(reference))

    def used_at(self, reference: str) -> dt.datetime | None:
        """None: it was not brought, or is forgotten."""
        try:
            return dt.datetime.fromtimestamp(self._path(reference).stat().st_mtime, dt.UTC)
        except FileNotFoundError:
            return None

    def forget(self, reference: str) -> None:
        self._path(reference).unlink(missing_ok=True)

    def all(self) -> list[CachedImage]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file():
                        used_at = dt.datetime.fromtimestamp(entry.stat().st_mtime, dt.UTC)
                        reference = Path(entry.path).read_text()
                        found.append(CachedImage(reference=reference, digest=None, used_at=used_at))
        return found
