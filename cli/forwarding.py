"""Ports of a session's sandbox, on this machine: each connection is carried through a WebSocket of its own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from cli import render
from cli.client import Client
from cli.errors import CommandFailed, Exit, usage
from cli.options import reason

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

PIECE = 64 * 1024
#: After so long it is seen at the latest that the session is gone; and after so long where a connection failed.
LOOK_SECONDS, DOUBT_SECONDS = 15.0, 1.0
ANSWER_SECONDS = 10.0
#: Of whoever sends no more, as API and agent say it too.
SHUT = '{"end": true}'
MOST_PORT = 65535


class Ports(NamedTuple):
    """Where it is reached here (0: any that is free), and where it listens in the sandbox."""

    here: int
    there: int


def ports_of(text: str) -> Ports:
    """``8080`` or ``3000:8080``. Raises CommandFailed."""
    here, _, there = text.rpartition(":")
    try:
        found = Ports(int(here or there), int(there))
    except ValueError:
        found = Ports(-1, -1)
    if not (0 <= found.here <= MOST_PORT and 1 <= found.there <= MOST_PORT):
        raise usage(f"'{text}' is no port", "write PORT, or LOCAL:PORT where it is to be another one here")
    return found


def listen(address: str, port: int) -> socket.socket:
    """Raises CommandFailed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=64)
    except (OSError, OverflowError) as error:
        raise usage(f"cannot listen on {address} port {port}: {reason(error)}", "choose another: LOCAL:PORT") from None


def forward(client: Client, path: str, listeners: dict[socket.socket, int]) -> None:
    """Carry what comes to the listeners to these ports, until the session is gone, which raises CommandFailed.
    ``path``: that of the session."""
    doubt, gone = threading.Event(), threading.Event()
    threading.Thread(target=_look, args=(client, path, doubt, gone), daemon=True).start()
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ, listener)
        while not gone.is_set():
            for key, _ in selector.select(DOUBT_SECONDS):
                with contextlib.suppress(OSError):
                    made, _ = key.data.accept()
                    arguments = (client, f"{path}/forward/{listeners[key.data]}", made, doubt)
                    threading.Thread(target=_carry, args=arguments, daemon=True).start()
    raise CommandFailed("there is no such session any more: nothing is forwarded", "not_found", Exit.NOT_FOUND)


def _look(client: Client, session: str, doubt: threading.Event, gone: threading.Event) -> None:
    """Sees that the session is gone; sooner in ``doubt``."""
    while not _is_gone(client, session):
        doubt.clear()
        time.sleep(DOUBT_SECONDS)
        doubt.wait(LOOK_SECONDS)
    gone.set()


def _carry(client: Client, path: str, local: socket.socket, doubt: threading.Event) -> None:
    """``doubt``: set where there may be no such session any more."""
    from websockets.exceptions import ConnectionClosed

    try:
        with local, client.socket(path, {}) as remote:
            threading.Thread(target=_out, args=(local, remote), daemon=True).start()
            try:
                for message in remote:
                    if isinstance(message, bytes):
                        local.sendall(message)
                    else:
                        local.shutdown(socket.SHUT_WR)
            finally:  # also for who still reads from it
                with contextlib.suppress(OSError):
                    local.shutdown(socket.SHUT_RDWR)
    except CommandFailed as failed:
        render.say(f"a connection was not forwarded: {failed.message}")
        doubt.set()
    except ConnectionClosed as closed:
        reason = closed.rcvd.reason if closed.rcvd else ""
        render.say(f"a connection broke off{f': {reason}' if reason else ''}")
        doubt.set()
    except OSError:
        pass  # who connected here has gone
    except RuntimeError:
        if not client.http.is_closed:  # as forwarding has ended meanwhile
            raise


def _is_gone(client: Client, session: str) -> bool:
    try:
        found = client.request("GET", session, patience=0, timeout=ANSWER_SECONDS)["data"]
    except CommandFailed as failed:
        return failed.exit is Exit.NOT_FOUND
    except RuntimeError:  # forwarding was called off, and the client with it
        return True
    return found["status"] in ("removing", "removed")


def _out(local: socket.socket, remote: ClientConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed, OSError):
        while data := local.recv(PIECE):
            remote.send(data)
        remote.send(SHUT)
