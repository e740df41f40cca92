"""How a group comes to have the members that it should: what is launched and what is deleted next. Pure rules."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

#: A member whose health check fails is replaced when it has been unhealthy for so long.
UNHEALTHY_FOR = dt.timedelta(seconds=30)
#: One that its load balancer finds down is replaced when it has been so, and has run, for so long: without a health
#: check of its own it may still be starting.
DOWN_FOR = dt.timedelta(minutes=2)
#: Where drift is mended, that has so long, before a member whose machine does not run is replaced.
HEAL_FOR = dt.timedelta(seconds=60)
#: A run gives up when so many members have failed, and one more for every ten that are well.
TRIES, ONE_IN = 3, 10
#: After a failed run the group is left alone for the first, then for twice as long each time, at most the second.
PAUSE, LONGEST_PAUSE = dt.timedelta(seconds=10), dt.timedelta(minutes=10)

#: ``coming``: its launch is under way; ``up``: it is there, and not (yet) well; ``ready``: it counts as available;
#: ``failed``: it is to be replaced; ``going``: it is being deleted.
Condition = Literal["coming", "up", "ready", "failed", "going"]
_RANK = {"coming": 0, "up": 1, "ready": 2}


class Member(NamedTuple):
    id: UUID
    revision: int
    condition: Condition
    host: UUID | None = None


class Wish(NamedTuple):
    """What the group should be. ``rolls``: members of another revision are replaced, never with more than ``surge``
    beyond ``desired``, nor with fewer ready ones than ``unavailable`` below it. ``gates``: it is done only when all are
    ready. ``nothing``: all members go."""

    desired: int
    revision: int
    rolls: bool = True
    gates: bool = False
    surge: int = 1
    unavailable: int = 0
    nothing: bool = False


class Choice(NamedTuple):
    """What is done now. ``waits``: something is under way, or not ready yet: look again."""

    launch: int
    delete: list[UUID]
    waits: bool

    @property
    def is_done(self) -> bool:
        return not (self.launch or self.delete or self.waits)


def choose(wish: Wish, members: Sequence[Member], at_once: int, *, launches: bool = True) -> Choice:
    """So that at most ``at_once`` launches are under way, and as many deletions. Repeated until it ``is_done``, it
    leads to what is wished.

    ``launches`` False: none any more (too many have failed).
    """
    coming = {member.id for member in members if member.condition == "coming"}
    going = sum(member.condition == "going" for member in members)
    failed = [member.id for member in members if member.condition == "failed"]
    live = [member for member in members if member.condition in _RANK]
    # Each has a room of its own: what drains may take an hour, and nobody waits for that to have more.
    room, waits = max(0, at_once - going), bool(coming or going)
    if wish.nothing:
        gone, _ = _fitting(failed + [member.id for member in live], room, coming)
        return Choice(0, gone, waits)
    delete, room = _fitting(failed, room, coming)
    current = [member for member in live if member.revision == wish.revision]
    if wish.rolls and len(current) < len(live):
        missing = min(wish.desired - len(current), wish.desired + wish.surge - len(live))
        surplus = _replaced(wish, live, current)
        # Without launches only what is not ready yet can still lead on.
        waits = waits or launches or any(member.condition == "up" for member in current)
    else:
        missing = wish.desired - len(live)
        surplus = _surplus(live, min(-missing, at_once), wish.revision)
        waits = waits or (wish.gates and any(member.condition == "up" for member in live))
    replaced, _ = _fitting(surplus, room, coming)
    delete += replaced
    # Launches that are called off become deletions, beyond the room of these: never more than both rooms in all.
    under_way = going + len(coming.union(delete))
    room = max(0, min(at_once - len(coming), 2 * at_once - under_way))
    return Choice(min(max(0, missing), room) if launches else 0, delete, waits)


def _fitting(ids: list[UUID], room: int, coming: set[UUID]) -> tuple[list[UUID], int]:
    """As many of them as there is room for, and what is left of it. Of what is ``coming`` the launch is called off: it
    takes no room beside that."""
    chosen = []
    for id in ids:
        if id in coming or room > 0:
            chosen.append(id)
            room -= id not in coming
    return chosen, room


def _replaced(wish: Wish, live: list[Member], current: list[Member]) -> list[UUID]:
    """Members of other revisions that may go now: first those that serve nobody, then ready ones, as far as others
    are ready."""
    least = wish.desired - wish.unavailable
    unready = sum(member.condition != "ready" for member in current)
    spare = max(0, len(live) - least - unready)
    old = [member for member in live if member.revision != wish.revision]
    idle = _surplus([member for member in old if member.condition != "ready"], spare, wish.revision)
    ready = sum(member.condition == "ready" for member in live)
    most = max(0, min(ready - least, spare - len(idle)))
    return idle + _surplus([member for member in old if member.condition == "ready"], most, wish.revision)


def _surplus(members: Iterable[Member], number: int, revision: int) -> list[UUID]:
    """Which go first: those of another revision, oldest first; those that serve nobody yet; then from the host that has
    most of them, the newest first."""
    left = list(members)
    of_host = Counter(member.host for member in left)
    chosen: list[UUID] = []
    while left and len(chosen) < number:
        first = min(
            left,
            key=lambda member: (
                *(member.revision == revision, member.revision, _RANK[member.condition]),
                *(-of_host[member.host], -member.id.int),  # ids are in the order of their making
            ),
        )
        left.remove(first)
        of_host[first.host] -= 1
        chosen.append(first.id)
    return chosen


#: Of members that do not run. One that somebody stopped or paused counts as it is.
_NOT_RUNNING: dict[str, Condition] = {
    **{"deleting": "going", "error": "failed", "pending": "coming"},
    **dict.fromkeys(("stopped", "paused"), "ready"),
}


def condition(  # one row of an instance, in plain values
    *,
    status: str,
    container_id: str | None,
    drift: dict[str, Any] | None,
    health: str | None,
    health_at: dt.datetime | None,
    health_check: object,
    updated_at: dt.datetime,
    heals: bool,
    min_ready: dt.timedelta,
    now: dt.datetime,
) -> Condition:
    """How a member is. ``heals``: its project mends drift."""
    if status == "provisioning" and container_id is None:
        return "coming"
    if status != "running":
        return _NOT_RUNNING.get(status, "up")
    if drift is not None and drift["kind"] in ("missing", "stopped"):
        since = dt.datetime.fromisoformat(drift["detected_at"])
        return "failed" if not heals or now - since > HEAL_FOR else "up"
    if health_check is not None and health != "healthy":
        lasting = health == "unhealthy" and now - (health_at or updated_at) > UNHEALTHY_FOR
        return "failed" if lasting else "up"
    return "ready" if now - updated_at >= min_ready else "up"


def gives_up(failures: int, members: Sequence[Member]) -> bool:
    """Whether a run launches no more, when so many of what it launched have failed."""
    return failures >= TRIES + sum(member.condition == "ready" for member in members) // ONE_IN


def backoff(failures: int) -> dt.timedelta:
    """How long a group is left alone after so many failed runs in a row."""
    return min(PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE)


def steps(max_surge: int | str, max_unavailable: int | str, desired: int) -> tuple[int, int]:
    """Both as numbers of members: ``3``, or ``"25%"`` of those that are desired, of the first rounded up, of the second
    down. Not both nothing: no member could ever be replaced."""
    surge, unavailable = _share(max_surge, desired, up=True), _share(max_unavailable, desired, up=False)
    return surge, unavailable or (0 if surge else 1)


def _share(given: int | str, desired: int, *, up: bool) -> int:
    if isinstance(given, int):
        return given
    percent = int(given.removesuffix("%")) * desired
    return -(-percent // 100) if up else percent // 100
