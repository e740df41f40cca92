"""One request of HTTP over a socket that is open already."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Callable

from drivers.calls import ANSWER_SECONDS, SILENCE_SECONDS
from model.errors import AgentUnavailable
from model.streams import Call

PIECE = 64 * 1024
_BROKEN = (OSError, http.client.HTTPException, ValueError)


class HttpAnswer:
    """An Answer. Who closes it wakes who reads."""

    def __init__(self, socket: socket.socket, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self._socket = socket
        self._answer = answer
        self._closed = False

    def __iter__(self) -> HttpAnswer:
        return self

    def __next__(self) -> bytes:
        try:
            data = self._answer.read1(PIECE)
        except _BROKEN as error:
            if self._closed:
                raise StopIteration from None
            raise AgentUnavailable(f"the agent broke off: {_said(error)}") from error
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        self._closed = True
        # The socket's file is the reader's: shut down, it ends, whoever reads.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def request(connect: Callable[[], socket.socket], call: Call) -> HttpAnswer:
    """Raises AgentUnavailable."""
    try:
        opened = connect()
    except OSError as error:
        raise AgentUnavailable(f"no agent listens on port {call.port} of the sandbox: {_said(error)}") from error
    try:
        opened.settimeout(ANSWER_SECONDS)
        connection = http.client.HTTPConnection("127.0.0.1", call.port)
        connection.sock = opened
        kind = {} if call.body is None else {"Content-Type": "application/json"}
        body = None if call.body is None else call.body.encode()
        connection.request("GET" if body is None else "POST", call.path, body, {**call.headers, **kind})
        answer = connection.getresponse()
        opened.settimeout(SILENCE_SECONDS)
    except _BROKEN as error:
        opened.close()
        raise AgentUnavailable(f"the agent on port {call.port} of the sandbox: {_said(error)}") from error
    return HttpAnswer(opened, answer)


def _said(error: Exception) -> str:
    return "it was silent for too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
