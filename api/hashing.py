"""Passwords, hashed and compared beside the event loop, few at once: logins do not starve the other requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from model import passwords
from model.errors import Unavailable

#: At once, each with 64 MiB and some 60 ms of a core; and those that wait for their turn, about two seconds at most.
THREADS, WAITING = 2, 48
#: Of these, one address has so many: whoever sends more makes nobody else wait for long.
MOST_OF_ONE = 12
T = TypeVar("T")


class Hashing:
    """All methods raise Unavailable where too many wait, or too many of one address."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "passwords")
        self._asked = 0
        self._of = Counter[str]()

    async def hashed(self, password: str, *, address: str) -> str:
        return await self._run(address, passwords.hashed, password)

    async def matches(self, password: str, kept: str | None, *, address: str) -> bool:
        """As long, whether something is kept or not."""
        return await self._run(address, passwords.matches, password, kept)

    async def problem_of(self, password: str, *known: str, address: str) -> str | None:
        """The list of common passwords takes a while to be read, once."""
        return await self._run(address, passwords.problem_of, password, *known)

    async def _run(self, address: str, function: Callable[..., T], *given: str | None) -> T:
        if self._asked >= THREADS + WAITING or self._of[address] >= MOST_OF_ONE:
            raise Unavailable("too many people log in at this moment; try again")
        self._asked += 1
        self._of[address] += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, function, *given)
        # Counted until it has ended, also where nobody waits for it any more.
        work.add_done_callback(partial(self._ended, address))
        return await asyncio.shield(work)

    def _ended(self, address: str, work: asyncio.Future[T]) -> None:
        self._asked -= 1
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]
        if not work.cancelled():
            work.exception()  # looked at, also where nobody waits

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
