"""What is slow for one keeps nothing else waiting: downloads that drip, on a whole platform."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.stack import Stack, wait_for
from worker.control import THREADS as CONTROL_THREADS
from worker.images import THREADS

MANY = max(THREADS, CONTROL_THREADS) + 4


@pytest.fixture
def drips() -> Iterator[str]:
    """A server that sends some bytes a second, fast enough to be let go on."""
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not closed.wait(0.5):
                try:
                    self.wfile.write(bytes(50_000))
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            """Nobody looks."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/drip"
    closed.set()
    server.shutdown()


@pytest.fixture
def stack() -> Iterator[Stack]:
    made = Stack(docker=False, CAIRN_PROJECT_IMPORTS=str(MANY))
    try:
        yield made.start().ready()
    finally:
        made.remove()


def test_more_slow_downloads_than_threads_keep_no_launch_waiting(stack: Stack, drips: str) -> None:
    bodies = [{"name": f"slow-{number}", "source": {"type": "url", "url": drips}} for number in range(MANY)]
    imports = [stack.accept("POST", "/images", body) for body in bodies]
    answer = stack.request("POST", "/images", json=bodies[0] | {"name": "one-more"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (httpx.codes.TOO_MANY_REQUESTS, "too_many_imports")

    def coming() -> int:
        return len(list((stack.data / "blobs" / "incoming").glob("*")))

    wait_for("as many come as may", lambda: coming() == THREADS)
    began = time.monotonic()
    instance = stack.running()
    stack.completed(stack.act("stop", instance))
    stack.completed(stack.act("delete", instance))
    took = time.monotonic() - began
    assert coming() == THREADS
    assert took < 45, f"{took:.1f} s"
    for accepted in imports:
        stack.cancel(accepted)
    for accepted in imports:
        assert stack.ended(accepted)["state"] == "cancelled"
    wait_for("nothing is left", lambda: coming() == 0)
