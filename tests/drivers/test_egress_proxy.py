"""The proxy of one instance, on loopback: what it lets through, how it says no, and what odd clients do to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from typing import NamedTuple

import pytest

from drivers import egress_proxy, outbound
from drivers.egress_proxy import MOST_CONNECTIONS, EgressProxy
from model.base import new_id
from model.metrics import REGISTRY

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
Serve = Callable[[bytes], Awaitable[bytes]]


class Proxy(NamedTuple):
    port: int
    #: Of the server behind it, `localhost`.
    there: int
    #: Everything that came to that, connection by connection.
    heard: list[bytes]

    async def ask(self, request: bytes) -> bytes:
        """Everything that is answered, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request.replace(b"SERVER", b"localhost:%d" % self.there))
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def proxied(answer: bytes, *, networks: outbound.Networks = LOOPBACK) -> AsyncIterator[Proxy]:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(heard)
        heard.append(b"")
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.15):
                while data := await reader.read(65536):
                    heard[number] += data
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    there = server.sockets[0].getsockname()[1]
    listener = socket.create_server(("127.0.0.1", 0), backlog=MOST_CONNECTIONS)
    listener.setblocking(False)
    proxy = EgressProxy(new_id(), [f"localhost:{there}", "nowhere.invalid"], networks)
    serving = asyncio.create_task(proxy.serve(listener))
    try:
        yield Proxy(listener.getsockname()[1], there, heard)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        server.close()
        assert listener.fileno() == -1


def refused(why: str) -> float:
    return REGISTRY.get_sample_value("cairn_egress_refused_total", {"why": why}) or 0


async def test_plain_requests_are_written_anew_and_are_alone_on_their_connection() -> None:
    async with proxied(
        b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\nX-Kept: 1\r\nKeep-Alive: timeout=9\r\n\r\nokmore"
    ) as proxy:
        said = await proxy.ask(
            b"POST http://SERVER/a/b?c=d HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 3\r\n"
            b"Proxy-Authorization: Basic xyz\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nX-Other: 2\r\n\r\nabc"
            b"GET http://SERVER/second HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert said.startswith(b"HTTP/1.1 201 Made\r\n") and said.endswith(b"\r\n\r\nok")
        assert b"x-kept: 1" in said.lower() and b"keep-alive" not in said.lower()
        assert b"connection: close" in said.lower()
        (heard,) = proxy.heard
        head, _, body = heard.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /a/b?c=d HTTP/1.1\r\nHost: localhost:%d\r\n" % proxy.there)
        assert body == b"abc" and b"second" not in heard
        lowered = head.lower()
        assert b"x-other: 2" in lowered and b"connection: close" in lowered
        assert not any(gone in lowered for gone in (b"proxy-", b"x-mine", b"elsewhere"))


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
    ],
)
async def test_answers_of_every_form_end_where_they_end(answer: bytes, body: bytes) -> None:
    async with proxied(answer) as proxy:
        said = await proxy.ask(b"GET http://SERVER HTTP/1.1\r\nHost: x\r\n\r\n")
        assert said.partition(b"\r\n\r\n")[2] == body
        assert proxy.heard[0].startswith(b"GET / HTTP/1.1\r\n")


async def test_body_in_chunks_goes_through_and_who_waits_to_be_asked_for_it_is() -> None:
    async with proxied(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as proxy:
        said = await proxy.ask(
            b"PUT http://SERVER/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;ext=1\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n"
        )
        assert said.startswith(b"HTTP/1.1 100 ") and b"HTTP/1.1 200 OK" in said
        assert b"abc" in proxy.heard[0] and b"ext=1" not in proxy.heard[0] and b"expect" not in proxy.heard[0].lower()


async def test_tunnel_is_both_ways_and_half_closed_like_one() -> None:
    async with proxied(b"goodbye") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: x\r\n\r\nfirst" % proxy.there)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b" second")
        writer.write_eof()
        assert await reader.read() == b"goodbye"
        assert proxy.heard == [b"first second"]
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status", "said", "why"),
    [
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: SERVER\r\n\r\n", 403, b"'evil.example' port 443", "name"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n", 403, b"'localhost' port 1", "name"),
        (b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, b"'127.0.0.1'", "name"),
        (b"CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n", 403, b"'[::1]'", "name"),
        (b"CONNECT localhost HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"NAME:PORT", "request"),
        (b"CONNECT localhost:99999 HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"NAME:PORT", "request"),
        (b"GET http://localhost@evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"NAME:PORT", "request"),
        (b"GET http://SERVER#@evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"proxy", "request"),
        (b"GET http://SERVER\\@evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"NAME:PORT", "request"),
        (b"GET https://SERVER/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"CONNECT", "request"),
        (b"GET ftp://SERVER/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"proxy", "request"),
        (b"GET / HTTP/1.1\r\nHost: SERVER\r\n\r\n", 400, b"proxy", "request"),
        (b"GET http://SERVER/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, b"no request", "request"),
        (b"GET http://SERVER/ HTTP/1.1\r\nHost : x\r\n\r\n", 400, b"no request", "request"),
        (b"GET http://SERVER/ HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000, 431, b"no request", "request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b"no request", "request"),
        (
            b"POST http://SERVER/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(400, b"both", "request"),
        ),
        (
            b"POST http://SERVER/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            *(400, b"no request", "request"),
        ),
        (
            b"POST http://SERVER/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            *(501, b"no request", "request"),
        ),
    ],
)
async def test_what_is_refused_reaches_nobody_and_is_told_why(
    request_: bytes, status: int, said: bytes, why: str
) -> None:
    async with proxied(b"HTTP/1.1 200 OK\r\n\r\n") as proxy:
        before = refused(why)
        answer = await proxy.ask(request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        line = answer.partition(b"\r\n\r\n")[2]
        assert line.startswith(b"cairn: ") and said in line
        assert proxy.heard == []
        assert refused(why) == before + 1


async def test_a_name_that_leads_to_where_nobody_may_go_is_refused() -> None:
    async with proxied(b"HTTP/1.1 200 OK\r\n\r\n", networks=()) as proxy:
        before = refused("address")
        for request in (b"CONNECT SERVER HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://SERVER/ HTTP/1.0\r\n\r\n"):
            answer = await proxy.ask(request)
            assert answer.startswith(b"HTTP/1.1 403 ") and b"localhost is no public address" in answer
        assert proxy.heard == [] and refused("address") == before + 2


async def test_what_cannot_be_reached_is_no_refusal() -> None:
    async with proxied(b"this is no HTTP\r\n\r\n") as proxy:
        assert b" 502 " in await proxy.ask(b"GET http://SERVER/ HTTP/1.1\r\nHost: x\r\n\r\n")
        unknown = await proxy.ask(b"CONNECT nowhere.invalid:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert unknown.startswith(b"HTTP/1.1 502 ") and b"'nowhere.invalid' port 443 cannot be reached" in unknown


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(egress_proxy, "IDLE_SECONDS", 0.2)
    async with proxied(b"") as proxy:
        assert (await proxy.ask(b"GET http://SER")).startswith(b"HTTP/1.1 408 ")
        # A tunnel to one who waits, in which nothing goes.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            EgressProxy.__init__  # noqa: B018 - the list of the fixture names another port
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            serving = asyncio.create_task(EgressProxy(new_id(), [f"localhost:{port}"], LOOPBACK).serve(listener))
            quiet = Proxy(listener.getsockname()[1], port, [])
            assert await quiet.ask(b"CONNECT SERVER HTTP/1.1\r\nHost: x\r\n\r\n") == (
                b"HTTP/1.1 200 Connection established\r\n\r\n"
            )
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def test_more_connections_than_an_instance_may_have_wait_until_others_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(egress_proxy, "MOST_CONNECTIONS", 3)
    async with proxied(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as proxy:
        hogs = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
        waiting = asyncio.create_task(proxy.ask(b"GET http://SERVER/ HTTP/1.1\r\nHost: x\r\n\r\n"))
        await asyncio.sleep(0.3)
        assert not waiting.done() and proxy.heard == []
        hogs[0][1].close()
        assert b" 200 OK" in await waiting
        for _, writer in hogs[1:]:
            writer.close()
