"""A receiver of webhooks, on loopback: what it answers is scripted, what came is kept."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

#: A status, or with headers; 0: the connection is dropped.
Scripted = int | tuple[int, dict[str, str]]


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def delivery(self) -> str:
        return self.headers["x-cairn-delivery"]

    def is_signed_with(self, secret: str) -> bool:
        """As docs/events.md tells receivers to check it."""
        signed = self.headers["x-cairn-timestamp"].encode() + b"." + self.body
        expected = "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected, self.headers["x-cairn-signature"])


class Receiver:
    def __init__(self) -> None:
        self.received: list[Received] = []
        #: The next answers; then ``usual``.
        self.script: deque[Scripted] = deque()
        self.usual: Scripted = 204
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = outer.script.popleft() if outer.script else outer.usual
                outer.received.append(Received(self.path, headers, body))
                status, more = answer if isinstance(answer, tuple) else (answer, {})
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in ({"Content-Length": "0"} | more).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """The tests look at what came."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ids(self) -> list[str]:
        """Of the events that came, in order; those that came again are left out."""
        return list(dict.fromkeys(one.event["id"] for one in self.received))
