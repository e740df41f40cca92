"""A Docker engine, as one owner sees it: the client, what is ours there, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import docker.errors
import requests
import urllib3.exceptions
from docker import APIClient

from drivers.ownership import Owner, machine_name
from model.errors import EngineRefused, EngineUnavailable

#: Below the ten seconds within which a cancel acts. A call that takes longer is ambiguous, and repeated.
CALL_SECONDS = 9
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
