"""Spans, as the rest of the program sees them. Off unless a process was told to trace (``worker.tracing``): then
nothing here costs more than a look, and no tracing library is imported.

A trace begins with a request. Its context goes with the workflow's order, so whoever starts the run continues it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Span(Protocol):
    """Never given what users wrote, or what engines said: ids, codes and names of ours only."""

    def note(self, **attributes: str | int) -> None:
        """Attributes; ``_`` in their names stands for a dot."""

    def rename(self, name: str) -> None: ...

    def failed(self, code: str) -> None:
        """It ended with an error; its code."""


class Tracer(Protocol):
    def serve(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
        """The span of a request, which continues the trace that its headers name."""

    def span(self, name: str) -> AbstractContextManager[Span]:
        """A part of whatever is traced now."""

    def continued(self, traceparent: str) -> AbstractContextManager[None]:
        """What is done within it belongs to this span of another process."""

    def traceparent(self) -> str | None:
        """The current span as W3C Trace Context writes it; None: nothing is traced."""


class _Nothing:
    def note(self, **attributes: str | int) -> None: ...

    def rename(self, name: str) -> None: ...

    def failed(self, code: str) -> None: ...


_OFF: AbstractContextManager[Span] = nullcontext(_Nothing())
_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From here on, in this process."""
    global _tracer  # noqa: PLW0603 - one per process, as the log's configuration
    _tracer = tracer


def serve(method: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
    return _OFF if _tracer is None else _tracer.serve(method, headers)


def span(name: str) -> AbstractContextManager[Span]:
    return _OFF if _tracer is None else _tracer.span(name)


def continued(traceparent: str | None) -> AbstractContextManager[None]:
    return nullcontext() if _tracer is None or traceparent is None else _tracer.continued(traceparent)


def traceparent() -> str | None:
    return None if _tracer is None else _tracer.traceparent()


def trace_id() -> str | None:
    """Of the current span, for log lines."""
    current = traceparent()
    return None if current is None else current.split("-")[1]
