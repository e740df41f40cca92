"""What a group launches and deletes next: simulated to its end, from wherever it is."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.scaling import (
    HEAL_FOR,
    LONGEST_PAUSE,
    ONE_IN,
    PAUSE,
    TRIES,
    UNHEALTHY_FOR,
    Condition,
    Member,
    Wish,
    backoff,
    choose,
    condition,
    gives_up,
    steps,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LONG_AGO = NOW - dt.timedelta(days=1)
HOSTS = tuple(UUID(int=1000 + n) for n in range(3))
CONDITIONS: tuple[Condition, ...] = ("coming", "up", "ready", "failed", "going")


def group(*conditions: Condition, revision: int = 1, first: int = 1, host: UUID | None = None) -> list[Member]:
    return [Member(UUID(int=first + n), revision, one, host) for n, one in enumerate(conditions)]


def ids(*numbers: int) -> list[UUID]:
    return [UUID(int=number) for number in numbers]


members = st.lists(
    st.builds(
        lambda revision, condition, host: (revision, condition, host),
        st.integers(1, 3),
        st.sampled_from(CONDITIONS),
        st.sampled_from((None, *HOSTS)),
    ),
    max_size=12,
).map(lambda rows: [Member(UUID(int=n + 1), *row) for n, row in enumerate(rows)])
wishes = st.builds(
    lambda desired, revision, rolls, gates, surge, unavailable, nothing: Wish(
        desired, revision, rolls, gates and rolls, surge, unavailable or (0 if surge else 1), nothing
    ),
    *(st.integers(0, 8), st.integers(1, 3), st.booleans(), st.booleans()),
    *(st.integers(0, 4), st.integers(0, 4), st.booleans()),
)


class Simulated:
    """A group whose launches and deletes end when ``pass_time`` says so."""

    def __init__(self, found: list[Member]) -> None:
        self.members = list(found)
        self.made = len(found)

    def act(self, wish: Wish, room: int) -> Any:
        choice = choose(wish, self.members, room)
        assert len(set(choice.delete)) == len(choice.delete)
        assert choice.launch >= 0
        coming, going = self.count("coming"), self.count("going")
        called_off = sum(member.condition == "coming" for member in self.members if member.id in choice.delete)
        assert all(member.condition != "going" for member in self.members if member.id in choice.delete)
        self.members = [
            member._replace(condition="going") if member.id in choice.delete else member for member in self.members
        ]
        for _ in range(choice.launch):
            self.made += 1
            self.members.append(Member(UUID(int=self.made), wish.revision, "coming"))
        assert self.count("coming") <= max(room, coming)
        assert self.count("going") <= max(room, going) + called_off
        assert not choice.launch or self.count("coming", "going") <= 2 * room
        return choice

    def pass_time(self, chance: random.Random) -> None:
        """Some of what is under way ends."""
        later = {"coming": "up", "up": "ready"}
        left = []
        for member in self.members:
            if chance.random() < 0.5:
                if member.condition == "going":
                    continue
                left.append(member._replace(condition=later.get(member.condition, member.condition)))
            else:
                left.append(member)
        self.members = left

    def count(self, *conditions: str) -> int:
        return sum(member.condition in conditions for member in self.members)


@settings(max_examples=200, deadline=None)
@given(found=members, wish=wishes, room=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_it_comes_to_what_is_wished_from_wherever_it_is(found: list[Member], wish: Wish, room: int, seed: int) -> None:
    simulated, chance = Simulated(found), random.Random(seed)  # noqa: S311 - to be repeated
    for _ in range(400):
        if simulated.act(wish, room).is_done:
            break
        simulated.pass_time(chance)
    else:
        raise AssertionError(f"it does not come to an end: {simulated.members}")
    assert not simulated.count("failed", "going", "coming")
    assert len(simulated.members) == (0 if wish.nothing else wish.desired)
    if wish.rolls:
        assert {member.revision for member in simulated.members} <= {wish.revision}
    if wish.gates and not wish.nothing:
        assert simulated.count("ready") == len(simulated.members)


@settings(max_examples=200, deadline=None)
@given(
    old=st.integers(1, 8),
    surge=st.integers(0, 4),
    unavailable=st.integers(0, 4),
    room=st.integers(1, 16),
    seed=st.integers(0, 2**32),
)
def test_replacing_keeps_within_surge_and_unavailable(
    old: int, surge: int, unavailable: int, room: int, seed: int
) -> None:
    simulated, chance = Simulated(group(*["ready"] * old)), random.Random(seed)  # noqa: S311 - to be repeated
    wish = Wish(old, 2, rolls=True, gates=True, surge=surge, unavailable=unavailable or (0 if surge else 1))
    for _ in range(400):
        done = simulated.act(wish, room).is_done
        assert simulated.count("ready") >= old - wish.unavailable
        assert simulated.count("ready", "up", "coming") <= old + surge
        if done:
            return
        simulated.pass_time(chance)
    raise AssertionError("it does not come to an end")


def test_scales_out_within_its_room() -> None:
    assert choose(Wish(30, 1), [], 16) == (16, [], False)
    assert choose(Wish(30, 1), group(*["coming"] * 16), 16) == (0, [], True)
    assert choose(Wish(2, 1), group("ready", "ready"), 16).is_done


def test_draining_members_keep_nobody_from_growing() -> None:
    found = [*group(*["going"] * 20), *group(*["ready"] * 5, first=21)]
    assert choose(Wish(25, 1), found, 20) == (20, [], True)
    called_off = group(*["going"] * 35)
    assert choose(Wish(25, 1), called_off, 20).launch == 5, "launches that were called off are many"


def test_launches_under_way_keep_no_failed_member_from_being_deleted() -> None:
    found = [*group(*["ready"] * 3), *group(*["coming"] * 16, revision=2, first=4)]
    assert choose(Wish(16, 2, surge=16), [*found, *group("failed", first=20)], 16).delete == ids(20)


def test_shrinks_the_oldest_configuration_first_then_what_does_not_serve_then_the_newest_of_the_fullest_host() -> None:
    here, there = HOSTS[:2]
    found = [
        Member(UUID(int=1), 2, "ready", here),
        Member(UUID(int=2), 2, "ready", here),
        Member(UUID(int=3), 2, "ready", there),
        Member(UUID(int=4), 2, "up", there),
        Member(UUID(int=5), 1, "ready", there),
    ]
    wish = Wish(0, 2, rolls=False)
    assert choose(wish, found, 16).delete == ids(5, 4, 2, 3, 1)
    assert choose(wish._replace(desired=3), found, 16).delete == ids(5, 4)
    assert choose(wish, found, 1).delete == ids(5)


def test_what_failed_is_deleted_and_launched_anew() -> None:
    found = group("ready", "failed", "failed")
    assert choose(Wish(3, 1), found, 16) == (2, ids(2, 3), False)
    assert choose(Wish(3, 1), found, 16, launches=False) == (0, ids(2, 3), False)


def test_paused_it_is_kept_at_its_number_and_nothing_else_is_replaced() -> None:
    found = group("ready", "ready")
    assert choose(Wish(2, 2, rolls=False), found, 16).is_done
    assert choose(Wish(3, 2, rolls=False), found, 16).launch == 1


def test_launch_that_is_no_longer_wanted_is_called_off_before_what_runs_is_deleted() -> None:
    assert choose(Wish(1, 1), group("ready", "coming", "coming"), 16).delete == ids(3, 2)


def test_launches_that_hang_keep_no_group_from_its_end() -> None:
    found = group("coming", "coming", "ready")
    assert choose(Wish(0, 1, nothing=True), found, 1).delete == ids(1, 2, 3)


def test_new_members_of_a_configuration_that_fails_replace_nothing() -> None:
    """As long as none of them is ready, all old ones stay."""
    found = [*group(*["ready"] * 4), *group("failed", revision=2, first=5)]
    choice = choose(Wish(4, 2, gates=True, surge=1), found, 16)
    assert (choice.launch, choice.delete) == (1, ids(5))


def test_replacement_that_launches_no_more_ends() -> None:
    found = group(*["ready"] * 4)
    assert choose(Wish(4, 2, gates=True), found, 16, launches=False).is_done
    assert choose(Wish(4, 2, gates=True), [*found, *group("up", revision=2, first=5)], 16, launches=False).waits


def test_member_that_somebody_stopped_keeps_no_replacement_from_its_end() -> None:
    assert member(status="stopped") == member(status="paused") == "ready"


def member(**columns: Any) -> Condition:
    row: dict[str, Any] = {
        "status": "running",
        "container_id": "c",
        "drift": None,
        "health": None,
        "health_at": None,
        "health_check": None,
        "updated_at": LONG_AGO,
        "heals": False,
        "min_ready": dt.timedelta(0),
        "now": NOW,
    }
    return condition(**row | columns)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "ready"),
        ({"status": "pending"}, "coming"),
        ({"status": "provisioning", "container_id": None}, "coming"),
        ({"status": "provisioning"}, "up"),  # it is moving
        ({"status": "restarting"}, "up"),
        ({"status": "error"}, "failed"),
        ({"status": "deleting"}, "going"),
        ({"health_check": {}, "health": "healthy"}, "ready"),
        ({"health_check": {}, "health": "starting"}, "up"),
        ({"health_check": {}, "health": "unhealthy", "health_at": NOW - UNHEALTHY_FOR}, "up"),
        ({"health_check": {}, "health": "unhealthy", "health_at": NOW - 2 * UNHEALTHY_FOR}, "failed"),
        ({"health_check": {}, "health": "unhealthy"}, "failed"),  # since before that was written down
        ({"min_ready": dt.timedelta(seconds=5), "updated_at": NOW}, "up"),
        ({"min_ready": dt.timedelta(seconds=5), "updated_at": NOW - dt.timedelta(seconds=5)}, "ready"),
        ({"drift": {"kind": "stopped", "detected_at": NOW.isoformat()}}, "failed"),
        ({"drift": {"kind": "missing", "detected_at": NOW.isoformat()}}, "failed"),
        ({"drift": {"kind": "changed", "detected_at": LONG_AGO.isoformat()}}, "ready"),
        ({"drift": {"kind": "stopped", "detected_at": NOW.isoformat()}, "heals": True}, "up"),
        ({"drift": {"kind": "stopped", "detected_at": (NOW - 2 * HEAL_FOR).isoformat()}, "heals": True}, "failed"),
    ],
)
def test_how_a_member_is(columns: dict[str, Any], expected: Condition) -> None:
    assert member(**columns) == expected


def test_run_gives_up_after_some_failures_more_of_them_where_many_are_well() -> None:
    assert not gives_up(TRIES - 1, [])
    assert gives_up(TRIES, [])
    many = group(*["ready"] * 5 * ONE_IN)
    assert not gives_up(TRIES + 4, many)
    assert gives_up(TRIES + 5, many)


def test_pause_after_failures_is_doubled_up_to_its_longest() -> None:
    assert [backoff(n) for n in (1, 2, 3)] == [PAUSE, 2 * PAUSE, 4 * PAUSE]
    assert backoff(1000) == LONGEST_PAUSE


def test_shares_are_rounded_so_that_something_can_be_replaced() -> None:
    assert steps("25%", 0, 3) == (1, 0)
    assert steps("25%", "25%", 8) == (2, 2)
    assert steps(0, "10%", 3) == (0, 1)
    assert steps(2, 1, 5) == (2, 1)
    assert steps("25%", 0, 0) == (0, 1)
