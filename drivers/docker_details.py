"""What an inventory says of containers beyond what an engine's list of them shows: remembered for a while.

An inspection costs the engine as much as a short list. A start ends with one, so that a burst of launches needs no
other for the inventories that follow it.
"""

from __future__ import annotations

import random
import time
from typing import Any

from drivers.docker_facts import observed

#: They are looked at again after this at the latest.
DETAILS_SECONDS = 60


class Details:
    """By the containers' ids. Used by several threads."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, dict[str, Any]]] = {}

    def get(self, engine_id: str) -> dict[str, Any] | None:
        """What was seen; None: nothing, or too long ago."""
        until, details = self._seen.get(engine_id, (0.0, None))
        return details if until > time.monotonic() else None

    def note(self, engine_id: str, inspected: dict[str, Any]) -> dict[str, Any]:
        # Not all at the same time again.
        until = time.monotonic() + DETAILS_SECONDS * random.uniform(0.7, 1)  # noqa: S311 - spread, not secret
        self._seen[engine_id] = (until, details := observed(inspected))
        return details

    def forget(self, engine_id: str) -> None:
        self._seen.pop(engine_id, None)

    def keep(self, engine_ids: set[str]) -> None:
        """Forget others that are too old; a start beside an inventory may have added one that is not in its list."""
        now = time.monotonic()
        for engine_id in [id for id, (until, _) in list(self._seen.items()) if id not in engine_ids and until < now]:
            self.forget(engine_id)
