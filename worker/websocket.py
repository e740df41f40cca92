"""WebSockets as API and agents serve them: options of uvicorn, and what their parser cannot take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from api.streamed import PING_SECONDS, PONG_SECONDS
from model.streams import MOST_BYTES

#: Of a request's head, one line, bytes: a longer one the parser would leave without an answer.
MOST_LINE = 8000
TOO_LONG = "A line of the request is too long."
OPTIONS: dict[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": MOST_BYTES,
    "ws_ping_interval": PING_SECONDS,
    "ws_ping_timeout": PONG_SECONDS,
    "ws_per_message_deflate": False,
}


def is_too_long(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return max(len(target), *(len(name) + len(value) for name, value in headers)) > MOST_LINE
