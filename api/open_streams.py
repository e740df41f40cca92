"""The streams that are open in this API process: how many a project may have, and that those end whose callers may not
have them any more: a key was revoked, a binding removed, a user or a project deactivated."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.authentication import still_may
from api.caller import Caller, Who
from model.errors import TooManyStreams

#: Between two looks at the callers of open streams; while the database is away, streams go on.
LOOK_SECONDS = 15.0
log = structlog.get_logger()


class Held:
    """The place of one stream."""

    def __init__(self, let_go: Callable[[Held], None]) -> None:
        #: Set where who opened the stream may not have it any more.
        self.revoked = asyncio.Event()
        self._let_go: Callable[[Held], None] | None = let_go

    def close(self) -> None:
        """Give the place back; more than once does nothing more."""
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go(self)


class OpenStreams:
    """``most`` of a project; of those of ``events``, which cost little, another number."""

    def __init__(self, engine: AsyncEngine, most: int, *, events: int) -> None:
        self._engine = engine
        self._most = {False: most, True: events}
        self._count: Counter[tuple[UUID, bool]] = Counter()
        self._by_right: defaultdict[tuple[Who, str], set[Held]] = defaultdict(set)

    def hold(self, caller: Caller, permission: str, *, events: bool = False) -> Held:
        """Raises TooManyStreams where the caller's project has as many as it may."""
        counted, right = (caller.project_id, events), (caller.who, permission)
        if self._count[counted] >= self._most[events]:
            raise TooManyStreams(
                f"the project has {self._most[events]} {'streams of events' if events else 'streams'} open, as many "
                "as it may: close one, or try again",
                limit=self._most[events],
            )

        def let_go(held: Held) -> None:
            self._count[counted] -= 1
            self._by_right[right].discard(held)
            if not self._count[counted]:
                del self._count[counted]
            if not self._by_right[right]:
                del self._by_right[right]

        held = Held(let_go)
        self._count[counted] += 1
        self._by_right[right].add(held)
        return held

    @property
    def count(self) -> int:
        return self._count.total()

    async def run(self) -> None:
        """Look at the callers, while the process lives."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("streams.callers_unknown", error=str(error).partition("\n")[0])

    async def look(self) -> None:
        for who, permission in list(self._by_right):
            async with self._engine.connect() as connection:
                if await still_may(connection, who, permission):
                    continue
            # Its last stream may have closed meanwhile.
            ended = self._by_right.get((who, permission))
            if ended:
                log.warning("streams.revoked", actor=who.actor, streams=len(ended))
            for held in ended or ():
                held.revoked.set()
