"""Spans to an OpenTelemetry collector. The only module that imports OpenTelemetry.

What leaves the process is what is on a list: spans carry names of routes, plans, steps and calls, ids, and codes of
errors. Messages, stack traces and whatever else a library adds stay behind, as they may hold what users wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes
from temporalio.contrib.opentelemetry import TracingInterceptor

from model import tracing

#: Attributes that may leave the process.
ALLOWED = frozenset(
    {
        "http.request.method",
        "http.route",
        "http.response.status.code",
        "error.type",
        "request.id",
        "temporalWorkflowID",
        "temporalRunID",
        "temporalActivityID",
    }
)
METHOD = "http.request.method"
#: Ends are told soon: what a process has not sent when it is killed is lost.
SEND_MS = 1000
#: Spans that wait for a collector that is away; more are dropped.
QUEUE = 4096
#: For one try to send, seconds; and for the last, at the end of the process, milliseconds.
PATIENCE, LAST_MS = 5, 3000
_w3c = TraceContextTextMapPropagator()


class OfRequests(Sampler):
    """Only a request begins a trace: the platform's own work, every few seconds, would be most of them."""

    def __init__(self, ratio: float) -> None:
        self._some = TraceIdRatioBased(ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if attributes is None or METHOD not in attributes:
            return SamplingResult(Decision.DROP)
        return self._some.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return "requests"


class Listed(SpanExporter):
    """Exports what may leave the process."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([listed(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def listed(span: ReadableSpan) -> ReadableSpan:
    """The span without events, messages, and attributes that are not on the list."""
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={name: value for name, value in (span.attributes or {}).items() if name in ALLOWED},
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def exporter_to(endpoint: str) -> SpanExporter:
    """OTLP over HTTP; an address without a path gets the usual one. ``OTEL_EXPORTER_OTLP_HEADERS`` is heard."""
    url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    return OTLPSpanExporter(endpoint=url, timeout=PATIENCE)


def install(exporter: SpanExporter, process: str, ratio: float) -> tuple[TracingInterceptor, Callable[[], None]]:
    """Trace this process from here on; what a connection to Temporal needs for it, and what ends it.

    ``ratio``: how many of the traces that begin here are kept.
    """
    resource = Resource.create({"service.name": f"cairn-{process}", "service.version": version("cairn-platform")})
    provider = TracerProvider(sampler=ParentBased(OfRequests(ratio)), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(Listed(exporter), max_queue_size=QUEUE, schedule_delay_millis=SEND_MS)
    )
    tracer = provider.get_tracer("cairn")
    tracing.use(_Tracer(tracer))

    def stop() -> None:
        tracing.use(None)
        provider.force_flush(LAST_MS)
        provider.shutdown()

    return TracingInterceptor(tracer), stop


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, **attributes: str | int) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name.replace("_", "."), value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def failed(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR))


class _Tracer:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def serve(self, method: str, headers: Mapping[str, str]) -> Iterator[tracing.Span]:
        # Not tracestate and baggage: they are whatever the caller likes, and would be handed on.
        told = {"traceparent": headers.get("traceparent", "")}
        with self._tracer.start_as_current_span(
            method,
            context=_w3c.extract(told, context=Context()),
            kind=SpanKind.SERVER,
            attributes={METHOD: method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield _Span(span)

    @contextmanager
    def span(self, name: str) -> Iterator[tracing.Span]:
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        ) as span:
            yield _Span(span)

    @contextmanager
    def continued(self, traceparent: str) -> Iterator[None]:
        token = contexts.attach(_w3c.extract({"traceparent": traceparent}, context=Context()))
        try:
            yield
        finally:
            contexts.detach(token)

    def traceparent(self) -> str | None:
        told: dict[str, str] = {}
        _w3c.inject(told)
        return told.get("traceparent")
