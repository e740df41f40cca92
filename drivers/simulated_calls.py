"""What a simulated host's machines answer: the reference agent, of all of them together, which runs no commands."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from uuid import UUID

from drivers import http_calls
from drivers.calls import CONNECT_SECONDS
from drivers.http_calls import HttpAnswer
from drivers.reference_agent import Agent, Server
from model.streams import Call

WORD_SECONDS = 0.05


class SimulatedCalls:
    """The call port. Each machine has an agent of its own, which keeps what it said in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[UUID, Server] = {}
        self._lock = threading.Lock()

    def call(self, machine: UUID, call: Call) -> HttpAnswer:
        return http_calls.request(lambda: self.connect(machine, call.port), call)

    def connect(self, machine: UUID, port: int) -> socket.socket:
        """Its agent, whatever the port."""
        return socket.create_connection(("127.0.0.1", self._server(machine).server_port), CONNECT_SECONDS)

    def _server(self, machine: UUID) -> Server:
        with self._lock:
            if machine not in self._servers:
                agent = Agent(self._folder / str(machine), commands=False, delay=WORD_SECONDS)
                self._servers[machine] = made = Server(0, agent)
                threading.Thread(target=made.serve_forever, name="simulated-agent", daemon=True).start()
            return self._servers[machine]
