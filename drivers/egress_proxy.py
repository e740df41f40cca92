"""The proxy of one instance: ``CONNECT name:port``, and ``http://`` requests, to what the instance's list names.

What comes in is of a program that nobody trusts. A plain request is taken apart and written anew (no bytes of it go
through as they are), and is the only one of its connection; of a tunnel the name is known, and not what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import h11
import structlog

from drivers import outbound
from model.errors import UrlRefused
from model.metrics import EGRESS_REFUSED
from model.networks import permits, server_name

#: Connections of one instance at once; further ones wait in its own backlog, which is as long.
MOST_CONNECTIONS = 256
#: Between two that are taken, so that an instance which does nothing but connect does not keep the agent busy.
PACE_SECONDS = 0.004
#: The line of a request with its headers; likewise of an answer.
MOST_HEAD = 32 * 1024
HEAD_SECONDS, CONNECT_SECONDS = 10.0, 10.0
#: A connection on which nothing goes in either direction for so long is closed.
IDLE_SECONDS = 300.0
#: How long, and for how much, a client is listened to that was refused: closed at once, it might not read why.
LINGER_SECONDS, LINGER_BYTES = 1.0, 256 * 1024
CHUNK = 64 * 1024
OK = 200

_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]@/?#\\]+)(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(r"http://([^/?#]*)((?:/[^?#]*)?(?:\?[^#]*)?)", re.IGNORECASE)
#: Of one connection, and not of what is asked or answered (RFC 9110, 7.6.1). ``host`` is written anew.
_OF_CONNECTION = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"upgrade", b"expect", b"host"),
    )
)
Headers = Sequence[tuple[bytes, bytes]]
log = structlog.get_logger()


class _Refused(Exception):
    """What is asked is not done: the status and the line that say why. ``why``: the label of the metric."""

    def __init__(self, status: int, said: str, why: str | None = None) -> None:
        super().__init__(said)
        self.status, self.why = status, why


class _Target(NamedTuple):
    host: str
    port: int
    #: Of a plain request: what is asked of the server.
    path: bytes = b""


class EgressProxy:
    """For one instance."""

    def __init__(self, instance: UUID, allow: Sequence[str], networks: outbound.Networks) -> None:
        """``networks``: those that may be reached although they are not global."""
        self._instance = instance
        self._allow = allow
        self._networks = networks
        #: Why it last refused something, or could not reach it; whoever asks what then failed may reset it.
        self.refused: str | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Until it is cancelled; then nothing of it is left, the listener included."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(MOST_CONNECTIONS)
        connections: set[asyncio.Task[None]] = set()

        def ended(task: asyncio.Task[None]) -> None:
            connections.discard(task)
            room.release()

        try:
            while True:
                await room.acquire()
                try:
                    client, _ = await loop.sock_accept(listener)
                except OSError as error:  # this process has no file descriptor left, say
                    room.release()
                    log.warning("egress.not_accepted", instance_id=str(self._instance), error=str(error))
                    await asyncio.sleep(1)
                    continue
                task = asyncio.create_task(self._serve_one(client))
                connections.add(task)
                task.add_done_callback(ended)
                await asyncio.sleep(PACE_SECONDS)
        finally:
            listener.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _serve_one(self, client: socket.socket) -> None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        with client:
            try:
                await self._answer(client, server)
            except _Refused as refused:
                self.refused = str(refused)
                if refused.why:
                    EGRESS_REFUSED.labels(refused.why).inc()
                    log.info("egress.refused", instance_id=str(self._instance), why=refused.why, said=str(refused))
                with contextlib.suppress(OSError, TimeoutError, h11.LocalProtocolError):
                    await _say(client, server, refused)
            except (OSError, h11.ProtocolError):
                pass  # one of the two has gone, or says nothing any more
            except Exception:  # an odd request ends its own connection, and nothing else
                log.exception("egress.failed", instance_id=str(self._instance))

    async def _answer(self, client: socket.socket, server: h11.Connection) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                request = await _event(client, server)
        except TimeoutError:
            raise _Refused(408, "no whole request came within 10 s") from None
        except h11.RemoteProtocolError as error:
            raise _Refused(error.error_status_hint, f"that is no request: {error}", "request") from None
        if not isinstance(request, h11.Request):
            return  # it has gone again
        target = _target_of(request)
        plain = None if request.method == b"CONNECT" else _rewritten(request, target)
        upstream = await self._connect(target)
        with upstream:
            async with asyncio.timeout(IDLE_SECONDS) as limit:
                if plain is None:
                    await _tunnel(client, upstream, server.trailing_data[0], limit)
                else:
                    await _forward(client, server, upstream, plain, limit)

    async def _connect(self, target: _Target) -> socket.socket:
        host, port = target.host, target.port
        if not permits(self._allow, host, port):
            raise _Refused(403, f"'{host}' port {port} is not among what may be reached from here", "name")
        name = server_name(host) or host
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                # Judged and connected to: the addresses of one and the same answer.
                return await _reach(await outbound.addresses(name, port, self._networks, self._instance))
        except UrlRefused as error:
            raise _Refused(403, error.message, "address") from None
        except TimeoutError:
            raise _Refused(504, f"'{host}' port {port} does not answer") from None
        except OSError as error:
            # asyncio has words of its own for what the kernel says.
            number = error.errno or 0
            said = os.strerror(number) if number > 0 else error.strerror or error
            raise _Refused(502, f"'{host}' port {port} cannot be reached: {said}") from None


def _target_of(request: h11.Request) -> _Target:
    """Raises _Refused."""
    asked = request.target.decode("ascii", "replace")
    if request.method == b"CONNECT":
        authority, path, usual = asked, "", None
    else:
        absolute = _ABSOLUTE.fullmatch(asked)
        if absolute is None:
            raise _Refused(400, "this is a proxy: ask for http://NAME/…, or CONNECT NAME:443 for https", "request")
        authority, path, usual = absolute[1], absolute[2], 80
    found = _AUTHORITY.fullmatch(authority)
    port = int(found[2]) if found and found[2] else usual
    if found is None or port is None or not 0 < port <= 65535:  # noqa: PLR2004 - ports
        raise _Refused(400, f"'{authority[:300]}' is not NAME:PORT", "request")
    return _Target(found[1], port, (path if path.startswith("/") else f"/{path}").encode())


def _rewritten(request: h11.Request, target: _Target) -> h11.Request:
    """As the server gets it. Raises _Refused."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        # Who of two takes which of both as the end decides where the next request begins.
        raise _Refused(400, "the request has both Content-Length and Transfer-Encoding", "request")
    name = server_name(target.host) or target.host
    host = name if target.port == 80 else f"{name}:{target.port}"  # noqa: PLR2004 - the port of http
    headers = [(b"Host", host.encode()), *_end_to_end(request.headers), (b"Connection", b"close")]
    return h11.Request(method=request.method, target=target.path, headers=headers)


def _end_to_end(headers: Any) -> Headers:
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")} - {
        b"content-length",
        b"transfer-encoding",
    }
    return [(name, value) for name, value in headers if name not in _OF_CONNECTION and name not in named]


async def _reach(addresses: Sequence[tuple[socket.AddressFamily, Any]]) -> socket.socket:
    """The first that takes the connection. Raises OSError."""
    failed: OSError = OSError("the name has no address")
    for family, address in addresses:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(made, address)
        except OSError as error:
            made.close()
            failed = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failed


async def _tunnel(client: socket.socket, upstream: socket.socket, first: bytes, limit: asyncio.Timeout) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"HTTP/1.1 200 Connection established\r\n\r\n")
    if first:
        await loop.sock_sendall(upstream, first)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(client, upstream, limit))
            both.create_task(_pump(upstream, client, limit))
    except* OSError:
        pass  # one of the two has gone


async def _pump(source: socket.socket, sink: socket.socket, limit: asyncio.Timeout) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        _lives(limit)
        await loop.sock_sendall(sink, data)
        _lives(limit)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _lives(limit: asyncio.Timeout) -> None:
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time() + IDLE_SECONDS)


async def _forward(
    client: socket.socket, server: h11.Connection, upstream: socket.socket, request: h11.Request, limit: asyncio.Timeout
) -> None:
    loop = asyncio.get_running_loop()
    there = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
    await loop.sock_sendall(upstream, there.send(request) or b"")
    if server.they_are_waiting_for_100_continue:
        more = server.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        await loop.sock_sendall(client, more or b"")
    body = asyncio.create_task(_send_body(client, server, upstream, there, limit))
    try:
        await _send_answer(client, server, upstream, there, limit)
    except h11.RemoteProtocolError:
        if server.our_state is h11.SEND_RESPONSE:
            raise _Refused(502, "what the server answered is no HTTP") from None
        raise
    finally:
        body.cancel()
        await asyncio.gather(body, return_exceptions=True)


async def _send_body(
    client: socket.socket,
    server: h11.Connection,
    upstream: socket.socket,
    there: h11.Connection,
    limit: asyncio.Timeout,
) -> None:
    """What comes of the request's body, to its end."""
    loop = asyncio.get_running_loop()
    while True:
        event = await _event(client, server)
        _lives(limit)
        if isinstance(event, h11.Data):
            await loop.sock_sendall(upstream, there.send(h11.Data(data=bytes(event.data))) or b"")
        elif isinstance(event, h11.EndOfMessage):
            await loop.sock_sendall(upstream, there.send(h11.EndOfMessage()) or b"")
            return
        else:
            return


async def _send_answer(
    client: socket.socket,
    server: h11.Connection,
    upstream: socket.socket,
    there: h11.Connection,
    limit: asyncio.Timeout,
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        event = await _event(upstream, there)
        _lives(limit)
        said: bytes | None = None
        if isinstance(event, h11.Response):
            headers = _end_to_end(event.headers)
            if any(name == b"transfer-encoding" for name, _ in headers):
                headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers = [*headers, (b"Connection", b"close")]
            said = server.send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
        elif isinstance(event, h11.Data):
            said = server.send(h11.Data(data=bytes(event.data)))
        elif isinstance(event, h11.EndOfMessage):
            said = server.send(h11.EndOfMessage())
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the server has gone")
        if said:
            await loop.sock_sendall(client, said)
            _lives(limit)
        if isinstance(event, h11.EndOfMessage):
            return


async def _event(peer: socket.socket, connection: h11.Connection) -> Any:
    """The next one that the peer sends. Raises RemoteProtocolError, OSError."""
    loop = asyncio.get_running_loop()
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await loop.sock_recv(peer, CHUNK))
    return event


async def _say(client: socket.socket, server: h11.Connection, refused: _Refused) -> None:
    if server.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    loop = asyncio.get_running_loop()
    line = f"cairn: {refused}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(line))),
        ("Connection", "close"),
    ]
    said = server.send(h11.Response(status_code=refused.status, headers=headers)) or b""
    said += server.send(h11.Data(data=line)) or b""
    async with asyncio.timeout(LINGER_SECONDS):
        await loop.sock_sendall(client, said)
        client.shutdown(socket.SHUT_WR)
        heard = 0
        while heard < LINGER_BYTES and (data := await loop.sock_recv(client, CHUNK)):
            heard += len(data)
