"""Terminals with names, and connections into instances, as an agent serves them."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import aiohttp
import pytest
import pytest_asyncio

from drivers.streams import Terminal
from model.errors import HostUnreachable, InvalidState, PortClosed, TooManyStreams
from model.streams import SHUT
from tests.services import eventually
from tests.worker.agent_site import Echo, Site, serving
from worker import agent_calls, kept_terminals
from worker.agent_calls import OF_ONE as FORWARDS_OF_ONE
from worker.agent_server import OF_ONE
from worker.kept_terminals import KeptTerminal, KeptTerminals, Key, Viewer
from worker.open_streams import OpenStreams


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as one:
        yield one


def named(name: str = "main") -> dict[str, str]:
    return {"columns": "80", "rows": "24", "name": name}


async def received(opened: Any, size: int) -> bytes:
    """So many bytes of what comes."""
    data = b""
    while len(data) < size:
        data += await asyncio.wait_for(opened.it.receive_bytes(), 10)
    return data


async def test_terminal_with_a_name_goes_on_without_its_client(site: Site) -> None:
    first = await site.agents.connect(site.target, "terminal", named())
    await first.it.send_bytes(b"abc")
    assert await received(first, 8) == b"80X24ABC"
    first.close()
    (echo,) = site.streams.opened
    await asyncio.sleep(0.2)
    echo.theirs.sendall(b"meanwhile")
    again = await site.agents.connect(site.target, "terminal", named() | {"columns": "90"})
    assert await received(again, 22) == b"80X24ABCMEANWHILE90X24", "all that it has shown, and its new size"
    other = await site.agents.connect(site.target, "terminal", named("second"))
    assert len(site.streams.opened) == 2
    other.close()
    again.close()
    assert not echo.closed.is_set()


async def test_several_look_at_one_terminal_and_each_sees_all(site: Site) -> None:
    both = [await site.agents.connect(site.target, "terminal", named()) for _ in range(2)]
    await both[0].it.send_bytes(b"abc")
    await both[1].it.send_bytes(b"def")
    shown = [await received(one, 16) for one in both]
    assert shown[0] == shown[1]
    assert sorted(shown[0]) == sorted(b"80X2480X24ABCDEF")
    both[0].close()
    await both[1].it.send_bytes(b"exit")
    assert await both[1].it.receive_json() == {"exit_code": 7}
    both[1].close()
    (echo,) = site.streams.opened
    assert await eventually(echo.closed.is_set)


async def test_end_of_a_terminal_is_seen_once_and_its_name_is_free_then(site: Site) -> None:
    first = await site.agents.connect(site.target, "terminal", named())
    assert await received(first, 5) == b"80X24"
    first.close()
    (echo,) = site.streams.opened
    echo.theirs.sendall(b"done")
    await asyncio.sleep(0.2)
    echo.theirs.sendall(b"exit")
    assert await eventually(echo.closed.is_set)
    second = await site.agents.connect(site.target, "terminal", named())
    assert await received(second, 9) == b"80X24DONE"
    assert await second.it.receive_json() == {"exit_code": 7}
    second.close()
    await asyncio.sleep(0.2)
    third = await site.agents.connect(site.target, "terminal", named())
    assert len(site.streams.opened) == 2
    third.close()


async def test_terminal_at_which_nobody_looks_is_given_up_and_gives_its_place_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_terminals, "KEPT_SECONDS", 0.3)
    for number in range(OF_ONE + 1):
        opened = await site.agents.connect(site.target, "terminal", named(f"t{number}"))
        opened.close()
        assert await eventually(lambda: all(echo.closed.is_set() for echo in site.streams.opened))
    with pytest.raises(InvalidState):
        await site.agents.connect(site.target, "terminal", named("broken") | {"command": '["stopped"]'})
    opened = await site.agents.connect(site.target, "terminal", named("broken"))
    opened.close()


async def test_of_those_at_which_nobody_looks_a_few_are_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_terminals, "UNSEEN_OF_ONE", 2)
    for number in range(4):
        opened = await site.agents.connect(site.target, "terminal", named(f"t{number}"))
        opened.close()
        await asyncio.sleep(0.1)
        site.streams.opened[-1].theirs.sendall(b"exit")
        assert await eventually(site.streams.opened[-1].closed.is_set)
    for number, left in ((3, True), (2, True), (1, False), (0, False)):
        before = len(site.streams.opened)
        opened = await site.agents.connect(site.target, "terminal", named(f"t{number}"))
        assert (len(site.streams.opened) == before) is left, number
        opened.close()


async def test_who_takes_nothing_holds_nobody_up_and_misses_what_is_too_much(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_terminals, "SCROLL_BACK", 4000)
    monkeypatch.setattr(kept_terminals, "PATIENCE_SECONDS", 0.5)
    quick = await site.agents.connect(site.target, "terminal", named())
    (echo,) = site.streams.opened
    (kept,) = [one for one in gc.get_objects() if isinstance(one, KeptTerminal) and one.terminal is echo]
    slow = Viewer(0)
    kept.viewers.add(slow)
    echo.theirs.sendall(b"x" * 20_000 + b"end")
    data, began = b"", time.monotonic()
    while not data.endswith(b"END"):
        data += await asyncio.wait_for(quick.it.receive_bytes(), 10)
    assert len(data) == 20_008
    assert time.monotonic() - began < 3, "it is waited for once, and not for each of twenty parts"
    assert slow.is_late
    seen = b""
    async for part in kept.seen_by(slow):
        seen += part
        break
    assert len(seen) == 4000
    assert seen.endswith(b"XEND")
    quick.close()


async def test_who_goes_before_the_end_is_told_finds_it_again() -> None:
    streams, echo = OpenStreams(4), Echo()
    terminals, key = KeptTerminals(streams), Key(UUID(int=1), "main")

    def again() -> Terminal:
        raise AssertionError("opened twice")

    async with terminals.viewed(key, lambda: echo, lambda: lambda: None) as (kept, _):
        echo.theirs.sendall(b"exit")
        assert await eventually(lambda: kept.ended)
    async with terminals.viewed(key, again, lambda: lambda: None) as (found, viewer):
        assert found is kept
        viewer.has_seen_end = True
    with pytest.raises(AssertionError, match="opened twice"):
        async with terminals.viewed(key, again, lambda: lambda: None):
            pass
    streams.shut_down()


async def test_program_that_reads_nothing_of_a_connection_holds_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_calls, "WRITE_SECONDS", 0.5)
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await ended.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0, limit=1024)
    async with server:
        query = {"port": str(server.sockets[0].getsockname()[1])}
        opened = await site.agents.connect(site.target, "forward", query)
        for _ in range(200):
            await opened.it.send_bytes(b"x" * 65536)
        told = json.loads(await asyncio.wait_for(opened.it.receive_str(), 10))
        assert told["error"]["code"] == "command_timeout"
        opened.close()
        many = [await site.agents.connect(site.target, "forward", query) for _ in range(FORWARDS_OF_ONE)]
        for one in many:
            one.close()
        ended.set()


async def test_program_that_has_said_all_gets_the_last_of_what_it_is_told(site: Site) -> None:
    got = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await asyncio.sleep(0.5)
        got.set_result(len(await reader.read()))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, limit=1024)
    async with server:
        query = {"port": str(server.sockets[0].getsockname()[1])}
        opened = await site.agents.connect(site.target, "forward", query)
        assert await opened.it.receive_str() == SHUT
        for _ in range(160):
            await opened.it.send_bytes(b"x" * 65_537)
        await opened.it.send_str(SHUT)
        assert await asyncio.wait_for(got, 20) == 160 * 65_537
        opened.close()


async def test_connection_is_forwarded_both_ways_and_each_way_ends_by_itself(site: Site) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read()  # to its end: only then it answers
        writer.write(said.upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        opened = await site.agents.connect(site.target, "forward", {"port": str(port)})
        await opened.it.send_bytes(b"abc" * 100_000)
        await opened.it.send_str(SHUT)
        assert await received(opened, 300_000) == b"ABC" * 100_000
        assert await opened.it.receive_str() == SHUT
        assert (await opened.it.receive()).type is aiohttp.WSMsgType.CLOSE
        opened.close()
        many = [await site.agents.connect(site.target, "forward", {"port": str(port)}) for _ in range(FORWARDS_OF_ONE)]
        with pytest.raises(TooManyStreams):
            await site.agents.connect(site.target, "forward", {"port": str(port)})
        for one in many:
            one.close()
        await asyncio.sleep(0.3)
        opened = await site.agents.connect(site.target, "forward", {"port": str(port)})
        opened.close()
    with pytest.raises(PortClosed):
        await site.agents.connect(site.target, "forward", {"port": str(port)})
    with pytest.raises(HostUnreachable):
        await site.agents.connect(site.target, "forward", {"port": "none"})
