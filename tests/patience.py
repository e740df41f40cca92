"""How long tests wait, on a machine that has more to do than theirs."""

from __future__ import annotations

import os
import time

#: Processes that wait for each processor, from which on all takes longer than on a machine that is free.
QUEUE, MOST = 1.5, 6.0


def is_over(began: float, seconds: float) -> bool:
    """Whether ``seconds`` have passed since ``began`` (monotonic): up to six times as many where the machine is
    overloaded, as its load average tells. What is promised within a time is measured, and not waited for with this."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return time.monotonic() - began > seconds * min(MOST, max(1.0, load / QUEUE))
