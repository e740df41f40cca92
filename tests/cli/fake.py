"""An API of scripted answers on a real socket, and the commands run against it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from typer.testing import CliRunner, Result
from websockets.datastructures import Headers
from websockets.http11 import Request as WebRequest
from websockets.http11 import Response
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as sync_serve

from cli.main import app

WORKFLOW = "0199b3f0-0000-7000-8000-00000000000a"
HOST = "0199b3f0-0000-7000-8000-000000000002"
INSTANCE = "0199b3f0-0000-7000-8000-000000000001"
HOOK = "0199b3f0-0000-7000-8000-00000000000c"
JOB = "0199b3f0-0000-7000-8000-00000000000e"
IMAGE = "0199b3f0-0000-7000-8000-000000000009"
WHEN = "2026-01-01T12:00:00Z"


@dataclass
class Answer:
    """``data`` is the envelope's; an int status of 0 drops the connection instead of answering."""

    status: int = 200
    data: Any = None
    error: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None

    def body(self) -> bytes:
        return (
            self.raw
            if self.raw is not None
            else json.dumps({"data": self.data, "error": self.error, "meta": self.meta}).encode()
        )


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Times are whole numbers of the API, or may be: 5.0 is none."""
    for name, value in pairs:
        whole = isinstance(value, float) and value.is_integer()
        assert not (whole and name.endswith(("_sec", "_seconds"))), f"{name}: {value} is refused, {int(value)} is not"
    return dict(pairs)


class FakeApi:
    def __init__(self) -> None:
        self.scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                self.close_connection = True
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    outer.serve(self)

            def log_message(self, *_: object) -> None:
                """The commands' own stderr is what is looked at."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def on(self, route: str, *answers: Answer) -> None:
        """``route`` is "GET /path"; answers are given in order, the last one for ever."""
        self.scripts[route].extend(answers)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        path = url.path.removeprefix("/v1")
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length), object_pairs_hook=_checked) if length else None
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(Request(handler.command, path, dict(parse_qsl(url.query)), headers, body))
        script = self.scripts[f"{handler.command} {path}"]
        missing = Answer(404, error={"code": "not_found", "message": f"no {path}"})
        answer = missing if not script else script.popleft() if len(script) > 1 else script[0]
        if answer.status == 0:
            return
        content = answer.body()
        handler.send_response(answer.status)
        kind = {} if answer.raw is not None else {"Content-Type": "application/json"}
        for name, value in (kind | answer.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def seen(self, route: str) -> list[Request]:
        return [request for request in self.requests if f"{request.method} {request.path}" == route]


class FakeStreams:
    """An API on which WebSockets may be opened: ``serve`` gets each, its instance is the only other thing there.

    ``refusal``: what opening is answered with instead. ``opened``: the paths, with their queries, and the keys.
    """

    def __init__(self, serve: Callable[[ServerConnection], None]) -> None:
        self.refusal: Answer | None = None
        self.opened: list[tuple[str, str | None]] = []

        def answered(connection: ServerConnection, request: WebRequest) -> Response | None:
            if "Upgrade" not in request.headers:
                return _response(Answer(200, [instance()]))
            self.opened.append((request.path, request.headers.get("X-API-Key")))
            return _response(self.refusal) if self.refusal else None

        self.server = sync_serve(serve, "127.0.0.1", 0, process_request=answered)
        self.url = f"http://127.0.0.1:{self.server.socket.getsockname()[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _response(answer: Answer) -> Response:
    return Response(answer.status, "", Headers({"Content-Length": str(len(answer.body()))}), answer.body())


def cairn(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(args), input=stdin, catch_exceptions=False, prog_name="cairn")


def instance(name: str = "web", **over: Any) -> dict[str, Any]:
    return {
        "id": INSTANCE,
        "name": name,
        "status": "running",
        "image": "cairn/base:latest",
        "instance_type": "basic-1",
        "host": "local",
        "backend": "docker",
        "private_ip": "172.17.0.2",
        "ports": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}],
        "labels": {},
        "container_id": "c0ffee",
        "error": None,
        "created_at": WHEN,
        "workflow_id": WORKFLOW,
        **over,
    }


def host(name: str = "rack-1", **over: Any) -> dict[str, Any]:
    return {
        "id": HOST,
        "name": name,
        "backend": "docker",
        "state": "ready",
        "reachable": True,
        "capacity": {"vcpus": 8.0, "memory_mb": 16384},
        "allocatable": {"vcpus": 32.0, "memory_mb": 16384},
        "allocated": {"vcpus": 2.5, "memory_mb": 1024},
        "ports_held": 3,
        "labels": {"disk": "ssd"},
        "versions": {"agent": "0.2.0"},
        "agent_url": "https://10.0.0.2:7000",
        "last_seen_at": WHEN,
        "created_at": WHEN,
        **over,
    }


def sample(**over: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("rx_bytes", "tx_bytes", "read_bytes", "written_bytes"), 1536)
    return {"at": WHEN, "seconds": 10, "cpu_percent": 12.34, "memory_bytes": 3 << 20, "pids": 2, **figures, **over}


def step(name: str, state: str = "completed", **over: Any) -> dict[str, Any]:
    return {
        "name": name,
        "host": "local",
        "state": state,
        "attempts": 1,
        "started_at": WHEN,
        "finished_at": WHEN if state == "completed" else None,
        "error": None,
        "undo": False,
        **over,
    }


def workflow(state: str = "completed", *steps: dict[str, Any], **over: Any) -> dict[str, Any]:
    return {
        "id": WORKFLOW,
        "kind": "ProvisionInstance",
        "state": state,
        "resource_type": "instance",
        "resource_id": INSTANCE,
        "actor": "admin",
        "created_at": WHEN,
        "started_at": WHEN,
        "finished_at": WHEN,
        "error": None,
        "temporal_url": "http://127.0.0.1:8233/x",
        "steps": list(steps),
        **over,
    }


def image(**over: Any) -> dict[str, Any]:
    return {
        "id": IMAGE,
        "name": "app",
        "status": "available",
        "source": {"type": "upload", "reference": None, "url": None, "checksum": None},
        "format": "docker-archive",
        "digest": "sha256:" + "1" * 64,
        "size_bytes": 3 << 20,
        "hosts": ["local"],
        "error": None,
        "created_at": WHEN,
        **over,
    }


def hook(name: str = "chat", **over: Any) -> dict[str, Any]:
    return {
        "id": HOOK,
        "name": name,
        "url": "https://example.com/hook",
        "events": ["instance.error", "host."],
        "active": True,
        "disabled_reason": None,
        "version": 1,
        "created_at": WHEN,
        "updated_at": WHEN,
        **over,
    }


def cron_job(name: str = "nightly", **over: Any) -> dict[str, Any]:
    return {
        "id": JOB,
        "name": name,
        "schedule": "30 2 * * *",
        "time_zone": "Europe/Berlin",
        "target": {"http": {"url": "https://example.com/nightly", "method": "POST", "headers": {}}},
        "overlap": "skip",
        "catchup_window_seconds": 60,
        "paused": False,
        "labels": {"team": "a"},
        "owner": "user:jo@example.org",
        "next_runs": ["2026-01-02T01:30:00Z", "2026-01-03T01:30:00Z"],
        "applied": True,
        "version": 3,
        "created_at": WHEN,
        "updated_at": WHEN,
        **over,
    }


def accepted(row: dict[str, Any]) -> Answer:
    return Answer(202, row, meta={"workflow_id": WORKFLOW})
