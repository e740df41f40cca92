"""What an agent lets in, and what the API makes of an agent: over real TLS, with streams of our own behind it."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
import pytest_asyncio
from pydantic import SecretStr

from api.agent_client import Agents, Target, exit_code
from api.agent_leases import ticket_keys
from drivers.streams import Output
from model.errors import (
    CommandTimeout,
    EngineRefused,
    HostUnreachable,
    InvalidState,
    OutcomeUnknown,
    TooManyStreams,
    Unauthenticated,
)
from model.settings import Settings
from model.streams import END, Run, frame
from model.tickets import Gate, Ticket, Verb, new_signing_key, sign, verifying_key
from tests.services import eventually
from tests.worker.agent_site import CHUNK, HOST, INSTANCE, KEY, KEYS, PROJECT, Items, Site, serving
from worker import agent_http, agent_terminals, websocket
from worker.agent_server import OF_ONE, way_to
from worker.identity import new_keys
from worker.open_streams import OpenStreams
from worker.places import Places


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as one:
        yield one


async def read(site: Site, verb: Verb, **query: str) -> bytes:
    with closing(await site.agents.open(site.target, verb, query)) as opened:
        return await opened.it.read()


async def test_logs_stats_and_files(site: Site) -> None:
    assert await read(site, "logs") == b"one\ntwo\n"
    assert b'"cpu_percent":1.5' in await read(site, "stats")
    assert await read(site, "read", path="/etc") == b"tar of /etc"
    url = f"{site.url}/hosts/{HOST}/instances/{INSTANCE}/write?path=/"
    headers = {"Authorization": f"Bearer {site.ticket('write')}"}
    async with site.http.put(url, data=CHUNK * 3, headers=headers, ssl=False) as answer:
        assert answer.status == 204
    assert site.streams.archive == CHUNK * 3


async def test_ticket_opens_what_it_says_and_nothing_else(site: Site) -> None:
    assert await site.status("logs", site.ticket("logs")) == 200
    refused = [
        ("logs", None, INSTANCE, HOST),
        ("logs", "nonsense", INSTANCE, HOST),
        ("logs", site.ticket("logs"), uuid4(), HOST),
        ("exec", site.ticket("logs"), INSTANCE, HOST),
        ("terminal", site.ticket("exec"), INSTANCE, HOST),
        ("read", site.ticket("write"), INSTANCE, HOST),
        ("logs", site.ticket("logs"), INSTANCE, UUID(int=1)),
        ("logs", site.ticket("logs", host=uuid4()), INSTANCE, HOST),
        ("logs", site.ticket("logs", seconds=-1), INSTANCE, HOST),
        ("logs", site.ticket("logs", key=new_signing_key()), INSTANCE, HOST),
    ]
    for verb, ticket, instance, host in refused:
        assert await site.status(verb, ticket, instance, host) == 401, verb
    assert len(site.streams.opened) == 1


@pytest.mark.parametrize(("verb", "first", "again"), [("logs", 200, 200), ("exec", 200, 401), ("terminal", 101, 401)])
async def test_ticket_for_what_changes_something_is_used_once(site: Site, verb: Verb, first: int, again: int) -> None:
    ticket = site.ticket(verb)
    assert await site.status(verb, ticket) == first
    assert await site.status(verb, ticket) == again


def test_ticket_is_used_once_also_where_the_agent_was_started_again_meanwhile() -> None:
    wanted = Ticket(instance=INSTANCE, verb="exec")
    ticket = sign(wanted, host=HOST, key=KEY)
    time.sleep(0.01)
    with pytest.raises(Unauthenticated):
        Gate([verifying_key(KEY)]).check(ticket, wanted, HOST)


async def test_new_keys_of_the_api_replace_the_old(site: Site) -> None:
    other = new_signing_key()
    assert await site.status("logs", site.ticket("logs", key=other)) == 401
    site.gate.learn([verifying_key(other)])
    assert await site.status("logs", site.ticket("logs", key=other)) == 200
    with pytest.raises(HostUnreachable, match="ticket"):
        await site.agents.open(site.target, "logs", {})
    with pytest.raises(HostUnreachable, match="ticket"):  # so the command has not run
        await site.agents.run(site.target, Run(argv=["a" * 500_000], timeout=5, limit=10))


async def test_while_the_api_changes_its_key_tickets_of_both_are_taken(site: Site) -> None:
    new = new_signing_key()
    settings = Settings(ticket_key=SecretStr(new), ticket_key_other=SecretStr(KEY))
    site.gate.learn(ticket_keys(settings))
    for key in (KEY, new):
        assert await site.status("logs", site.ticket("logs", key=key)) == 200
    assert await site.status("logs", site.ticket("logs", key=new_signing_key())) == 401
    site.gate.learn(ticket_keys(Settings(ticket_key=SecretStr(new))))
    assert await site.status("logs", site.ticket("logs", key=KEY)) == 401


async def test_another_certificate_is_refused_before_the_ticket_is_shown() -> None:
    async with serving(new_keys("one")) as other:
        with pytest.raises(HostUnreachable, match="another certificate"):
            await other.agents.open(other.target, "logs", {})
        with pytest.raises(HostUnreachable, match="another certificate"):
            await other.agents.connect(other.target, "terminal", {})
        assert other.streams.opened == []


async def test_agent_that_is_not_there_or_silent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.agent_client.CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(HostUnreachable):  # it never says a word
            await site.agents.open(site.target._replace(agent_url=url), "logs", {})
    with pytest.raises(HostUnreachable):
        await site.agents.open(site.target._replace(agent_url=url), "logs", {})


async def test_command(site: Site) -> None:
    site.streams.items = [Output("stdout", b"abc"), Output("stderr", b"x" * 30), Output("stdout", b"def")]
    outcome = await site.agents.run(site.target, Run(argv=["a"], timeout=5, limit=10))
    assert (outcome.end.exit_code, outcome.end.truncated) == (3, True)
    assert (outcome.stdout, outcome.stderr) == (b"abcdef", b"x" * 10)
    site.streams.items = [Output("stdout", b"so far"), CommandTimeout("too long", timeout=1)]
    with pytest.raises(CommandTimeout) as ended:
        await site.agents.run(site.target, Run(argv=["a"], timeout=5, limit=10))
    assert ended.value.details == {"timeout": 1, "stdout": "so far", "stderr": ""}
    assert await eventually(lambda: all(items.closed.is_set() for items in site.streams.opened))


async def test_slow_reader_is_sent_slowly_and_hinders_no_other(site: Site) -> None:
    site.streams.items = itertools.repeat(CHUNK)
    with closing(await site.agents.open(site.target, "logs", {})) as slow:
        (endless,) = site.streams.opened

        async def rests() -> bool:
            taken = endless.taken
            await asyncio.sleep(0.3)
            return endless.taken == taken > 0

        assert await eventually(rests), "nothing is taken that nobody reads"
        assert endless.taken * len(CHUNK) < 16 << 20
        site.streams.items = [CHUNK] * 200
        began = time.monotonic()
        assert len(await read(site, "logs")) == 200 * len(CHUNK)
        assert time.monotonic() - began < 15
        assert await slow.it.content.readexactly(10) == b"x" * 10
    assert await eventually(endless.closed.is_set), "its client has gone"


async def test_one_instance_has_so_many_streams_and_no_more(site: Site) -> None:
    site.streams.items = itertools.repeat(CHUNK)
    opened = [await site.agents.open(site.target, "logs", {}) for _ in range(OF_ONE)]
    with pytest.raises(TooManyStreams):
        await site.agents.open(site.target, "logs", {})
    other = replace_instance(site.target)
    opened.append(await site.agents.open(other, "logs", {}))
    for one in opened:
        one.close()
    site.streams.items = [b"again"]

    async def lets_in() -> bool:
        try:
            return await read(site, "logs") == b"again"
        except TooManyStreams:
            return False

    assert await eventually(lets_in)


def test_places_are_of_all_of_a_project_and_of_one_thing() -> None:
    places, first, other = Places(5, 3, 2), uuid4(), uuid4()

    def ticket(project: UUID | None, instance: UUID | None = None) -> Ticket:
        return Ticket(instance=instance or uuid4(), verb="logs", project=project)

    taken = [places.take(ticket(first)) for _ in range(3)]
    with pytest.raises(TooManyStreams):
        places.take(ticket(first))
    taken += [places.take(ticket(other, INSTANCE)) for _ in range(2)]
    with pytest.raises(TooManyStreams):
        places.take(ticket(None))
    taken.pop(0)()
    with pytest.raises(TooManyStreams):
        places.take(ticket(None, INSTANCE))
    with places.one(ticket(first)), pytest.raises(TooManyStreams):
        places.take(ticket(None))
    places.take(ticket(None))()


def replace_instance(target: Target) -> Target:
    return target._replace(instance=uuid4())


async def test_terminal_and_its_end(site: Site) -> None:
    query = {"columns": "80", "rows": "24"}
    opened = await site.agents.connect(site.target, "terminal", query)
    await opened.it.send_bytes(b"abc")
    assert await opened.it.receive_bytes() == b"ABC"
    await opened.it.send_str('{"resize": {"columns": 99, "rows": 33}}')
    assert await opened.it.receive_bytes() == b"99X33"
    await opened.it.send_bytes(b"exit")
    assert await opened.it.receive_json() == {"exit_code": 7}
    opened.close()
    second = await site.agents.connect(site.target, "terminal", query)
    second.close()
    assert await eventually(lambda: all(terminal.closed.is_set() for terminal in site.streams.opened))
    with pytest.raises(InvalidState):
        await site.agents.connect(site.target, "terminal", query | {"command": '["stopped"]'})
    assert site.agents._open == 0


async def test_idle_terminal_is_kept_alive_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(websocket.OPTIONS, "ws_ping_interval", 0.1)
    monkeypatch.setitem(websocket.OPTIONS, "ws_ping_timeout", 0.3)
    async with serving() as site:
        opened = await site.agents.connect(site.target, "terminal", {"columns": "80", "rows": "24"})
        receiving = asyncio.create_task(opened.it.receive_bytes())
        await asyncio.sleep(1)  # several pings, each of which would have cut a silent one
        await opened.it.send_bytes(b"abc")
        assert await receiving == b"ABC"
        opened.close()


async def raw(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stranger's connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", int(site.url.rsplit(":", 1)[1]), ssl=context)


async def test_head_without_end_is_refused_early(site: Site) -> None:
    reader, writer = await raw(site)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    sent = 0
    with suppress(ConnectionError):
        while not reader.at_eof() and sent < 4 << 20:
            writer.write(CHUNK)
            sent += len(CHUNK)
            await writer.drain()
            await asyncio.sleep(0.01)
    assert sent < 1 << 20
    writer.transport.abort()
    assert await read(site, "logs") == b"one\ntwo\n"


async def test_silent_strangers_take_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http, "SILENT", 5)
    async with serving() as site:
        strangers = [await raw(site) for _ in range(10)]
        assert await read(site, "logs") == b"one\ntwo\n"
        assert await asyncio.wait_for(strangers[0][0].read(), 3) == b"", "the oldest of too many is cut"
        for _, writer in strangers:
            writer.transport.abort()


async def test_strangers_that_do_not_even_begin_tls_use_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http, "HEAD_SECONDS", 1.0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        async with serving() as site:
            port = int(site.url.rsplit(":", 1)[1])
            strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(400)]
            assert await read(site, "logs") == b"one\ntwo\n"
            with suppress(ConnectionError):
                assert await asyncio.wait_for(strangers[0][0].read(), 5) == b""
            for _, writer in strangers:
                writer.transport.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_who_says_too_little_for_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http, "HEAD_SECONDS", 0.5)
    async with serving() as site:
        reader, writer = await raw(site)
        site.streams.items = itertools.chain([b"one"], waiting())
        with closing(await site.agents.open(site.target, "logs", {})) as opened:
            for _ in range(5):
                writer.write(b"GET")
                await asyncio.sleep(0.2)
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 3) == b""
            assert await opened.it.content.readexactly(4) == b"one."
        writer.transport.abort()


def waiting() -> Iterator[bytes]:
    time.sleep(1)
    yield b"."


async def test_long_line_of_a_terminal_is_answered(site: Site) -> None:
    query = {"columns": "80", "rows": "24", "command": json.dumps(["x" * 9000])}
    with pytest.raises(HostUnreachable):
        await asyncio.wait_for(site.agents.connect(site.target, "terminal", query), 5)


async def test_stopping_ends_what_is_open_and_waits_for_no_reader() -> None:
    async with serving() as site:
        opened = []
        for verb in ("logs", "exec"):
            site.streams.items = Blocked()
            run = Run(argv=["a"], timeout=60, limit=10) if verb == "exec" else None
            opened.append(await site.agents.open(site.target, verb, {}, run))
        terminal = await site.agents.connect(site.target, "terminal", {"columns": "80", "rows": "24"})
        began = time.monotonic()
        site.stopping.set()
        await site.running
        assert time.monotonic() - began < 3
        assert all(stream.closed.is_set() for stream in site.streams.opened)
        for one in opened:
            with pytest.raises(aiohttp.ClientError):  # cut: nobody takes it for the end of the program
                await one.it.read()
        assert (await terminal.it.receive()).type is not aiohttp.WSMsgType.TEXT


class Blocked:
    """An item that comes when it is closed."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.ended.wait(60)
        yield from ()


async def test_what_was_opened_too_late_is_closed(site: Site) -> None:
    held, opened = threading.Event(), Items([])

    def start() -> Items:
        held.wait(10)
        return opened

    streams = OpenStreams(1)
    opening = asyncio.create_task(streams.open(start))
    await asyncio.sleep(0.1)
    opening.cancel()
    held.set()
    assert await eventually(opened.closed.is_set)


async def test_program_that_reads_nothing_loses_its_terminal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_terminals, "WRITE_SECONDS", 0.3)
    opened = await site.agents.connect(site.target, "terminal", {"columns": "80", "rows": "24"})
    (echo,) = site.streams.opened
    monkeypatch.setattr(echo, "write", lambda data: echo.closed.wait(10))
    await opened.it.send_bytes(b"abc")
    told = await opened.it.receive_json()
    assert told["error"]["code"] == "command_timeout"
    assert await eventually(echo.closed.is_set)
    opened.close()


@asynccontextmanager
async def strange_agent(answer: Any) -> AsyncIterator[Target]:
    """An agent that says what it likes: ``answer`` is called with the reader and the writer."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=agent_http.tls(KEYS))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield Target(INSTANCE, "web", HOST, "one", url, KEYS.fingerprint, PROJECT)


def says(*parts: bytes) -> Any:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(parts)
        await writer.drain()
        writer.close()

    return answer


OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_agent_cannot_send_the_api_elsewhere() -> None:
    asked = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    agents = Agents(SecretStr(KEY))
    async with await asyncio.start_server(elsewhere, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/secret\r\nContent-Length: 0\r\n\r\n" % port
        async with strange_agent(says(moved)) as target:
            with pytest.raises(HostUnreachable):
                await agents.connect(target, "terminal", {})
            with pytest.raises(HostUnreachable):
                await agents.open(target, "logs", {})
    await agents.close()
    assert asked == []


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (OK,),
        (OK, chunk(frame(1, b"half"))),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\noh",),
        (OK, chunk(frame(9, b"?"))),
        (OK, chunk(frame(END, b"no JSON"))),
        (OK, chunk(frame(END, b'{"error": {"code": "engine_unavailable", "message": "m"}}'))),
    ],
)
async def test_command_that_is_cut_off_may_have_run(parts: tuple[bytes, ...]) -> None:
    agents = Agents(SecretStr(KEY))
    async with strange_agent(says(*parts)) as target:
        with pytest.raises(OutcomeUnknown):
            await agents.run(target, Run(argv=["a"], timeout=5, limit=10))
    with pytest.raises(HostUnreachable):  # it is gone: nothing was sent
        await agents.run(target, Run(argv=["a"], timeout=5, limit=10))
    await agents.close()


async def test_words_of_an_agent_are_no_words_of_ours() -> None:
    agents = Agents(SecretStr(KEY))
    failure = b'{"error": {"code": "engine_refused", "message": "m", "details": {"message": 1, "self": 2}}}'
    async with strange_agent(says(OK, chunk(frame(END, failure)))) as target:
        with pytest.raises(EngineRefused) as refused:
            await agents.run(target, Run(argv=["a"], timeout=5, limit=10))
    assert refused.value.message == "m"
    for told in ("7", "[]", "{", '{"exit_code": "x"}', '{"error": 1}'):
        with pytest.raises(HostUnreachable):
            exit_code(target, told)
    assert exit_code(target, '{"exit_code": 3}') == 3
    await agents.close()


async def test_host_without_streams_and_one_of_another_agent(site: Site) -> None:
    simulated, stranger = UUID(int=1), uuid4()
    assert await site.status("logs", site.ticket("logs", host=simulated), host=simulated) == 422
    assert await site.status("logs", site.ticket("logs", host=stranger), host=stranger) == 404


def test_address_on_the_way_to_the_api() -> None:
    assert way_to("http://127.0.0.1:8080/v1") == "127.0.0.1"
    assert way_to("http://localhost/v1") in ("127.0.0.1", "::1")
