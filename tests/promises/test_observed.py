"""What a platform tells of itself: one trace from a request to the engine, and metrics of every process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.collector import Collector, Told, collecting
from tests.stack import Json, Stack, wait_for
from worker import ports

START, RUN = "StartWorkflow:ProvisionInstance", "RunWorkflow:ProvisionInstance"
REQUEST = "POST /v1/instances"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


@pytest.fixture(scope="module")
def watched(collector: Collector) -> Iterator[Stack]:
    """A platform that is traced and measured."""
    made = Stack(docker=False, CAIRN_OTLP_ENDPOINT=collector.url, CAIRN_METRICS_TOKEN="metrics-token")
    taken: set[int] = set()
    # Its control worker has this one, its agent the next.
    port = ports.choose("127.0.0.1", taken, made.port_range)
    while not ports.is_free("127.0.0.1", port + 1):
        port = ports.choose("127.0.0.1", taken, made.port_range)
    try:
        yield made.start(CAIRN_METRICS_PORT=str(port), CAIRN_TEMPORAL_METRICS_PORT="0").ready()
    finally:
        made.remove()


def launched_with(stack: Stack, trace_id: str, **more: object) -> Json:
    """A launch whose caller has begun the trace."""
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "X-Request-ID": f"request-{trace_id[:8]}"}
    headers["Idempotency-Key"] = trace_id
    body = {"name": f"i-{trace_id[:8]}", "image": "cairn/base:latest", "backend": "simulated"} | more
    answer = stack.answered("POST", "/instances", json=body, headers=headers)
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    assert answer.headers["traceparent"].split("-")[1] == trace_id
    envelope: Json = answer.json()
    return envelope


def engine_call(collector: Collector, trace_id: str, name: str = "simulated.create") -> Told:
    return wait_for(f"the span {name} is told", lambda: collector.named(name, trace_id))[0]


def request_span(collector: Collector, trace_id: str) -> Told:
    return wait_for("the request's span is told", lambda: collector.named(REQUEST, trace_id))[0]


def way_up(collector: Collector, span: Told) -> list[str]:
    """Once all of it was told: the request's own parent is its caller's."""
    request = request_span(collector, span.trace_id)

    def whole() -> list[str] | None:
        by_id = {each.span_id: each for each in collector.spans(span.trace_id)}
        names, at = [span.name], span
        while at.parent_id in by_id:
            at = by_id[at.parent_id]
            names.append(at.name)
        return names if at.span_id == request.span_id else None

    return wait_for("the chain of parents is whole", whole, 15)


def test_one_launch_is_one_trace_from_its_request_to_the_engine(watched: Stack, collector: Collector) -> None:
    launched = launched_with(watched, TRACE, env={"SECRET": "Tr0ub4dor-and-3"}, cmd=["echo", "Tr0ub4dor-and-3"])
    watched.completed(launched)
    for name in ("simulated.create", "simulated.start"):
        call = engine_call(collector, TRACE, name)
        step = "instance." + name.partition(".")[2]
        assert way_up(collector, call) == [
            name,
            f"RunActivity:{step}",
            f"StartActivity:{step}",
            START,
            REQUEST,
        ]
        assert call.process == "cairn-agent"
    (run,) = collector.named(RUN, TRACE)
    assert way_up(collector, run) == [RUN, START, REQUEST]
    request = request_span(collector, TRACE)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/instances",
        "http.response.status.code": 202,
        "request.id": f"request-{TRACE[:8]}",
    }
    assert {span.process for span in collector.spans(TRACE)} == {"cairn-api", "cairn-control", "cairn-agent"}
    assert len(collector.named(REQUEST, TRACE)) == 1


def test_a_call_that_failed_shows_its_code_and_no_message(watched: Stack, collector: Collector) -> None:
    trace_id = TRACE[::-1]
    watched.fault("instance.create.after_effect", "error")
    launched = launched_with(watched, trace_id, env={"A": "Tr0ub4dor-and-3"})
    watched.completed(launched)
    wait_for("both attempts are told", lambda: len(collector.named("simulated.create", trace_id)) == 2)
    failed, done = collector.named("simulated.create", trace_id)
    assert failed.is_error
    assert failed.attributes == {"error.type": "fault_injected"}
    assert not done.is_error
    (attempt,) = (span for span in collector.named("RunActivity:instance.create", trace_id) if span.is_error)
    assert way_up(collector, attempt)[-1] == REQUEST
    time.sleep(2)  # what is told later
    for span in collector.spans():
        assert b"Tr0ub4dor" not in span.raw
        assert b"injected error at" not in span.raw, "messages may hold what users wrote"
        assert b"cairn_" not in span.raw


def test_the_trace_goes_on_where_the_api_died_after_its_commit(watched: Stack, collector: Collector) -> None:
    trace_id = "1" + TRACE[1:]
    with watched.frozen("temporal"):
        launched = launched_with(watched, trace_id)
        request = request_span(collector, trace_id)
        watched.kill("api")
        assert not collector.named(RUN, trace_id)
    watched.completed(launched)
    call = engine_call(collector, trace_id)
    assert way_up(collector, call)[-1] == request.name
    (started,) = (span for span in collector.named(START, trace_id) if span.process == "cairn-control")
    assert started.parent_id == request.span_id, "the sweeper started it"


def test_what_nobody_asked_for_is_not_traced(watched: Stack, collector: Collector) -> None:
    time.sleep(3)  # ticks, looks of the agent, sweeps
    assert not [span for span in collector.spans() if "tick" in span.name.lower() or "Reconcile" in span.name]
    roots = {span.name for span in collector.spans() if not span.parent_id}
    assert all(name.split(" ")[0] in ("GET", "POST", "DELETE", "PUT", "WEBSOCKET") for name in roots), roots


def scraped(url: str) -> dict[str, float]:
    answer = httpx.get(url, headers={"Authorization": "Bearer metrics-token"}, trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer.text
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def port_of(stack: Stack, process: str) -> int:
    lines = (stack.data / "logs" / f"{process}.log").read_text().splitlines()
    heard = [json.loads(line) for line in lines if "metrics.listening" in line]
    port: int = heard[-1]["port"]
    return port


def test_every_process_shows_its_own_metrics(watched: Stack) -> None:
    watched.completed(watched.launch())
    control_url = f"http://127.0.0.1:{port_of(watched, 'control_worker')}/metrics"
    assert httpx.get(control_url, trust_env=False).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(control_url.replace("/metrics", "/"), trust_env=False).status_code == httpx.codes.NOT_FOUND
    control = scraped(control_url)
    agent = scraped(f"http://127.0.0.1:{port_of(watched, 'host_agent')}/metrics")
    api = scraped(watched.endpoint()["api_url"].removesuffix("/v1") + "/metrics")
    assert control["cairn_database_up"] == 1
    assert control["cairn_hosts,simulated,true,ready"] == 2
    assert control["cairn_instances,running"] >= 1
    assert control["cairn_workflow_seconds_count,ProvisionInstance,completed"] >= 1
    assert control["cairn_step_attempts_total,instance.place,completed"] >= 1
    assert control["cairn_queue_wait_seconds_count,control"] >= 1
    assert agent["cairn_engine_calls_total,simulated,create,ok"] >= 1
    assert agent["cairn_engine_call_seconds_count,simulated,create"] >= 1
    assert agent["cairn_step_attempts_total,instance.create,completed"] >= 1
    assert api["cairn_http_requests_total,POST,/v1/instances,2xx"] >= 1
    for process in (control, agent, api):
        assert process["process_resident_memory_bytes"] > 1 << 20
        assert process["process_open_fds"] > 3
