"""A client that costs little: keep-alive connections, HTTP by hand. What is measured is the server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]


class Connection:
    """One keep-alive connection."""

    def __init__(self, url: str, key: str) -> None:
        where = urlsplit(url)
        self._address = (where.hostname or "127.0.0.1", where.port or 80)
        self._prefix = where.path
        self._head = f"Host: bench\r\nX-API-Key: {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: Json | None = None, head: str = "") -> tuple[int, Json]:
        content = b"" if body is None else json.dumps(body).encode()
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        request = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}{head}\r\n".encode() + content
        reader, first = await self._send(request)
        status = int(first.split()[1])
        length = 0
        while (line := await reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, json.loads(await reader.readexactly(length)) if length else {}

    async def _send(self, request: bytes) -> tuple[asyncio.StreamReader, bytes]:
        """The answer's first line. A server closes what was idle for long: then it is sent on a new connection."""
        for kept in (self._streams is not None, False):
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(request)
            if (first := await reader.readline()) or not kept:
                return reader, first
            self.close()
        raise AssertionError("the second connection is a new one")

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def closed_loop(connections: list[Connection], count: int, call: Any) -> tuple[float, list[float]]:
    """``call(connection, n)`` for n below ``count``, one at a time per connection: calls/s, seconds each."""
    numbers = iter(range(count))
    took: list[float] = []

    async def work(connection: Connection) -> None:
        for n in numbers:
            began = time.perf_counter()
            await call(connection, n)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(work(connection) for connection in connections))
    return count / (time.perf_counter() - began), took


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
