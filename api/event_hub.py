"""Events, read from the database once per project and process, and handed to everybody who follows them.

Each project that somebody follows has a *feed*: one reader, and the last events that it read, in commit order.
Followers take from there, each at its own pace. One that begins further back reads by itself until it has come to
what the feed holds, and goes on from there: both are the same order, so nothing is missed or seen twice. One that
is so slow that the feed has moved past it is cut; it can come back, and resumes where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.bells import Bells, wait_for
from api.caller import ENTER
from model.errors import CairnError, Unauthenticated
from model.events import (
    LAST,
    NEWEST_SETTLED,
    Position,
    as_json,
    covers,
    event_order,
    id_of,
    is_covered,
    is_settled,
    position_of,
)
from model.metrics import EVENTS_LAG_SECONDS
from model.workflows import Event

#: What a feed holds at most: events, and bytes of them.
MOST_EVENTS, MOST_BYTES = 1000, 4 << 20
#: What a follower takes at once, bytes: it may keep them for as long as it takes to send them.
TAKEN_BYTES = 64 << 10
#: How long the reader waits for a follower that does not keep up, before it moves past it.
GRACE_SECONDS = 2.0
#: A reader looks by itself this often: an event may wait for an older transaction to end. Sooner, and ever less
#: soon, after a bell that rang for an event that could not be read yet.
LOOK_SECONDS, SOON_SECONDS = 0.5, 0.02
#: A follower is told this often that nothing has happened.
QUIET_SECONDS = 15
BATCH = 200
log = structlog.get_logger()


class SlowConsumer(CairnError):
    """The stream was cut, as its reader was too slow: it may come again, and resumes where it was."""

    code, status, retryable = "slow_consumer", 429, True


class Item(NamedTuple):
    """An event on its way out. ``frame`` is its server-sent form, whose ``data`` begins at ``data_at``."""

    position: Position
    type: str
    resource_type: str
    resource_id: UUID
    frame: bytes
    data_at: int
    #: When its transaction began.
    began: float = 0.0

    @property
    def data(self) -> bytes:
        return self.frame[self.data_at : -2]


class Wanted(NamedTuple):
    """Which of a project's events somebody follows."""

    resource_type: str | None = None
    resource_id: UUID | None = None
    types: tuple[str, ...] = ()

    def has(self, item: Item) -> bool:
        return (
            self.resource_type in (None, item.resource_type)
            and self.resource_id in (None, item.resource_id)
            and covers(self.types, item.type)
        )

    def where(self) -> list[ColumnElement[bool]]:
        found = [is_covered(self.types)] if self.types else []
        if self.resource_type is not None:
            found.append(Event.resource_type == self.resource_type)
        if self.resource_id is not None:
            found.append(Event.resource_id == self.resource_id)
        return found


class Follower:
    """One client's place in a feed: ``next`` is the number of the item that it takes next.

    It may have read further than the feed: from another process, or by itself. It takes nothing up to ``after``.
    """

    def __init__(self, next: int, after: Position) -> None:
        self.next = next
        self.after = after
        self.awake = asyncio.Event()
        self.waited_for_since: float | None = None


class Feed:
    """The newest events of one project. Items are numbered; the oldest that is held has the number ``first``."""

    def __init__(self, start: Position) -> None:
        #: All that is held comes after ``start``; all up to ``end`` was read.
        self.start = self.end = start
        self.first = 0
        self.users = 0
        self.followers: set[Follower] = set()
        self.reader: asyncio.Task[None] | None = None
        self._items: deque[Item] = deque()
        self._bytes = 0

    @property
    def next(self) -> int:
        return self.first + len(self._items)

    def follow(self, position: Position) -> Follower:
        """A place right behind ``position``, which is not before ``start``."""
        follower = Follower(self.first + sum(item.position <= position for item in self._items), position)
        self.followers.add(follower)
        return follower

    def take(self, follower: Follower, wanted: Wanted) -> list[Item]:
        """The next items that are wanted, some of them. Raises SlowConsumer."""
        if follower.next < self.first:
            raise SlowConsumer("too slow for the events that come: resume after the last one that arrived")
        taken: list[Item] = []
        size = 0
        while follower.next < self.next and size < TAKEN_BYTES:
            # Counted from the newer end, which is the near one.
            item = self._items[follower.next - self.next]
            follower.next += 1
            if item.position > follower.after and wanted.has(item):
                taken.append(item)
                size += len(item.frame)
        if follower.next == self.next:
            follower.waited_for_since = None
        return taken

    async def put(self, item: Item) -> None:
        """Add the newest; where the oldest must go for it, wait a little for those who have not taken that."""
        while self._items and (len(self._items) >= MOST_EVENTS or self._bytes + len(item.frame) > MOST_BYTES):
            while self._is_waited_for():
                self.wake()
                await asyncio.sleep(SOON_SECONDS)
            oldest = self._items.popleft()
            self._bytes -= len(oldest.frame)
            self.first += 1
            self.start = oldest.position
        self._items.append(item)
        self._bytes += len(item.frame)
        self.end = item.position

    def wake(self) -> None:
        for follower in self.followers:
            follower.awake.set()

    def _is_waited_for(self) -> bool:
        now = asyncio.get_running_loop().time()
        found = False
        for follower in self.followers:
            if follower.next == self.first:
                if follower.waited_for_since is None:
                    follower.waited_for_since = now
                found = found or now - follower.waited_for_since < GRACE_SECONDS
        return found


class Hub:
    """The feeds of an API process; there is one while somebody follows its project."""

    def __init__(self, engine: AsyncEngine, bells: Bells, stopping: asyncio.Event) -> None:
        self._engine = engine
        self._bells = bells
        self._stopping = stopping
        self._feeds: dict[UUID, Feed] = {}

    async def run(self) -> None:
        """Wake everybody when the process is to stop, so that their streams end."""
        await self._stopping.wait()
        for feed in self._feeds.values():
            feed.wake()

    async def follow(
        self,
        project_id: UUID,
        wanted: Wanted,
        position: Position,
        end: Position,
        revoked: asyncio.Event | None = None,
    ) -> AsyncGenerator[tuple[Position | None, list[Item]], None]:
        """What is wanted of a project's events after ``position``, and then as they come, until the process stops.

        Some at a time; none, with how far it has read, when nothing has come for a while. ``end``: up to where
        events are known to be settled. Raises SlowConsumer, and Unauthenticated where the key was ``revoked``.
        """
        revoked = revoked or asyncio.Event()
        with self._used(project_id, end) as feed, contextlib.ExitStack() as watched:
            while position < feed.start and self._goes_on(revoked):
                position, items = await self._read_patiently(project_id, wanted, position)
                if items:
                    yield None, items
            follower = feed.follow(position)
            watching = asyncio.create_task(revoked.wait())
            watching.add_done_callback(lambda _: follower.awake.set())
            watched.callback(watching.cancel)
            try:
                while self._goes_on(revoked):
                    if items := feed.take(follower, wanted):
                        yield None, items
                    elif follower.next == feed.next and not await wait_for(follower.awake, QUIET_SECONDS):
                        yield (feed.end if follower.next == feed.next else None), []
            finally:
                feed.followers.discard(follower)

    def _goes_on(self, revoked: asyncio.Event) -> bool:
        if revoked.is_set():
            raise Unauthenticated("the API key was revoked")
        return not self._stopping.is_set()

    @contextlib.contextmanager
    def _used(self, project_id: UUID, end: Position) -> Iterator[Feed]:
        feed = self._feeds.get(project_id)
        if feed is None:
            feed = self._feeds[project_id] = Feed(end)
            feed.reader = asyncio.create_task(self._read_on(project_id, feed))
        feed.users += 1
        try:
            yield feed
        finally:
            feed.users -= 1
            if not feed.users:
                del self._feeds[project_id]
                if feed.reader is not None:
                    feed.reader.cancel()

    @property
    def followers(self) -> int:
        return sum(len(feed.followers) for feed in self._feeds.values())

    async def _read_on(self, project_id: UUID, feed: Feed) -> None:
        """Read what comes, each event once, for all followers, whatever goes wrong: nobody else would."""
        while True:
            try:
                await self._read_all(project_id, feed)
            except Exception:
                log.exception("events.reader_failed", project_id=str(project_id))
                await asyncio.sleep(LOOK_SECONDS)

    async def _read_all(self, project_id: UUID, feed: Feed) -> None:
        pause = LOOK_SECONDS
        with self._bells.listening("") as bell:
            while True:
                _, items = await self._read_patiently(project_id, Wanted(), feed.end)
                for item in items:
                    EVENTS_LAG_SECONDS.observe(max(time.time() - item.began, 0))
                    await feed.put(item)
                if items:
                    feed.wake()
                    pause = SOON_SECONDS
                if len(items) == BATCH:
                    continue
                # What comes in quick succession is read together.
                await asyncio.sleep(SOON_SECONDS)
                rung = await wait_for(bell, pause)
                pause = SOON_SECONDS if rung else min(2 * pause, LOOK_SECONDS)

    async def _read_patiently(
        self, project_id: UUID, wanted: Wanted, position: Position
    ) -> tuple[Position, list[Item]]:
        while True:
            try:
                return await self._read(project_id, wanted, position)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("events.database_away", error=str(error).partition("\n")[0])
                if self._stopping.is_set():
                    return position, []
                await asyncio.sleep(LOOK_SECONDS)

    async def _read(self, project_id: UUID, wanted: Wanted, position: Position) -> tuple[Position, list[Item]]:
        """Some events after ``position``, and how far that is."""
        after = select(Event.__table__).where(Event.project_id == project_id, is_settled, event_order > position)
        query = after.where(*wanted.where()).order_by(*event_order).limit(BATCH)
        async with self._engine.begin() as connection:
            await connection.execute(ENTER, {"project": str(project_id)})
            epoch, settled = (await connection.execute(NEWEST_SETTLED)).one()
            rows = (await connection.execute(query)).all()
        items = []
        for row in rows:
            head = b"id: %s\nevent: %s\ndata: " % (id_of(position_of(row)).encode(), row.type.encode())
            frame = b"%s%s\n\n" % (head, as_json(row))
            began = row.created_at.timestamp()
            items.append(Item(position_of(row), row.type, row.resource_type, row.resource_id, frame, len(head), began))
        if items:
            position = items[-1].position
        if len(items) < BATCH:
            # There is nothing else up to what was settled before the rows were read.
            position = max(position, (epoch, settled, LAST))
        return position, items
