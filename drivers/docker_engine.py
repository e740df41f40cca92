"""A Docker engine, as one owner sees it: the client, what is ours there, and its errors as ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import docker.errors
import requests
import urllib3.exceptions
from docker import APIClient

from drivers.machines import Cancelled, Check
from drivers.ownership import Owner, machine_name
from model.errors import EngineRefused, EngineUnavailable, NotFound

#: Below the ten seconds within which a cancel acts. A call that takes longer is ambiguous, and repeated.
CALL_SECONDS = 9
POLL_SECONDS = 0.05
#: Changing calls at once: more only wait inside the engine, past their time-out.
CHANGES = threading.BoundedSemaphore(8)
ROOM_SECONDS = 30
NOT_FOUND, CONFLICT, SERVER_ERROR = 404, 409, 500


def connect(base_url: str) -> APIClient:
    """A client for short calls; asks the engine for its version."""
    return APIClient(base_url, timeout=CALL_SECONDS, max_pool_size=64)


class DockerEngine:
    """One engine, for one owner."""

    def __init__(self, base_url: str, owner: Owner) -> None:
        self.base_url = base_url
        self.owner = owner
        self._connected: APIClient | None = None

    @property
    def client(self) -> APIClient:
        """Connected at its first use, so that an agent starts before its engine; asks the version once."""
        # Not a cached_property: in Python 3.11 its lock makes callers of a silent engine time out one after another.
        if self._connected is None:
            self._connected = connect(self.base_url)
        return self._connected

    def find(self, machine: UUID) -> dict[str, Any] | None:
        """Whatever has the machine's name."""
        try:
            found: dict[str, Any] = self.client.inspect_container(machine_name(machine))
        except docker.errors.NotFound:
            return None
        return found

    def own(self, machine: UUID) -> dict[str, Any] | None:
        """What has the machine's name and our labels."""
        found = self.find(machine)
        ours = self.owner.owned(machine_name(machine), found["Config"]["Labels"] or {}) if found else None
        return found if ours is not None else None

    def require(self, machine: UUID) -> dict[str, Any]:
        """The same. Raises NotFound."""
        found = self.own(machine)
        if found is None:
            raise NotFound(f"{machine_name(machine)} is not on the engine")
        return found


def said(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)[:1000]


@contextmanager
def calling() -> Iterator[None]:
    """Engine errors as ours: a refusal is final; what may pass, or is ambiguous, is tried again."""
    try:
        yield
    except docker.errors.APIError as error:
        if error.status_code is not None and error.status_code < SERVER_ERROR and error.status_code != CONFLICT:
            raise EngineRefused(f"the engine refused: {said(error)}") from error
        raise EngineUnavailable(f"the engine failed: {said(error)}") from error
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as error:
        raise EngineUnavailable(f"the engine does not answer: {said(error)}") from error


@contextmanager
def changing(cancelled: Check = lambda: False) -> Iterator[None]:
    """Take part in the changing calls; gives up where others, of an engine that hangs, make no room."""
    until = time.monotonic() + ROOM_SECONDS
    while not CHANGES.acquire(timeout=POLL_SECONDS):
        if cancelled():
            raise Cancelled
        if time.monotonic() > until:
            raise EngineUnavailable("the engine is busy with earlier calls")
    try:
        yield
    finally:
        CHANGES.release()


def pause(cancelled: Check) -> None:
    """Between two looks at what is waited for. Raises Cancelled."""
    if cancelled():
        raise Cancelled
    time.sleep(POLL_SECONDS)
