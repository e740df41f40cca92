"""One request to a Docker engine whose answer is a stream, or a connection both ways.

The SDK reads such answers in small pieces, cannot be interrupted by another thread in the middle of one, and loses
what came with the answer's head. This is Python's own HTTP client, on a socket that we may shut down.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlencode, urlsplit

from drivers.docker_engine import CALL_SECONDS, CONFLICT, NOT_FOUND, SERVER_ERROR, DockerEngine
from model.errors import EngineRefused, EngineUnavailable, InvalidState, NotFound

CHUNK = 1 << 16
#: The engine itself never makes a frame of more than 64 KiB.
MOST_FRAME = 1 << 20
_FRAME_HEAD = 8


class _Connection(HTTPConnection):
    def __init__(self, base_url: str, *, upgrade: bool) -> None:
        super().__init__("localhost", timeout=CALL_SECONDS)
        self._base_url = urlsplit(base_url)
        if not upgrade:
            # Version 1.0 has no chunks: the engine would make one of every line, and each costs.
            self._http_vsn, self._http_vsn_str = 10, "HTTP/1.0"

    def connect(self) -> None:
        where = self._base_url
        if where.scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(CALL_SECONDS)
            self.sock.connect(where.path)
        else:
            self.sock = socket.create_connection((where.hostname or "localhost", where.port or 2375), CALL_SECONDS)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Channel:
    """The answer, or the connection. One thread reads, another may write, any may close."""

    def __init__(
        self,
        engine: DockerEngine,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        upgrade: bool = False,
    ) -> None:
        """Ask for it. Raises NotFound, InvalidState (a conflict), EngineRefused, EngineUnavailable."""
        url = f"/v{engine.client.api_version}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": "application/json"}
        if upgrade:
            headers |= {"Connection": "Upgrade", "Upgrade": "tcp"}
        connection = _Connection(engine.base_url, upgrade=upgrade)
        self._closed = threading.Event()
        try:
            connection.connect()
            # Kept: the connection lets go of its socket where the answer is to be read to its end.
            self._socket = connection.sock
            connection.request(method, url, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise EngineUnavailable(f"the engine does not answer: {error}") from error
        if answer.status >= 300:  # noqa: PLR2004 - from 3xx on
            refusal = _refusal(answer)
            connection.close()
            raise refusal
        self._answer = answer  # it closes its reader with itself
        self._reader = answer.fp
        self._socket.settimeout(None)

    def read(self, seconds: float | None = None) -> bytes:
        """What comes next, at most 64 KiB; empty at its end. Raises TimeoutError after ``seconds``."""
        try:
            if seconds is not None:
                self._socket.settimeout(seconds)
            return self._reader.read1(CHUNK)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            if self._closed.is_set():
                return b""
            raise EngineUnavailable(f"the engine broke off: {error}") from error

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._socket.sendall(data)

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()


def frames(channel: Channel, seconds: Iterator[float] | None = None) -> Iterator[list[tuple[int, bytes]]]:
    """What came at once, as (channel number, bytes): the engine's multiplexed format.

    ``seconds``: how long to wait at most, for each read.
    """
    rest = b""
    while data := channel.read(next(seconds) if seconds else None):
        data, at, found = rest + data, 0, []
        while len(data) - at >= _FRAME_HEAD:
            size = int.from_bytes(data[at + 4 : at + _FRAME_HEAD], "big")
            if size > MOST_FRAME:
                raise EngineUnavailable("the engine sent what is no stream of frames")
            if len(data) - at - _FRAME_HEAD < size:
                break
            found.append((data[at], data[at + _FRAME_HEAD : at + _FRAME_HEAD + size]))
            at += _FRAME_HEAD + size
        rest = data[at:]
        if found:
            yield found


def _refusal(answer: HTTPResponse) -> Exception:
    text = ""
    with contextlib.suppress(OSError, HTTPException):
        text = answer.read(4096).decode(errors="replace")
    answer.close()
    try:
        text = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        text = text or str(answer.status)
    if answer.status == NOT_FOUND:
        return NotFound(text)
    if answer.status == CONFLICT:
        return InvalidState(text)
    if answer.status < SERVER_ERROR:
        return EngineRefused(f"the engine refused: {text}")
    return EngineUnavailable(f"the engine failed: {text}")
