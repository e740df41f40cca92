"""What changes among the files of a session, found by looking.

The kernel tells of changes folder by folder, and of so many folders at once; a session may have any number of them.
So all are looked at, and the more there are, the less often.
"""

from __future__ import annotations

import os
import stat
import threading
import time

from drivers import deep, files
from drivers.beneath import opened, parts_of, told
from drivers.files import Files, Kind, shown
from model.base import Frozen
from model.errors import ValidationFailed

#: Between two looks; and at least so many times what a look takes.
LOOK_SECONDS, PATIENCE = 1.0, 20
MOST_WATCHED = 100_000
#: Changes of one look that are told; of more, that there are more.
MOST_CHANGES = 1000
#: Folders in each other; what is in deeper ones is not told.
MOST_DEPTH = 200

#: By path: what tells one content from another.
_Seen = dict[str, tuple[int, int, int, Kind]]


class FileChange(Frozen):
    """``overflow``: more has changed than is told: list what matters."""

    change: str
    path: str = ""
    type: Kind | None = None


class FileWatch:
    """Changes since it was opened; it waits for the next. Closed, from any thread, it ends."""

    def __init__(self, kept: Files, path: str, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._kept, self._path, self._names = kept, path, parts_of(path)
        self._look_seconds = look_seconds
        self._closed = threading.Event()
        self._waiting: list[FileChange] = []
        self._took = 0.0
        self._before = self._look()

    def __iter__(self) -> FileWatch:
        return self

    def __next__(self) -> FileChange:
        while not self._waiting:
            if self._closed.wait(max(self._look_seconds, PATIENCE * self._took)):
                raise StopIteration
            after = self._look()
            self._waiting = _changes(self._before, after)
            self._before = after
        return self._waiting.pop(0)

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> _Seen:
        began = time.monotonic()
        found: _Seen = {}
        with told(self._path), self._kept.opened() as root, opened(root, self._names) as watched:
            if not stat.S_ISDIR(os.fstat(watched).st_mode):
                _note(found, self._path, os.fstat(watched))
            else:
                with opened(watched, [], os.O_RDONLY | os.O_DIRECTORY) as above:
                    self._walk(above, self._path, found, MOST_DEPTH)
        self._took = time.monotonic() - began
        return found

    def _walk(self, above: int, path: str, found: _Seen, deeper: int) -> None:
        # One more is too many.
        for name in deep.first_names(above, MOST_WATCHED + 1):
            below = f"{path}/{name}" if path else name
            if name.startswith(files.PARTIAL):
                continue
            try:
                about = os.stat(name, dir_fd=above, follow_symlinks=False)
                _note(found, below, about)
                if len(found) > MOST_WATCHED or self._closed.is_set():
                    raise self._too_many()
                if stat.S_ISDIR(about.st_mode) and deeper:
                    inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
                    try:
                        self._walk(inside, below, found, deeper - 1)
                    finally:
                        os.close(inside)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it went meanwhile

    def _too_many(self) -> Exception:
        if self._closed.is_set():
            return StopIteration()
        problem = f"it has more than {MOST_WATCHED} files: watch a folder of it"
        return ValidationFailed(f"path: {problem}", fields=[{"field": "path", "message": problem}])


def _note(found: _Seen, path: str, about: os.stat_result) -> None:
    kind = files.kind_of(about.st_mode)
    # A folder changes with what is in it, which is told itself.
    content = (0, 0) if kind == "folder" else (about.st_mtime_ns, about.st_size)
    found[path] = (*content, about.st_ino, kind)


def _changes(before: _Seen, after: _Seen) -> list[FileChange]:
    found = [FileChange(change="deleted", path=shown(path), type=before[path][-1]) for path in before.keys() - after]
    for path, seen in after.items():
        if path not in before:
            found.append(FileChange(change="created", path=shown(path), type=seen[-1]))
        elif before[path] != seen:
            found.append(FileChange(change="changed", path=shown(path), type=seen[-1]))
    found.sort(key=lambda change: change.path)
    return [*found[:MOST_CHANGES], *([FileChange(change="overflow")] if len(found) > MOST_CHANGES else [])]
