"""When cron jobs run: the clocks going forward and back, leap days, and what is no schedule."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from model import cron_times


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def times(schedule: str, zone: str, after: str, count: int) -> list[str]:
    """In UTC, as day and time."""
    found = islice(cron_times.times(schedule, zone, at(after)), count)
    return [time.strftime("%d %H:%M") for time in found]


@pytest.mark.parametrize(
    ("schedule", "zone", "after", "expected"),
    [
        # Forward: from 2:00 to 3:00 of the 28th, 1:00 in UTC; a time that is not there is the first after the gap.
        ("30 2 * * *", "Europe/Berlin", "2027-03-27T02:00", ["28 01:00", "29 00:30"]),
        ("0 3 * * *", "Europe/Berlin", "2027-03-27T03:00", ["28 01:00", "29 01:00"]),
        ("0 1 * * *", "Europe/Berlin", "2027-03-27T03:00", ["28 00:00", "28 23:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2027-03-28T00:00", ["28 00:30", "28 01:00", "28 01:30"]),
        ("30 2,3 * * *", "Europe/Berlin", "2027-03-27T12:00", ["28 01:00", "28 01:30", "29 00:30"]),
        ("0 2,3 * * *", "Europe/Berlin", "2027-03-27T12:00", ["28 01:00", "29 00:00"]),  # the same moment, once
        ("30 2 * * *", "America/New_York", "2027-03-13T12:00", ["14 07:00", "15 06:30"]),
        # Back: from 3:00 to 2:00 of the 31st, 1:00 in UTC; a time that is there twice is the first.
        ("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00", ["31 00:30", "01 01:30"]),
        ("0 1 * * *", "Europe/Berlin", "2027-10-30T12:00", ["30 23:00", "01 00:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2027-10-30T23:45", ["31 00:00", "31 00:30", "31 01:00", "31 01:30"]),
        ("30 1-3 * * *", "Europe/Berlin", "2027-10-30T12:00", ["30 23:30", "31 00:30", "31 02:30"]),
        ("30 1 * * *", "America/New_York", "2027-11-06T12:00", ["07 05:30", "08 06:30"]),
        ("*/20 * * * *", "America/New_York", "2027-11-07T05:30", ["07 05:40", "07 06:00", "07 06:20", "07 06:40"]),
        # Half an hour forward, half a world away.
        ("15 2 * * *", "Australia/Lord_Howe", "2027-10-02T12:00", ["02 15:30", "03 15:15"]),
        ("0 0 29 2 *", "UTC", "2026-11-21T00:00", ["29 00:00"] * 4),
        ("0 12 13 * 5", "UTC", "2027-08-01T00:00", ["06 12:00", "13 12:00", "20 12:00"]),  # either day will do
        ("0 0 * * 7", "UTC", "2027-01-01T00:00", ["03 00:00", "10 00:00"]),
        ("@monthly", "Asia/Kolkata", "2027-01-02T00:00", ["31 18:30", "28 18:30"]),
        ("@every 1h30m", "Europe/Berlin", "2027-03-28T00:10", ["28 01:30", "28 03:00"]),
    ],
)
def test_times_are_those_of_the_clock_on_the_wall(schedule: str, zone: str, after: str, expected: list[str]) -> None:
    assert times(schedule, zone, after, len(expected)) == expected


def test_leap_days_are_those_that_there_are() -> None:
    schedule, since = ("0 0 29 2 *", "Europe/Berlin"), at("2092-03-01T00:00")
    assert [time.year for time in islice(cron_times.times(*schedule, since), 3)] == [2096, 2104, 2108]
    # Temporal knows none after 2100.
    assert [time.year for time in cron_times.next_runs(*schedule, since)] == [2096]


@pytest.mark.parametrize("every", [1, 7, 3600])
def test_intervals_are_counted_from_1970(every: int) -> None:
    found = cron_times.next_runs(f"@every {every}s", "UTC", at("2027-01-01T00:00") + dt.timedelta(milliseconds=1))
    assert all(time.timestamp() % every == 0 for time in found)
    assert found[0] - at("2027-01-01T00:00") <= dt.timedelta(seconds=every)


@pytest.mark.parametrize(
    "schedule",
    [
        *(
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a b c d e",
        ),
        *("0 0 30 2 *", "0 0 31 4 *", "*/0 * * * *", "5-1 * * * *", "@never", "@every", "@every 0s", "@every 500ms"),
        *("a b c d e", "@every 9000h", "@every 1s1h", "@every -5s", "TZ=UTC 0 0 * * *"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError):
        cron_times.check(schedule)


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "europe/berlin", "UTC+1", "posixrules"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError):
        cron_times.check_zone(zone)


@pytest.mark.parametrize(
    ("schedule", "zone"),
    [
        ("30 2 * * *", "Europe/Berlin"),
        ("* * * * *", "America/New_York"),
        ("*/15 9-17 * * 1-5", "Australia/Lord_Howe"),
        ("0 0 29 2 *", "UTC"),
        ("17 3 1-7,L * 0", "Asia/Kolkata"),
    ],
)
def test_calendars_are_the_times_and_no_others(schedule: str, zone: str) -> None:
    after = at("2027-02-20T13:07")
    plan = cron_times.plan(schedule, zone, after)
    told = sorted(
        dt.datetime(one.year, one.month, day, hour, minute, tzinfo=dt.UTC)
        for one in plan.calendars
        for day in one.days
        for hour in one.hours
        for minute in one.minutes
    )
    assert told == list(islice(cron_times.times(schedule, zone, after), len(told)))
    assert (len(told) >= cron_times.LEAST_AHEAD or told[-1].year > 2090) and len(plan.calendars) < 60
    assert plan.good_until is not None and after < plan.good_until < told[-1]


def test_next_times_are_found_once_and_anew_when_the_first_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dt.datetime] = []
    found = cron_times.times

    def counted(schedule: str, zone: str, after: dt.datetime) -> Iterator[dt.datetime]:
        asked.append(after)
        return found(schedule, zone, after)

    monkeypatch.setattr(cron_times, "times", counted)
    # 29 February on a Sunday: some centuries until there are ten, of which Temporal knows none after 2100.
    rare = ("0 0 29 2 */7", "Europe/Paris")
    now = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    first = cron_times.next_runs(*rare, now)
    assert [time.astimezone(ZoneInfo("Europe/Paris")).year for time in first] == [2032, 2060, 2088]
    assert cron_times.next_runs(*rare, now + dt.timedelta(days=700)) == first and len(asked) == 1
    assert cron_times.next_runs(*rare, first[0]) == first[1:] and len(asked) == 2
    assert cron_times.next_runs(*rare, now) == first and len(asked) == 3
