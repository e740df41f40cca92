"""An OpenTelemetry collector of a test's own, on loopback: it keeps the spans that it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Told:
    """One span, as it came over the wire."""

    process: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    nanoseconds: int
    attributes: dict[str, Any]
    is_error: bool
    raw: bytes


@dataclass
class Collector:
    url: str = ""
    _spans: list[Told] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in request.resource_spans:
                named = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [_told(named["service.name"], span) for span in scope.spans]

    def spans(self, trace_id: str | None = None) -> list[Told]:
        with self._lock:
            return [span for span in self._spans if trace_id in (None, span.trace_id)]

    def named(self, name: str, trace_id: str | None = None) -> list[Told]:
        return [span for span in self.spans(trace_id) if span.name == name]

    def way_up(self, span: Told) -> list[str]:
        """The names from a span to the root of its trace; fails where a parent is missing."""
        by_id = {each.span_id: each for each in self.spans(span.trace_id)}
        names = [span.name]
        while span.parent_id:
            assert span.parent_id in by_id, f"the parent of {span.name} is missing: {names}"
            span = by_id[span.parent_id]
            names.append(span.name)
        return names


def _told(process: str, span: Any) -> Told:
    return Told(
        process=process,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        nanoseconds=span.end_time_unix_nano - span.start_time_unix_nano,
        attributes={each.key: each.value.string_value or each.value.int_value for each in span.attributes},
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
        raw=span.SerializeToString(),
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
