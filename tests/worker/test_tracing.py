"""Tracing of a process: nothing of it while it is off; what it keeps to itself while it is on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode

from drivers.machines import Cancelled
from drivers.measured import measured
from model import tracing
from model.errors import EngineUnavailable
from model.metrics import REGISTRY
from tests.collector import collecting
from worker import opentelemetry as otel

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


@pytest.fixture
def kept() -> Iterator[Kept]:
    exporter = Kept()
    _, stop = otel.install(exporter, "tested", 1.0)
    stopped = []

    def finish() -> list[ReadableSpan]:
        if not stopped:
            stopped.append(stop())
        return exporter.spans

    exporter.finish = finish  # type: ignore[attr-defined]
    yield exporter
    finish()


def spans_of(kept: Kept) -> dict[str, ReadableSpan]:
    found: list[ReadableSpan] = kept.finish()  # type: ignore[attr-defined]
    return {span.name: span for span in found}


@pytest.mark.parametrize("module", ["worker.api", "worker.control", "worker.agent"])
def test_a_process_that_is_not_traced_does_not_import_opentelemetry(module: str) -> None:
    script = (
        f"import sys, {module}; from model.settings import Settings; from worker import tracing\n"
        "tracing.start(Settings(), 'x')\n"
        "assert tracing.interceptors() == []\n"
        "print([name for name in sys.modules if name.startswith(tuple(sys.argv[1:]))])"
    )
    # FastAPI imports the interfaces by itself; what takes time, and does something, is behind them.
    mine = ["opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "temporalio.contrib.opentelemetry"]
    unused = [*mine, "worker.opentelemetry"] if module == "worker.api" else [*mine, "opentelemetry"]
    ran = subprocess.run([sys.executable, "-c", script, *unused], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_the_extra_a_process_says_what_is_missing() -> None:
    script = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from model.settings import Settings; from worker import tracing\n"
        "tracing.start(Settings(otlp_endpoint='http://127.0.0.1:1'), 'x')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "install the extra 'tracing'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_collector_that_is_away_does_not_hold_up_the_end_of_a_process() -> None:
    script = (
        "from model.settings import Settings; from model import tracing as spans; from worker import tracing\n"
        "import time\n"
        "tracing.start(Settings(otlp_endpoint='http://127.0.0.1:1'), 'x')\n"
        "with spans.serve('GET', {}): pass\n"
        "began = time.monotonic()\n"
        "tracing.stop()\n"
        "print(time.monotonic() - began)"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    assert float(ran.stdout) < 12


def test_what_is_not_on_the_list_does_not_leave_the_process(kept: Kept) -> None:
    with tracing.serve("POST", {}) as span:
        span.note(http_route="/v1/instances", user_data="Tr0ub4dor-and-3")
        raw = trace.get_current_span()
        raw.set_attribute("env", "Tr0ub4dor-and-3")
        raw.add_event("said", {"text": "Tr0ub4dor-and-3"})
        raw.record_exception(ValueError("Tr0ub4dor-and-3"))
        raw.set_status(Status(StatusCode.ERROR, "Tr0ub4dor-and-3"))
    (one,) = spans_of(kept).values()
    assert dict(one.attributes or {}) == {"http.request.method": "POST", "http.route": "/v1/instances"}
    assert one.status.status_code is StatusCode.ERROR
    assert "Tr0ub4dor" not in one.to_json()


def test_a_trace_goes_on_from_its_caller_without_what_else_that_sends(kept: Kept) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=secret", "baggage": "user=secret"}
    with tracing.serve("GET", headers):
        told = tracing.traceparent()
        assert told is not None
        assert tracing.trace_id() == PARENT.split("-")[1]
        with tracing.continued(told), tracing.span("docker.create"):
            pass
    spans = spans_of(kept)
    request, call = spans["GET"], spans["docker.create"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert call.parent is not None
    assert request.context is not None
    assert call.parent.span_id == request.context.span_id
    assert not request.context.trace_state


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + PARENT[2:]])
def test_a_malformed_traceparent_begins_a_new_trace(kept: Kept, traceparent: str) -> None:
    with tracing.serve("GET", {"traceparent": traceparent}):
        pass
    (one,) = spans_of(kept).values()
    assert one.parent is None


def test_what_no_request_asked_for_is_not_traced(kept: Kept) -> None:
    with tracing.span("docker.inventory"), tracing.span("docker.inner"):
        pass
    with tracing.serve("GET", {"traceparent": PARENT[:-1] + "0"}):
        pass
    assert spans_of(kept) == {}


def test_a_share_of_the_traces_may_be_kept() -> None:
    exporter = Kept()
    _, stop = otel.install(exporter, "tested", 0.2)
    for _ in range(400):
        with tracing.serve("GET", {}), tracing.span("docker.create"):
            pass
    stop()
    assert 2 * 40 < len(exporter.spans) < 2 * 130
    assert len(exporter.spans) % 2 == 0


def test_spans_arrive_by_otlp() -> None:
    with collecting() as collector:
        _, stop = otel.install(otel.exporter_to(collector.url), "tested", 1.0)
        with tracing.serve("GET", {}), tracing.span("docker.create") as span:
            span.failed("engine_unavailable")
        stop()
        call = collector.named("docker.create")[0]
        assert collector.way_up(call) == ["docker.create", "GET"]
        assert (call.process, call.attributes, call.is_error) == (
            "cairn-tested",
            {"error.type": "engine_unavailable"},
            True,
        )


class Driver:
    name = "docker"

    def create(self, error: Exception | None = None) -> str:
        if error is not None:
            raise error
        return "made"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (EngineUnavailable("it does not answer"), "engine_unavailable"),
        (Cancelled(), "cancelled"),
        (KeyError("odd"), "internal"),
    ],
)
def test_calls_of_a_driver_are_counted_and_are_what_they_were(error: Exception | None, outcome: str) -> None:
    driver = measured(Driver(), "tested")
    labels = {"backend": "tested", "call": "create"}

    def read(name: str, **more: str) -> float:
        return REGISTRY.get_sample_value(name, labels | more) or 0

    before = read("cairn_engine_calls_total", outcome=outcome), read("cairn_engine_call_seconds_count")
    if error is None:
        assert driver.create() == "made"
    else:
        with pytest.raises(type(error)) as raised:
            driver.create(error)
        assert raised.value is error
    after = read("cairn_engine_calls_total", outcome=outcome), read("cairn_engine_call_seconds_count")
    assert after == (before[0] + 1, before[1] + 1)
    assert driver.name == "docker"
