"""Imports of images that are interrupted: they end as they were meant to, with nothing left where they failed."""

from __future__ import annotations

import functools
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.chaos.cells import PROCESSES, Cell
from tests.folders import below
from tests.registry import Registry, tar_of
from tests.stack import Json, Stack, wait_for

GOOD, BAD = tar_of({"bin/run": b"#!"}), tar_of({"/etc/shadow": b"root"})


@functools.cache
def site() -> str:
    """Where images may be downloaded: ``/good`` and ``/bad``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = BAD if self.path == "/bad" else GOOD
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nobody looks."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


@functools.cache
def registry() -> Registry:
    return Registry()


def run(stack: Stack, cell: Cell) -> None:
    """One cell."""
    alone = cell.what == "cancel" or cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, "pause" if alone else cell.what)
    accepted = _import(stack, cell)
    stack.wait_for_hit(cell.point, before)
    if cell.what == "cancel":
        answer = stack.cancel(accepted)
        assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
    elif cell.what in PROCESSES:
        stack.kill(cell.what)
    if alone:
        stack.plant()
    row = stack.ended(accepted)
    image = stack.get(f"/images/{accepted['data']['id']}")
    wanted = {"import undone": "failed"}.get(cell.plan, "completed")
    if cell.what == "cancel" and row["state"] == "cancelled":
        wanted = "cancelled"
    assert row["state"] == wanted, row
    assert image["status"] == ("available" if wanted == "completed" else "error"), image
    assert (image["digest"] is not None) == (wanted == "completed"), image
    _expect_files(stack)
    stack.completed(stack.accept("DELETE", f"/images/{image['id']}"))
    _expect_files(stack)


def _import(stack: Stack, cell: Cell) -> Json:
    source = {"type": "url", "url": f"{site()}/{'bad' if cell.plan == 'import undone' else 'good'}"}
    if cell.plan == "import of a registry":
        name = f"chaos/{uuid.uuid4().hex[:12]}"
        registry().push(name, {"run": name.encode()})
        source = {"type": "registry", "reference": f"{registry().host}/{name}"}
    return stack.accept("POST", "/images", {"name": f"i-{uuid.uuid4().hex[:12]}", "source": source})


def _expect_files(stack: Stack) -> None:
    """What images need is in the blob store, and nothing else."""

    def as_it_should_be() -> bool:
        needed = {
            image["digest"].removeprefix("sha256:")
            for image in stack.list("/images")
            if image["format"] and image["status"] == "available"
        }
        # Beside what a killed process was receiving: its next start removes it.
        there = {path.name for path in below(stack.data / "blobs" / "sha256") if path.is_file()}
        return there == needed

    wait_for("the blob store holds what is needed", as_it_should_be)
