"""Terminals with names: they go on while nobody looks, and whoever comes back sees what they have shown meanwhile.

They live as long as the agent's process. Used on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from drivers.streams import Terminal
from model.errors import NotFound
from worker.open_streams import OpenStreams

#: Bytes of what a terminal has shown that are kept: some thousand lines.
SCROLL_BACK = 256 * 1024
#: With nobody looking: so long a terminal goes on, or what one has shown is kept that has ended.
KEPT_SECONDS = 600.0
#: Who is slower than the program is waited for, so long until it has caught up; then it misses some of what is shown.
PATIENCE_SECONDS = 1.0
#: With nobody looking, a program writes no more than so many bytes a second.
UNSEEN_RATE = 1 << 20
#: At which nobody looks, whether they go on or have ended: of the agent, and of one machine.
MOST_UNSEEN, UNSEEN_OF_ONE = 64, 8
#: A program's terminal ends a little before the program does.
EXIT_LOOKS, EXIT_LOOK_SECONDS = 50, 0.05


class Key(NamedTuple):
    machine: UUID
    name: str


class Viewer:
    """Somebody who looks, and how much of all that was shown they have."""

    def __init__(self, seen: int) -> None:
        self.seen = seen
        #: It was waited for once, and is behind since.
        self.is_late = False
        #: It was told how the program ended.
        self.has_seen_end = False


class KeptTerminal:
    """One of them. ``exit_code`` is of use once it has ``ended``."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.viewers: set[Viewer] = set()
        self.ended = False
        self.exit_code: int | None = None
        self._shown = bytearray()
        #: Of all that it has ever shown, bytes that came before those.
        self._before = 0
        self._news = asyncio.Condition()
        self._typing: asyncio.Future[None] | None = None

    async def type_in(self, streams: OpenStreams, data: bytes) -> None:
        """One at a time: who goes while the program does not read leaves a thread behind that still waits for it."""
        while self._typing is not None and not self._typing.done():
            await asyncio.wait([self._typing])
        self._typing = asyncio.ensure_future(streams.blocking(self.terminal.write, data))
        await asyncio.shield(self._typing)

    async def show(self, data: bytes) -> None:
        """Keep it for who looks, now or later; not faster than they take it."""
        self._shown += data
        if (too_many := len(self._shown) - SCROLL_BACK) > 0:
            del self._shown[:too_many]
            self._before += too_many
        if not self.viewers:
            await asyncio.sleep(len(data) / UNSEEN_RATE)
            return
        async with self._news:
            self._news.notify_all()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._news.wait_for(lambda: not self._slow())
            except TimeoutError:
                for viewer in self._slow():
                    viewer.is_late = True

    async def end(self, exit_code: int | None) -> None:
        self.ended, self.exit_code = True, exit_code
        async with self._news:
            self._news.notify_all()

    async def seen_by(self, viewer: Viewer) -> AsyncIterator[bytes]:
        """What it has shown, as far as it is kept, and what it shows, until it has ended."""
        while True:
            async with self._news:
                await self._news.wait_for(lambda: self.ended or viewer.seen < self._all)
                viewer.seen = max(viewer.seen, self._before)
                data = bytes(self._shown[viewer.seen - self._before :])
            if not data:
                return
            yield data
            viewer.seen += len(data)
            viewer.is_late = viewer.is_late and self._is_behind(viewer)
            async with self._news:
                self._news.notify_all()

    @property
    def _all(self) -> int:
        return self._before + len(self._shown)

    def _is_behind(self, viewer: Viewer) -> bool:
        """Half of what is kept may wait for the slowest."""
        return self._all - viewer.seen > SCROLL_BACK // 2

    def _slow(self) -> list[Viewer]:
        """For whom it waits."""
        return [viewer for viewer in self.viewers if self._is_behind(viewer) and not viewer.is_late]


class KeptTerminals:
    """Those of an agent. What is held in ``streams`` ends with the agent."""

    def __init__(self, streams: OpenStreams) -> None:
        self._streams = streams
        self._kept: dict[Key, asyncio.Task[KeptTerminal]] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._forgetting: dict[Key, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def viewed(
        self,
        key: Key,
        open_: Callable[[], Terminal],
        take_slot: Callable[[], Callable[[], None]],
    ) -> AsyncIterator[tuple[KeptTerminal, Viewer]]:
        """Look at the terminal of this name, which is opened where there is none. Raises what ``open_`` does."""
        if key not in self._kept:
            self._kept[key] = asyncio.ensure_future(self._open(key, open_, take_slot))
        kept = await asyncio.shield(self._kept[key])
        viewer = Viewer(0)
        kept.viewers.add(viewer)
        self._stay(key)
        try:
            yield kept, viewer
        finally:
            kept.viewers.discard(viewer)
            if not kept.viewers:
                self._leave(key, kept, seen_out=viewer.has_seen_end)

    async def _open(
        self, key: Key, open_: Callable[[], Terminal], take_slot: Callable[[], Callable[[], None]]
    ) -> KeptTerminal:
        try:
            give_back = take_slot()
            try:
                kept = KeptTerminal(await self._streams.open(open_))
            except BaseException:
                give_back()
                raise
        except BaseException:
            self._kept.pop(key, None)
            raise
        pump = asyncio.ensure_future(self._pump(kept, give_back))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        # Whoever asked for it may have gone meanwhile.
        self._leave(key, kept, seen_out=False)
        return kept

    async def _pump(self, kept: KeptTerminal, give_back: Callable[[], None]) -> None:
        try:
            while data := await self._streams.blocking(kept.terminal.read):
                await kept.show(data)
            exit_code = await exit_code_of(self._streams, kept.terminal)
        except Exception:
            # An engine that breaks off: how it ended is not known.
            exit_code = None
        finally:
            self._streams.let_go(kept.terminal)
            give_back()
        await kept.end(exit_code)

    def _make_room(self, machine: UUID) -> None:
        """Give up the oldest of too many at which nobody looks: of this machine, and of the one that has most."""
        unseen = Counter(key.machine for key in self._forgetting)
        if unseen[machine] > UNSEEN_OF_ONE:
            self._give_up_oldest(machine)
        elif unseen.total() > MOST_UNSEEN:
            self._give_up_oldest(max(unseen, key=unseen.__getitem__))

    def _give_up_oldest(self, machine: UUID) -> None:
        key = next(key for key in self._forgetting if key.machine == machine)
        self._forgetting[key].cancel()
        self._forget(key, self._kept[key].result())

    def _stay(self, key: Key) -> None:
        if (timer := self._forgetting.pop(key, None)) is not None:
            timer.cancel()

    def _leave(self, key: Key, kept: KeptTerminal, *, seen_out: bool) -> None:
        """The last who looked has gone, ``seen_out``: and has seen its end."""
        self._stay(key)
        if seen_out:
            self._kept.pop(key, None)
        else:
            self._forgetting[key] = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, key, kept)
            self._make_room(key.machine)

    def _forget(self, key: Key, kept: KeptTerminal) -> None:
        self._forgetting.pop(key, None)
        self._kept.pop(key, None)
        self._streams.let_go(kept.terminal)


async def exit_code_of(streams: OpenStreams, terminal: Terminal) -> int | None:
    """None: it is not known, for the machine went, or because the program goes on without its terminal."""
    with contextlib.suppress(NotFound):
        for _ in range(EXIT_LOOKS):
            code: int | None = await streams.blocking(terminal.exit_code)
            if code is not None:
                return code
            await asyncio.sleep(EXIT_LOOK_SECONDS)
    return None
