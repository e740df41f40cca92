"""What one project may do at once of what takes long, in one process: the others have their turn too."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from model.errors import CairnError


class OthersFirst(CairnError):
    """A project does as much at once as it may; details: ``retry_after_seconds``."""

    code, status, retryable = "others_first", 503, True


class Shares:
    """Who is refused takes no place meanwhile. May be used by several threads."""

    def __init__(self, of_project: int, seconds: float, said: str, *, of_all: int | None = None) -> None:
        """``seconds``: before who is refused asks again; ``said``: what it is told; ``of_all``: projects together."""
        self._of_project = of_project
        self._of_all = of_all
        self._seconds = seconds
        self._said = said
        self._taken: Counter[UUID] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, project_id: UUID) -> Iterator[None]:
        """Raises OthersFirst."""
        with self._lock:
            full = self._of_all is not None and self._taken.total() >= self._of_all
            if full or self._taken[project_id] >= self._of_project:
                raise OthersFirst(self._said, retry_after_seconds=self._seconds)
            self._taken[project_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[project_id] -= 1
                if not self._taken[project_id]:
                    del self._taken[project_id]
