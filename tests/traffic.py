"""Requests, steadily: over connections that are kept, and over new ones; every one that fails is written down."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from types import TracebackType

PATIENCE = 10.0


class Traffic:
    """While it is entered, ``kept`` clients that keep their connections and ``new`` that make one for each request
    send ``rate`` requests a second together."""

    def __init__(self, port: int, *, kept: int = 4, new: int = 4, rate: float = 200, path: str = "/") -> None:
        self._port, self._path = port, path
        self._clients = [True] * kept + [False] * new
        self._pause = len(self._clients) / rate
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.failures: list[str] = []
        #: By the first words of what was answered.
        self.answers: Counter[str] = Counter()
        self.times: list[tuple[float, str]] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(2 * PATIENCE)

    @property
    def sent(self) -> int:
        return self.answers.total() + len(self.failures)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(keeps) for keeps in self._clients))

    async def _client(self, keeps: bool) -> None:
        opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    if opened is None:
                        opened = await asyncio.open_connection("127.0.0.1", self._port)
                    ends, status, body = await self._ask(*opened, keeps)
                if status.startswith(("2", "3")):
                    self.answers[body.strip()] += 1
                    self.times.append((time.monotonic(), body.strip()))
                else:
                    self.failures.append(f"{status}: {body[:80]}")
            except (OSError, EOFError, TimeoutError, ValueError, IndexError) as error:
                self.failures.append(f"{'kept' if keeps else 'new'}: {type(error).__name__} {error}")
                ends = True
            if ends and opened is not None:
                opened[1].close()
                with contextlib.suppress(OSError):
                    await opened[1].wait_closed()
                opened = None
            await asyncio.sleep(max(0.0, self._pause - (time.monotonic() - began)))

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keeps: bool
    ) -> tuple[bool, str, str]:
        """Whether the connection ends with it, the status, the body."""
        wish = "keep-alive" if keeps else "close"
        writer.write(f"GET {self._path} HTTP/1.1\r\nHost: test\r\nConnection: {wish}\r\n\r\n".encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = head.split(" ", 2)[1]
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head.split("\r\n")[1:]}
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.read()
        return not keeps or headers.get("connection", "").lower() == "close", status, body.decode()
