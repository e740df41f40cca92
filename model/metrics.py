"""What every process counts and times, under the names that Prometheus reads.

Labels take their values from code alone (routes, kinds, activities, error codes, states): never an id, a name that a
user chose, or a path as it was asked for. So the number of series is bounded by the program, not by its use.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

#: Of this process. What belongs to one application or database is collected beside it.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

#: Seconds. Of answers: from a millisecond, as most take a few.
_ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Of steps and engine calls, which may wait for a machine to be ready.
_STEPS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
#: Of whole runs: an import may take an hour.
_RUNS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

REQUESTS = Counter(
    "cairn_http_requests",
    "Requests that were answered; a WebSocket when it ends. An unknown path has the route 'unknown'.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
RATE_LIMITED = Counter(
    "cairn_rate_limited",
    "Requests that were refused because there were too many: of which class, and by whose limit",
    ["kind", "by"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "cairn_http_request_seconds",
    "From a request's head to the head of its answer",
    ["method", "route"],
    buckets=_ANSWERS,
    registry=REGISTRY,
)
ACCEPTANCE_SECONDS = Histogram(
    "cairn_acceptance_seconds",
    "From a request's head to its 202; without those that asked to wait",
    buckets=_ANSWERS,
    registry=REGISTRY,
)
ACCEPTED = Counter("cairn_workflows_accepted", "Workflows that were accepted", ["kind"], registry=REGISTRY)
WORKFLOW_SECONDS = Histogram(
    "cairn_workflow_seconds",
    "From a workflow's acceptance to its end",
    ["kind", "outcome"],
    buckets=_RUNS,
    registry=REGISTRY,
)
QUOTA_DIFFERENCES = Counter(
    "cairn_quota_differences",
    "Counts of projects' quotas that were not what their instances add up to, and were corrected",
    ["count"],
    registry=REGISTRY,
)
STEP_ATTEMPTS = Counter(
    "cairn_step_attempts",
    "Attempts of activities that ended: completed, retryable, final, cancelled",
    ["activity", "outcome"],
    registry=REGISTRY,
)
STEP_RETRIES = Counter(
    "cairn_step_retries", "Attempts of activities other than the first", ["activity"], registry=REGISTRY
)
STEP_SECONDS = Histogram(
    "cairn_step_seconds", "How long an attempt of an activity took", ["activity"], buckets=_STEPS, registry=REGISTRY
)
STEPS_RUNNING = Gauge("cairn_steps_running", "Activities under way in this process", ["queue"], registry=REGISTRY)
STEPS_LIMIT = Gauge("cairn_steps_limit", "How many it runs at once", ["queue"], registry=REGISTRY)
QUEUE_WAIT_SECONDS = Histogram(
    "cairn_queue_wait_seconds",
    "From an attempt's being scheduled to its start; the queues of hosts count as one",
    ["queue"],
    buckets=_STEPS,
    registry=REGISTRY,
)
ENGINE_CALLS = Counter(
    "cairn_engine_calls",
    "Calls of drivers that ended: ok, cancelled, or the code of the error",
    ["backend", "call", "outcome"],
    registry=REGISTRY,
)
ENGINE_CALL_SECONDS = Histogram(
    "cairn_engine_call_seconds",
    "How long a call of a driver took; that of start includes the wait until the machine is ready",
    ["backend", "call"],
    buckets=_STEPS,
    registry=REGISTRY,
)
EVENTS_LAG_SECONDS = Histogram(
    "cairn_events_lag_seconds",
    "From the beginning of an event's transaction to its being read for those who follow",
    buckets=_STEPS,
    registry=REGISTRY,
)
LEFT_TO_SWEEPER = Counter(
    "cairn_dispatches_left", "Starts and cancels that the API left to the sweeper", registry=REGISTRY
)
CRON_RUNS = Counter("cairn_cron_runs", "Runs of cron jobs that ended", ["outcome"], registry=REGISTRY)
CRON_LATE_SECONDS = Histogram(
    "cairn_cron_late_seconds",
    "From the time of a cron job's schedule to the beginning of its run, where that is not out of turn",
    buckets=_STEPS,
    registry=REGISTRY,
)
GROUP_RUNS = Counter(
    "cairn_group_runs",
    "Runs that worked on a group or a deployment and ended: what was asked for, and how it ended",
    ["action", "outcome"],
    registry=REGISTRY,
)
POLICIES_SECONDS = Histogram(
    "cairn_policies_seconds", "How long a look at all policies took", buckets=_STEPS, registry=REGISTRY
)
POLICIES_JUDGED = Counter(
    "cairn_policies_judged",
    "Judgements of policies: more or fewer members, the same, that of a metric nothing is known, or that it is too "
    "soon after the last",
    ["verdict"],
    registry=REGISTRY,
)
LB_REQUESTS = Counter(
    "cairn_lb_requests",
    "What load balancers of this agent's hosts answered: requests; of mode tcp, connections",
    registry=REGISTRY,
)
LB_ERRORS = Counter(
    "cairn_lb_errors", "Of these, connections and answers that failed, and answers of 500 and above", registry=REGISTRY
)
LB_RELOADS = Counter(
    "cairn_lb_reloads",
    "Configurations that HAProxy took: by a reload, or as it ran (weights)",
    ["how"],
    registry=REGISTRY,
)
EGRESS_REFUSED = Counter(
    "cairn_egress_refused",
    "What proxies of instances with an allow-list refused: a name (or port) that is not in it, an address that is not "
    "public, a request that is none",
    ["why"],
    registry=REGISTRY,
)
BLOB_SWEEPS_REFUSED = Counter(
    "cairn_blob_sweeps_refused",
    "Sweeps of the blob store that removed nothing, as the database does not know too many of its files",
    registry=REGISTRY,
)
LEASE_FAILURES = Counter("cairn_lease_failures", "Renewals of this agent's lease that failed", registry=REGISTRY)
_BUILD = Info("cairn_build", "Which version this is, of which process", registry=REGISTRY)


def ended(kind: str, outcome: str, accepted_at: dt.datetime, ended_at: dt.datetime | None) -> None:
    """Count the end of a workflow, once it is committed."""
    if ended_at is not None:
        WORKFLOW_SECONDS.labels(kind, outcome).observe((ended_at - accepted_at).total_seconds())


class Figure(NamedTuple):
    """A gauge that is read when somebody asks."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Values(Protocol):
    def __call__(self) -> Iterable[tuple[Figure, tuple[str, ...], float]]:
        """Each figure, the values of its labels, and its value."""


class Figures:
    """A collector of figures. Only those that have a value now are shown."""

    def __init__(self, known: Iterable[Figure], values: Values) -> None:
        self._known = tuple(known)
        self._values = values

    def describe(self) -> Iterator[Metric]:
        for figure in self._known:
            yield GaugeMetricFamily(figure.name, figure.help, labels=figure.labels)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for figure, labels, value in self._values():
            family = families.get(figure.name)
            if family is None:
                family = families[figure.name] = GaugeMetricFamily(figure.name, figure.help, labels=figure.labels)
            family.add_metric(labels, value)
        yield from families.values()


def registry_of(*collectors: Figures) -> CollectorRegistry:
    """A registry of what belongs to one application, beside that of the process."""
    made = CollectorRegistry()
    for collector in collectors:
        made.register(collector)
    return made


def name_process(process: str) -> None:
    _BUILD.info({"version": version("cairn-platform"), "process": process})
