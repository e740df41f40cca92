"""The streams that an agent has open: threads for what blocks, and their end, whatever becomes of who opened them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Protocol

import structlog
from starlette.requests import Request

from model.errors import EngineUnavailable

#: For all that are open when the agent stops, together.
CLOSE_SECONDS = 3.0
log = structlog.get_logger()


class Closable(Protocol):
    def close(self) -> None:
        """From any thread, and more than once."""


class OpenStreams:
    """Used on one event loop."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="stream")
        self._held: set[Closable] = set()
        self._closing: set[Future[None]] = set()
        self._stopping = False

    async def blocking(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def open(self, start: Callable[[], Any]) -> Any:
        """What ``start`` opens; where nobody waits for it any more, it is closed as soon as it is open."""
        opening = self._threads.submit(start)
        ours = threading.get_ident()

        def too_late(done: Future[Any]) -> None:
            if done.cancelled() or done.exception() is not None:
                return
            if threading.get_ident() == ours:
                self._close(done.result())
            else:
                done.result().close()

        try:
            stream = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(too_late)
            raise
        self.hold(stream)
        return stream

    def hold(self, stream: Closable) -> None:
        self._held.add(stream)
        if self._stopping:
            self.let_go(stream)

    def let_go(self, stream: Closable) -> None:
        """Close it. Nobody waits for that: who cancels us does so again at every wait."""
        if stream in self._held:
            self._held.discard(stream)
            self._close(stream)

    async def end(self) -> None:
        """End all, and what they keep going on engines; what takes longer than CLOSE_SECONDS is left behind."""
        self._stopping = True
        for stream in list(self._held):
            self.let_go(stream)
        if self._closing:
            await asyncio.wait([asyncio.wrap_future(one) for one in self._closing], timeout=CLOSE_SECONDS)

    def shut_down(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _close(self, stream: Closable) -> None:
        """In a thread of its own: those of the pool may all be blocked, or have ended."""
        closed = Future[None]()

        def close() -> None:
            try:
                stream.close()
            except Exception as error:  # whatever it is, the agent goes on
                log.warning("stream.not_closed", error=str(error))
            finally:
                self._closing.discard(closed)
                closed.set_result(None)

        self._closing.add(closed)
        threading.Thread(target=close, name="close", daemon=True).start()


class Upload:
    """The body of a request, for a thread that reads it."""

    def __init__(self, request: Request) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts = aiter(request.stream())
        self._next: Future[bytes] | None = None
        self._closed = False

    def __iter__(self) -> Upload:
        return self

    def __next__(self) -> bytes:
        self._next = asyncio.run_coroutine_threadsafe(anext(self._parts, b""), self._loop)
        if self._closed:
            self._next.cancel()
        try:
            part = self._next.result()
        except CancelledError:
            raise EngineUnavailable("the upload was broken off") from None
        if not part:
            raise StopIteration
        return part

    def close(self) -> None:
        self._closed = True
        if self._next is not None:
            self._next.cancel()
