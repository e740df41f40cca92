"""Every call of a port to its driver, counted, timed and traced: here, and not in the drivers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from drivers.machines import Cancelled
from model import tracing
from model.errors import CairnError
from model.metrics import ENGINE_CALL_SECONDS, ENGINE_CALLS

P = TypeVar("P")


def measured(driver: P, backend: str) -> P:
    """The same port; ``backend``: the label of what it calls."""
    return cast(P, _Measured(driver, backend))


class _Measured:
    def __init__(self, driver: object, backend: str) -> None:
        self._driver = driver
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if not callable(found):
            return found
        wrapped = _wrap(found, self._backend, name)
        setattr(self, name, wrapped)
        return wrapped


def _wrap(call: Callable[..., Any], backend: str, name: str) -> Callable[..., Any]:
    seconds = ENGINE_CALL_SECONDS.labels(backend, name)

    def run(*args: Any, **more: Any) -> Any:
        outcome = "internal"
        began = time.perf_counter()
        with tracing.span(f"{backend}.{name}") as span:
            try:
                result = call(*args, **more)
                outcome = "ok"
                return result
            except Cancelled:
                outcome = "cancelled"
                raise
            except CairnError as error:
                outcome = error.code
                raise
            finally:
                seconds.observe(time.perf_counter() - began)
                ENGINE_CALLS.labels(backend, name, outcome).inc()
                if outcome != "ok":
                    span.failed(outcome)

    return run
