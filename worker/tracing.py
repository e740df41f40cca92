"""Tracing of a process, where its settings ask for it: only then the libraries for it are imported."""

from __future__ import annotations

from collections.abc import Callable

from temporalio.client import Interceptor

from model.settings import Settings

_interceptors: list[Interceptor] = []
_stop: list[Callable[[], None]] = []


def start(settings: Settings, process: str) -> None:
    """Ends the process where it is to trace, and the extra is not installed."""
    if settings.otlp_endpoint is None:
        return
    try:
        from worker import opentelemetry as otel
    except ImportError as error:
        raise SystemExit(
            f"CAIRN_OTLP_ENDPOINT is set, and {error.name} is missing: install the extra 'tracing'"
        ) from None
    exporter = otel.exporter_to(settings.otlp_endpoint)
    interceptor, stop = otel.install(exporter, process, settings.trace_ratio)
    _interceptors[:], _stop[:] = [interceptor], [stop]


def interceptors() -> list[Interceptor]:
    """Of a connection to Temporal; its workers take them over."""
    return list(_interceptors)


def stop() -> None:
    """Send what has not been sent, while there is time. Nothing is traced from here on."""
    for each in _stop:
        each()
    _interceptors.clear()
    _stop.clear()
