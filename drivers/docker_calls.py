"""Requests to what listens inside containers of a Docker engine, on the loopback of each."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from drivers import http_calls, namespaces
from drivers.calls import CONNECT_SECONDS
from drivers.docker_egress import is_able
from drivers.docker_engine import DockerEngine, calling
from drivers.docker_places import Place, entered
from drivers.http_calls import HttpAnswer
from drivers.ownership import Owner, machine_name
from model.errors import InvalidState, PortClosed, Unsupported
from model.streams import Call


class DockerCalls:
    """The call port on one Docker engine, for one owner."""

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID) -> None:
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))

    def call(self, machine: UUID, call: Call) -> HttpAnswer:
        with self._entered(machine) as place:
            return http_calls.request(lambda: _connect(place, call.port), call)

    def connect(self, machine: UUID, port: int) -> socket.socket:
        with self._entered(machine) as place:
            try:
                return _connect(place, port)
            except OSError as error:
                raise PortClosed(f"nothing answers at port {port} of {machine_name(machine)}", port=port) from error

    @contextmanager
    def _entered(self, machine: UUID) -> Iterator[Place]:
        with calling():
            found = self._engine.require(machine)
        if not found["State"]["Running"] or found["State"]["Paused"]:
            raise InvalidState(f"{machine_name(machine)} does not run", state=found["State"]["Status"])
        if not is_able(self._engine.base_url):
            raise Unsupported("call", "docker")
        with entered(self._engine, found["Id"]) as place:
            yield place


def _connect(place: Place, port: int) -> socket.socket:
    return namespaces.connect(place.namespace, ("127.0.0.1", port), CONNECT_SECONDS)
