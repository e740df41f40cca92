"""Structured logs: one event per fact, one JSON object per line, ids bound by context.

docs/logging.md has the fields.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from model.redaction import HIDDEN, is_secret_name, redacted

#: What one event and level may fill with lines, seconds.
WINDOW = 10.0
#: At most so many are counted; beyond, the oldest is forgotten.
EVENTS = 1000
_TEMPORAL = "temporal_workflow"


def configure(level: str, format: str, process: str, limit: int = 0) -> None:
    """Send our events, and those of libraries, to standard error in one shape.

    Ours take the short way: there is one for every request. The libraries' come through ``logging``. ``limit``: lines
    of one event and level below error in ten seconds; 0: as many as come.
    """
    sampled = Sampled(limit)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        redact,
        # What we add ourselves needs no look.
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(process),
    ]
    as_json = format == "json"
    structlog.configure(
        processors=[
            sampled,
            *shared,
            structlog.processors.JSONRenderer(_json) if as_json else structlog.dev.ConsoleRenderer(),
        ],
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if as_json
        else structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = structlog.processors.JSONRenderer(_text) if as_json else structlog.dev.ConsoleRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or sampled.admits(record.name, record.levelname))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=[_TEMPORAL]),
                _of_workflow,
                *shared,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The interceptor logs what fails, with its code; these would say it again.
    for chatty in ("httpx", "temporalio.activity", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


class Sampled:
    """Drops what one event says too often; the first line after the window says how many were dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Event and level → when its window began, its lines, those that were dropped.
        self._windows: dict[tuple[str, str], list[float]] = {}

    def admits(self, event: str, level: str) -> bool:
        return self._suppressed(event, level) is not None

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        if method in ("error", "exception", "critical"):
            return event
        suppressed = self._suppressed(str(event.get("event")), method)
        if suppressed is None:
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        return event

    def _suppressed(self, event: str, level: str) -> int | None:
        """How many were dropped before this one; None: this one is."""
        if not self._limit:
            return 0
        now = time.monotonic()
        window = self._windows.get((event, level))
        if window is None or now - window[0] >= WINDOW:
            while window is None and len(self._windows) >= EVENTS:
                self._windows.pop(next(iter(self._windows)))
            self._windows[event, level] = [now, 1, 0]
            return int(window[2]) if window is not None else 0
        if window[1] < self._limit:
            window[1] += 1
            return 0
        window[2] += 1
        return None


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Nothing secret leaves the process, whoever logs it, and also where an error says it."""
    for name, value in event.items():
        if not name.startswith("_"):
            event[name] = HIDDEN if value is not None and is_secret_name(name) else redacted(value)
    return event


def _of_workflow(_logger: object, _method: str, event: EventDict) -> EventDict:
    """What Temporal's SDK says of the run that logs, under the names that we have for it."""
    told = event.pop(_TEMPORAL, None)
    if isinstance(told, dict):
        event["workflow_id"] = told.get("workflow_id")
        event["kind"] = told.get("workflow_type")
    return event


def _json(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def _text(event: EventDict, **_: Any) -> str:
    return _json(event).decode()


def _named(process: str) -> Processor:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add
