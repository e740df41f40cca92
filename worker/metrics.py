"""The metrics of a worker or an agent, over HTTP. The API has its own way, on its own port."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from model import metrics
from model.metrics import REGISTRY, Figures, registry_of
from model.settings import Settings

#: For who connects and says nothing.
PATIENCE = 10
log = structlog.get_logger()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """One scrape is like another."""


def serve(settings: Settings, process: str, *more: Figures) -> Callable[[], None]:
    """Serve ``/metrics`` from a thread, where the settings ask for it; what ends it.

    Ends the process where it cannot listen there.
    """
    metrics.name_process(process)
    if settings.metrics_port is None:
        return lambda: None
    registry = registry_of(*more)
    token = settings.metrics_token

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        plain = [("Content-Type", "text/plain; charset=utf-8")]
        if environ["PATH_INFO"] != "/metrics":
            start("404 Not Found", plain)
            return [b"metrics are at /metrics\n"]
        if not _may_read(environ.get("HTTP_AUTHORIZATION", ""), token):
            start("401 Unauthorized", [*plain, ("WWW-Authenticate", "Bearer")])
            return [b"send the token for the metrics as a bearer token\n"]
        shown = generate_latest(REGISTRY) + generate_latest(registry)
        start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [shown]

    try:
        server = make_server(settings.metrics_address, settings.metrics_port, answer, _Server, _Handler)
    except OSError as error:
        where = f"{settings.metrics_address}:{settings.metrics_port}"
        raise SystemExit(f"CAIRN_METRICS_PORT: cannot listen on {where}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics.listening", address=settings.metrics_address, port=server.server_port)

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def _may_read(authorization: str, token: SecretStr | None) -> bool:
    if token is None:
        return True
    scheme, _, shown = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.encode(), token.get_secret_value().encode())


def temporal_runtime(settings: Settings) -> Runtime | None:
    """Temporal's SDK with its own metrics, where the settings ask for them; None: as it is without."""
    if settings.temporal_metrics_port is None:
        return None
    address = settings.metrics_address
    where = f"[{address}]" if ":" in address else address
    told = PrometheusConfig(bind_address=f"{where}:{settings.temporal_metrics_port}", durations_as_seconds=True)
    return Runtime(telemetry=TelemetryConfig(metrics=told))
