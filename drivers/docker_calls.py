"""Requests to what listens inside containers of a Docker engine, on the loopback of each."""

from __future__ import annotations

from uuid import UUID

from drivers import http_calls, namespaces
from drivers.docker_egress import is_able
from drivers.docker_engine import DockerEngine, calling
from drivers.docker_places import entered
from drivers.http_calls import HttpAnswer
from drivers.ownership import Owner, machine_name
from model.errors import InvalidState, Unsupported
from model.streams import Call

CONNECT_SECONDS = 5.0


class DockerCalls:
    """The call port on one Docker engine, for one owner."""

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID) -> None:
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))

    def call(self, machine: UUID, call: Call) -> HttpAnswer:
        with calling():
            found = self._engine.require(machine)
        if not found["State"]["Running"] or found["State"]["Paused"]:
            raise InvalidState(f"{machine_name(machine)} does not run", state=found["State"]["Status"])
        if not is_able(self._engine.base_url):
            raise Unsupported("call", "docker")
        with entered(self._engine, found["Id"]) as place:
            address = ("127.0.0.1", call.port)
            return http_calls.request(lambda: namespaces.connect(place.namespace, address, CONNECT_SECONDS), call)
