"""How long instances live and run: what counts as doing nothing."""

from __future__ import annotations

import datetime as dt

#: At least so much of one CPU, in percent, is doing something.
IDLE_CPU_PERCENT = 1.0
#: At least so many bytes in ten seconds, received and sent together, are doing something (1 KiB a second).
IDLE_BYTES = 10_240
#: A longer time without samples counts as activity. A shorter one, as while an agent is started again, does not.
UNKNOWN = dt.timedelta(seconds=60)
#: Who is stopped has a sample that began no longer ago: an agent that is started again has the next by then.
FRESH = dt.timedelta(seconds=45)
#: An open stream says this often that it is open.
MARK_SECONDS = 5.0
#: A delete or stop that failed is ordered again after this, then after twice as long each time, at most the second;
#: while its host is silent, the third.
AGAIN, AT_MOST, AT_MOST_SILENT = (dt.timedelta(minutes=minutes) for minutes in (1, 5, 30))
#: Seconds that may be asked for.
LEAST_IDLE, LONGEST = 10, 10 * 365 * 24 * 3600
