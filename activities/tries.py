"""How often activities have really tried, where one that waits for a place among others counts no try."""

from __future__ import annotations

import threading
from collections import OrderedDict

from temporalio import activity

#: Of activities that failed and were not tried again here, so many are remembered.
_REMEMBERED = 1000


class Tries:
    """Those of one process: another begins to count anew. May be used by several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._failed: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def is_left(self) -> bool:
        """Whether the running activity, which has failed once more, may be tried again."""
        info = activity.info()
        key = (info.workflow_run_id or "", info.activity_id)
        with self._lock:
            failed = self._failed.pop(key, 0) + 1
            if failed >= self._most:
                return False
            self._failed[key] = failed
            if len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
            return True
