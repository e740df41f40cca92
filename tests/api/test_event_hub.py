"""One reader for everybody who follows a project: filters, joining, slow readers, WebSockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from httpx_sse import aconnect_sse
from psycopg.types.json import Jsonb
from sqlalchemy import event as sqlalchemy_event
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api import event_hub, streamed
from api.event_hub import Feed, Hub, Item, SlowConsumer, Wanted
from model.events import covers, parse_id
from tests.api.conftest import Api
from tests.api.test_events import take
from tests.services import eventually

OTHER = UUID(int=7)


def write(api: Api, *types: str, resource_type: str = "test", resource_id: UUID | None = None, size: int = 0) -> None:
    """Events, each in a transaction of its own."""
    with api.db.connect() as connection:
        for type in types:
            connection.execute(
                "INSERT INTO events (project_id, type, resource_type, resource_id, data) VALUES (%s, %s, %s, %s, %s)",
                (api.db.project_id, type, resource_type, resource_id or api.db.project_id, Jsonb({"fill": "x" * size})),
            )
        connection.execute("SELECT pg_notify('cairn', '')")


def hub(api: Api) -> Hub:
    found: Hub = api.app.state.events
    return found


def feed(api: Api) -> Feed | None:
    return hub(api)._feeds.get(api.db.project_id)


def followers(api: Api) -> int:
    found = feed(api)
    return len(found.followers) if found else 0


@contextmanager
def counted_queries(api: Api) -> Iterator[list[str]]:
    """The statements that read events meanwhile."""
    found: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM events" in statement:
            found.append(statement)

    engine = api.app.state.engine.sync_engine
    sqlalchemy_event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sqlalchemy_event.remove(engine, "before_cursor_execute", note)


def tiny(api: Api) -> socket.socket:
    """A connection on which little can be on its way."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.connect(("127.0.0.1", urlsplit(api.url).port))
    return client


@asynccontextmanager
async def ws(api: Api, query: str = "", key: str | None = None, **more: Any) -> AsyncIterator[ClientConnection]:
    """A WebSocket; whoever does not read it takes little."""
    client = tiny(api)
    client.setblocking(False)
    headers = {"X-API-Key": key or api.db.api_key} if key != "" else {}
    url = f"{api.url.replace('http', 'ws', 1)}/v1/ws/events{query}"
    async with connect(url, additional_headers=headers, sock=client, **more) as connection:
        yield connection


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("type=instance.running", ["instance.running"]),
        ("type=instance.", ["instance.running", "instance.error"]),
        ("type=instance.error&type=host.", ["host.warning", "instance.error"]),
        ("type=*", ["instance.running", "host.warning", "instance.error"]),
        ("resource_type=host", ["host.warning"]),
        (f"resource_id={OTHER}", ["instance.error"]),
        (f"resource_type=instance&resource_id={OTHER}&type=instance.", ["instance.error"]),
    ],
)
async def test_filters_choose_from_what_was_and_from_what_comes(api: Api, query: str, expected: list[str]) -> None:
    def happen() -> None:
        write(api, "instance.running", resource_type="instance")
        write(api, "host.warning", resource_type="host")
        write(api, "instance.error", resource_type="instance", resource_id=OTHER)

    await asyncio.to_thread(happen)
    taking = asyncio.create_task(take(api.http, 2 * len(expected), f"/v1/events?{query}", after="0-0-0"))
    assert await eventually(lambda: followers(api) == 1)
    await asyncio.to_thread(happen)
    found = await taking
    assert [one.event for one in found] == 2 * expected
    again = await take(api.http, len(expected), f"/v1/events?{query}", after=found[len(expected) - 1].id)
    assert [one.id for one in again] == [one.id for one in found[len(expected) :]]


@pytest.mark.parametrize(
    "query",
    [
        *("type=Instance.", "type=instance", "type=.", "type=%25", "resource_id=x", "resource_type=%27"),
        "type=" + "a" * 101,
    ],
)
async def test_filters_that_are_none_are_refused(api: Api, query: str) -> None:
    answer = await api.http.get(f"/v1/events?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")
    with pytest.raises(InvalidStatus) as refused:
        async with ws(api, f"?{query}"):
            pass
    assert refused.value.response.status_code == 422


def test_patterns_cover_types() -> None:
    assert covers((), "a.b")
    assert covers(("*",), "a.b")
    assert covers(("a.",), "a.b") and not covers(("a.",), "ab.c")
    assert covers(("x.y", "a.b"), "a.b") and not covers(("a.b",), "a.bc")


async def test_two_hundred_followers_cost_one_query(api: Api) -> None:
    wanted = 200
    end = parse_id("1-1-1")
    assert end is not None
    streams = [hub(api).follow(api.db.project_id, Wanted(), end, end) for _ in range(wanted)]
    taking = [asyncio.ensure_future(anext(one)) for one in streams]
    assert await eventually(lambda: followers(api) == wanted)
    await asyncio.sleep(1)
    with counted_queries(api) as queries:
        await asyncio.to_thread(write, api, "test.one")
        found = await asyncio.wait_for(asyncio.gather(*taking), 10)
        await asyncio.sleep(1)
    assert all([item.type for item in items] == ["test.one"] for _, items in found)
    assert 1 <= len(queries) < 12, "a look for the ring, some looks soon after it, and one each half second"
    for one in streams:
        await one.aclose()
    assert feed(api) is None, "nobody follows: nobody reads"


async def test_joining_at_any_moment_misses_nothing_and_doubles_nothing(api: Api) -> None:
    count = 300
    writing = asyncio.create_task(asyncio.to_thread(write_slowly, api, count))
    seen: list[list[str]] = []

    async def follow(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        seen.append([event.event for event in await take(api.http, count, after="0-0-0", seconds=60)])

    await asyncio.gather(writing, *(follow(number) for number in range(12)))
    assert seen == [[f"test.{number}" for number in range(count)]] * 12


def write_slowly(api: Api, count: int) -> None:
    for number in range(0, count, 5):
        write(api, *(f"test.{each}" for each in range(number, number + 5)))
        time.sleep(0.01)


async def test_instance_stream_begins_with_its_first_event(api: Api) -> None:
    launched = await api.launch()
    await api.launch("another")
    path = f"/v1/instances/{launched['data']['id']}/events"
    taking = asyncio.create_task(take(api.http, 2, path))
    assert await eventually(lambda: followers(api) == 1)
    await api.http.delete(f"/v1/instances/{launched['data']['id']}")
    events = await taking
    assert [event.event for event in events] == ["instance.pending", "workflow.cancelled"]
    assert {json.loads(event.data)["resource_id"] for event in events} == {launched["data"]["id"]}
    (rest,) = await take(api.http, 1, path, after=events[0].id)
    assert rest.id == events[1].id
    assert (await api.http.get(f"/v1/instances/{uuid4()}/events")).status_code == 404
    async with api.as_(api.db.project("stranger")) as stranger:
        assert (await stranger.get(path)).status_code == 404


async def test_quiet_stream_tells_how_far_it_has_read(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "QUIET_SECONDS", 0.3)
    async with aconnect_sse(api.http, "GET", "/v1/events?type=nothing.ever") as source:
        ids = aiter(source.aiter_sse())
        first = await anext(ids)
        await asyncio.to_thread(write, api, "test.one", "test.two")
        later = await anext(ids)
        while later.id == first.id:
            later = await anext(ids)
    last = api.db.one("SELECT max(id) AS id FROM events")["id"]
    assert later.data == "" and later.id.endswith(f"-{last}")


def _item(number: int, size: int = 100) -> Item:
    return Item((1, number, number), "test.one", "test", OTHER, b"x" * size, 0)


async def test_feed_holds_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MOST_EVENTS", 10)
    monkeypatch.setattr(event_hub, "MOST_BYTES", 5000)
    made = Feed((1, 0, 0))
    for number in range(1, 31):
        await made.put(_item(number))
    assert (made.start, made.end, made.next - made.first) == ((1, 20, 20), (1, 30, 30), 10)
    for number in range(31, 41):
        await made.put(_item(number, 1000))
    assert made.next - made.first == 5
    await made.put(_item(41, 9000))
    assert made.next - made.first == 1, "one that is larger than all may be is handed on all the same"


async def test_follower_that_has_read_further_than_the_feed_waits_for_it() -> None:
    """Its last event came from another process, whose reader was quicker."""
    made = Feed((1, 0, 0))
    await made.put(_item(1))
    follower = made.follow((1, 3, 3))
    for number in range(2, 6):
        await made.put(_item(number))
    assert [item.position[1] for item in made.take(follower, Wanted())] == [4, 5]


async def test_feed_waits_a_little_for_a_follower_and_then_moves_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MOST_EVENTS", 10)
    monkeypatch.setattr(event_hub, "GRACE_SECONDS", 0.3)
    made = Feed((1, 0, 0))
    quick, slow = made.follow((1, 0, 0)), made.follow((1, 0, 0))
    got: list[int] = []

    async def read() -> None:
        while len(got) < 100:
            await quick.awake.wait()
            quick.awake.clear()
            got.extend(item.position[1] for item in made.take(quick, Wanted()))

    reading = asyncio.create_task(read())
    async with asyncio.timeout(60):
        for number in range(1, 101):
            await made.put(_item(number))
        made.wake()
        await reading
    assert got == list(range(1, 101)), "who keeps up is not left behind, however much comes at once"
    with pytest.raises(SlowConsumer):
        made.take(slow, Wanted())


def silent(api: Api, path: str) -> socket.socket:
    """A client that asks, and reads nothing of the answer."""
    client = tiny(api)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.db.api_key}\r\n\r\n".encode())
    return client


async def test_slow_reader_is_cut_and_resumes_while_others_get_everything(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MOST_EVENTS", 20)
    count = 120
    with silent(api, "/v1/events") as slow:
        quick = asyncio.create_task(take(api.http, count))
        assert await eventually(lambda: followers(api) == 2)
        await asyncio.to_thread(write, api, *(f"test.{number}" for number in range(count)), size=100_000)
        events = await quick
        assert [event.event for event in events] == [f"test.{number}" for number in range(count)]
        text = await asyncio.to_thread(read_to_the_end, slow)
    assert text.rstrip("\r\n0").endswith('for the events that come: resume after the last one that arrived"}')
    assert "\nevent: cut\n" in text
    ids = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]
    got = len(ids) - 1
    assert 0 < got < count
    rest = await take(api.http, count - got, after=ids[-1])
    assert [event.id for event in rest] == [event.id for event in events[got:]]


def read_to_the_end(client: socket.socket) -> str:
    client.settimeout(60)
    parts = []
    while part := client.recv(1 << 20):
        parts.append(part)
        if b"event: cut" in part or part.endswith(b"0\r\n\r\n"):
            break
    return b"".join(parts).decode()


@pytest.mark.parametrize("way", ["sse", "websocket"])
async def test_reader_that_takes_nothing_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(streamed, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(event_hub, "MOST_BYTES", 1 << 30)
    with silent(api, "/v1/events") if way == "sse" else silent_ws(api) as client:
        assert await eventually(lambda: followers(api) == 1)
        await asyncio.to_thread(write, api, *(f"test.{number}" for number in range(100)), size=200_000)
        assert await eventually(lambda: followers(api) == 0)
        client.settimeout(60)

        def drain() -> int:
            return sum(iter(lambda: len(client.recv(1 << 20)), 0))

        assert await asyncio.to_thread(drain) < 10_000_000, "its end comes after what was on its way"


def silent_ws(api: Api) -> socket.socket:
    client = tiny(api)
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    key = f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-API-Key: {api.db.api_key}"
    client.sendall(f"GET /v1/ws/events HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n{key}\r\n\r\n".encode())
    return client


async def test_websocket_has_the_same_json_and_resumes(api: Api) -> None:
    async with ws(api) as connection:
        start = connection.response.headers["Last-Event-ID"]
        launched = await api.launch()
        first = json.loads(await asyncio.wait_for(connection.recv(), 10))
        await api.launch("second")
        second = json.loads(await asyncio.wait_for(connection.recv(), 10))
    assert first["resource_id"] == launched["data"]["id"]
    events = await take(api.http, 2, after="0-0-0")
    assert [json.loads(event.data) for event in events] == [first, second]
    async with ws(api, f"?last_event_id={start}") as connection:
        assert [json.loads(await connection.recv()) for _ in range(2)] == [first, second]
    async with ws(api, f"?last_event_id={first['id']}&type=instance.") as connection:
        assert json.loads(await connection.recv()) == second
    async with ws(api, f"?last_event_id=0-0-0&resource_id={second['resource_id']}") as connection:
        assert json.loads(await connection.recv()) == second


async def test_websocket_of_a_browser_shows_its_key_as_a_subprotocol(api: Api) -> None:
    subprotocols: list[Any] = ["cairn", f"key.{api.db.api_key}"]
    async with ws(api, "?last_event_id=0-0-0", key="", subprotocols=subprotocols) as connection:
        assert connection.subprotocol == "cairn"
        await api.launch()
        assert json.loads(await asyncio.wait_for(connection.recv(), 10))["type"] == "instance.pending"


@pytest.mark.parametrize(("query", "key", "status"), [("", "wrong", 401), ("?last_event_id=x", None, 422)])
async def test_websocket_that_may_not_is_refused(api: Api, query: str, key: str | None, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with ws(api, query, key):
            pass
    assert refused.value.response.status_code == status


async def test_slow_websocket_is_closed_with_1013(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MOST_EVENTS", 10)
    monkeypatch.setattr(event_hub, "GRACE_SECONDS", 0.3)
    with silent_ws(api) as client:
        assert await eventually(lambda: followers(api) == 1)
        await asyncio.to_thread(write, api, *(f"test.{number}" for number in range(150)), size=100_000)
        assert await eventually(lambda: (found := feed(api)) is not None and found.first > 100)
        *texts, (opcode, last) = await asyncio.to_thread(frames, client)
    assert (opcode, int.from_bytes(last[:2], "big"), last[2:].split(b":")[0]) == (8, 1013, b"slow_consumer")
    got = [json.loads(text)["id"] for _, text in texts]
    assert 0 < len(got) < 150
    async with ws(api, f"?last_event_id={got[-1]}") as connection:
        assert json.loads(await connection.recv())["type"] == f"test.{len(got)}"


def frames(client: socket.socket) -> list[tuple[int, bytes]]:
    """All that a server sends: opcodes and payloads, to its close."""
    client.settimeout(60)
    data = client.recv(65536)
    data = data[data.index(b"\r\n\r\n") + 4 :]
    found: list[tuple[int, bytes]] = []
    while not found or found[-1][0] != 8:
        size, head = (data[1], 2) if len(data) > 1 else (126, 4)
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[2:head], "big")
        if len(data) < head or len(data) < head + size:
            more = client.recv(1 << 20)
            assert more, "it ended without a close"
            data += more
        else:
            found.append((data[0] & 15, data[head : head + size]))
            data = data[head + size :]
    return found


async def test_streams_end_when_the_process_is_to_stop(api: Api) -> None:
    taking = asyncio.create_task(take(api.http, 1))
    async with ws(api) as connection:
        assert await eventually(lambda: followers(api) == 2)
        api.app.state.stopping.set()
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(connection.recv(), 5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert await asyncio.wait_for(taking, 5) == []


async def test_reader_goes_on_whatever_goes_wrong(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "LOOK_SECONDS", 0.05)
    taking = asyncio.create_task(take(api.http, 1))
    assert await eventually(lambda: followers(api))
    failures, real = [ValueError("nobody thought of this")], Hub._read

    async def read(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await real(*args)

    monkeypatch.setattr(Hub, "_read", read)
    assert await eventually(lambda: not failures)
    await asyncio.to_thread(write, api, "test.one")
    assert [event.event for event in await taking] == ["test.one"]
