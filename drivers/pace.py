"""Whether what strangers send comes fast enough to be worth a place."""

from __future__ import annotations

import time

#: Bytes a second, on average over each window of so many seconds: 10 GiB would take two days.
LEAST_RATE, WINDOW_SECONDS = 64 << 10, 60.0


class Pace:
    """Of one transfer, which begins now."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._size = 0

    def is_too_slow(self, size: int) -> bool:
        """To be asked with each piece that comes; ``size``: bytes that came so far."""
        now = time.monotonic()
        if (took := now - self._since) < WINDOW_SECONDS:
            return False
        too_slow = size - self._size < LEAST_RATE * took
        self._since, self._size = now, size
        return too_slow


def said() -> str:
    return f"less than {LEAST_RATE >> 10} KiB a second came for {WINDOW_SECONDS:g} s"
