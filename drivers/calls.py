"""The call port: requests to what listens inside a machine, in its own network alone. A driver may have it."""

from __future__ import annotations

import socket
from typing import Protocol
from uuid import UUID

from drivers.streams import Stream
from model.streams import Call

#: From a request to the head of its answer; and how long a body may be silent.
ANSWER_SECONDS, SILENCE_SECONDS = 15.0, 90.0
CONNECT_SECONDS = 5.0


class Answer(Stream[bytes], Protocol):
    """An answer whose head has come; its body is read as it is asked for."""

    status: int


class Calls(Protocol):
    """Of the machines of one host. The rules of ``drivers.streams`` hold."""

    def call(self, machine: UUID, call: Call) -> Answer:
        """Send it to the machine's loopback. Not tried again: what breaks off may have arrived.

        Raises AgentUnavailable where nothing listens there, or what does is no HTTP; InvalidState where the machine
        does not run; Unsupported where this process may not enter its network.
        """

    def connect(self, machine: UUID, port: int) -> socket.socket:
        """A connection to the machine's loopback. Raises PortClosed where nothing listens there, and as ``call``."""
