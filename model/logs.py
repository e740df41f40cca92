"""Structured logs: one event per fact, one JSON object per line, ids bound by context."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor


def configure(level: str, format: str, process: str) -> None:
    """Send our events, and those of libraries, to standard error in one shape.

    Ours take the short way: there is one for every request. The libraries' come through ``logging``.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _named(process),
    ]
    as_json = format == "json"
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(_json) if as_json else structlog.dev.ConsoleRenderer()],
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if as_json
        else structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The interceptor logs what fails, with its code; these would say it again.
    for chatty in ("httpx", "temporalio.activity", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def _json(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def _named(process: str) -> Processor:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add
