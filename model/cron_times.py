"""When cron jobs run: what their schedules mean, and what Temporal is told of it.

Temporal reads calendars in time zones too, and around a change of the clocks it leaves times out, or takes them twice.
So it is told times in UTC, for a while ahead: those that are shown are those at which it starts runs.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

SHOWN = 10
LONGEST = 100
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = 5
_EVERY = re.compile(r"@every (?=[0-9])(?:([0-9]{1,4})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?")
LEAST_EVERY, MOST_EVERY = dt.timedelta(seconds=1), dt.timedelta(days=366)
#: Temporal is told the times of so many days ahead, or this many of them; of what is rare, some in any case.
AHEAD, MOST_AHEAD, LEAST_AHEAD = dt.timedelta(days=400), 2000, 2 * SHOWN
#: Temporal knows no later ones.
LAST_YEAR = 2100
#: Of the times that it was told, it has come so far when it is told more.
RENEWED = 0.5
#: Schedules whose next times this process keeps, with when these were found.
MOST_KEPT = 10_000
_kept: dict[tuple[str, str], tuple[dt.datetime, list[dt.datetime]]] = {}


class Calendar(NamedTuple):
    """Every combination of these, in UTC."""

    year: int
    month: int
    days: tuple[int, ...]
    hours: tuple[int, ...]
    minutes: tuple[int, ...]


class Plan(NamedTuple):
    """What Temporal is told. ``good_until``: when it is to be told more; None: never."""

    every: dt.timedelta | None
    calendars: list[Calendar]
    good_until: dt.datetime | None


_RANGES = "minute (0-59) hour (0-23) day (1-31) month (1-12) weekday (0-7, or sun to sat)"


def check(schedule: str) -> None:
    """Raises ValueError where it is no schedule, or one that never comes."""
    first = next(iter(times(schedule, "UTC", dt.datetime.now(dt.UTC))), None)
    if first is None or first.year > LAST_YEAR:
        raise ValueError("no such time ever comes")


@functools.cache
def _zones() -> frozenset[str]:
    """IANA's database is read from end to end for it."""
    return frozenset(available_timezones())


def check_zone(name: str) -> None:
    """Raises ValueError where IANA's database has no such time zone."""
    if name not in _zones():
        raise ValueError("expected a time zone of IANA's database, as Europe/Berlin")


def times(schedule: str, time_zone: str, after: dt.datetime) -> Iterator[dt.datetime]:
    """The times after this one, in UTC. Raises ValueError.

    As Debian's cron reads them (cron(8)): where the clocks go forward, a time that there is not is the first after the
    gap; where they go back, a time that there is twice is the first, and what names no hour, or any minute, goes on.
    """
    every = interval(schedule)
    if every is not None:
        return _intervals(every, after)
    fields = _NAMED.get(schedule, schedule)
    if len(fields.split()) != _FIELDS:
        raise ValueError("expected five fields (minute hour day month weekday), @hourly and the like, or @every 10s")
    try:
        return _utc(CronSim(fields, after.astimezone(ZoneInfo(time_zone))))
    except CronSimError as error:
        raise ValueError(f"{str(error).lower()}: expected {_RANGES}") from None


def interval(schedule: str) -> dt.timedelta | None:
    """Of ``@every 1h30m10s``; None: it is another kind. Raises ValueError."""
    if not schedule.startswith("@every"):
        return None
    found = _EVERY.fullmatch(schedule)
    if found is None:
        raise ValueError("expected @every with hours, minutes, seconds, as @every 1h30m or @every 10s")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    every = dt.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if not LEAST_EVERY <= every <= MOST_EVERY:
        raise ValueError("expected between one second and 366 days")
    return every


def next_runs(schedule: str, time_zone: str, after: dt.datetime) -> list[dt.datetime]:
    """What is rare takes long to be found, and is asked for with every list of jobs: it is kept until it comes."""
    asked = schedule, time_zone
    since, found = _kept.get(asked, (None, []))
    if since is None or after < since or (found and found[0] <= after):
        found = list(takewhile(lambda time: time.year <= LAST_YEAR, islice(times(*asked, after), SHOWN)))
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        _kept[asked] = after, found
    return list(found)


def plan(schedule: str, time_zone: str, after: dt.datetime) -> Plan:
    """What Temporal is told after this time."""
    every = interval(schedule)
    if every is not None:
        return Plan(every, [], None)
    found: list[dt.datetime] = []
    for time in islice(times(schedule, time_zone, after), MOST_AHEAD):
        if found and (time.year > LAST_YEAR or (time > after + AHEAD and len(found) >= LEAST_AHEAD)):
            break
        found.append(time)
    return Plan(None, calendars(found), after + (found[-1] - after) * RENEWED)


def calendars(found: Iterable[dt.datetime]) -> list[Calendar]:
    """These times, and no others, in few words."""
    minutes: dict[tuple[int, int, int, int], set[int]] = defaultdict(set)
    for time in found:
        minutes[time.year, time.month, time.day, time.hour].add(time.minute)
    hours: dict[tuple[int, int, int, tuple[int, ...]], set[int]] = defaultdict(set)
    for (year, month, day, hour), some in minutes.items():
        hours[year, month, day, tuple(sorted(some))].add(hour)
    days: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], set[int]] = defaultdict(set)
    for (year, month, day, these), some in hours.items():
        days[year, month, tuple(sorted(some)), these].add(day)
    return [Calendar(year, month, tuple(sorted(some)), at, these) for (year, month, at, these), some in days.items()]


def _utc(local: Iterator[dt.datetime]) -> Iterator[dt.datetime]:
    """Each once, though two times of the clock may be the same moment."""
    before: dt.datetime | None = None
    for time in local:
        now = time.astimezone(dt.UTC)
        if before is None or now > before:
            yield now
            before = now


def _intervals(every: dt.timedelta, after: dt.datetime) -> Iterator[dt.datetime]:
    """Counted from 1970, as Temporal does."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    time = epoch + ((after - epoch) // every + 1) * every
    while True:
        yield time
        time += every
