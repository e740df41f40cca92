"""Which instances have streams, and what is said where they have none. Agents themselves: tests/worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.agent_client import Opened, Target
from api.caller import Credential, Who
from api.open_streams import OpenStreams
from model.base import new_id
from tests.api.conftest import Api
from tests.services import eventually

AGENT = "https://127.0.0.1:1"  # nobody listens there


async def placed(api: Api, name: str, status: str = "running") -> dict[str, Any]:
    """An instance on a host whose lease holds."""
    instance = (await api.launch(name))["data"]
    api.put(instance, status)
    api.db.rows("UPDATE instances SET host_id = %s WHERE id = %s", api.db.hosts["one"], instance["id"])
    api.db.rows(
        "UPDATE hosts SET last_seen_at = now(), agent_url = %s, fingerprint = %s WHERE id = %s",
        *(AGENT, bytes(32), api.db.hosts["one"]),
    )
    return instance


async def refused(api: Api, instance: dict[str, Any]) -> list[tuple[int, str]]:
    """What each kind of stream is refused with: logs, a command, and the three WebSockets."""
    path = f"/v1/instances/{instance['id']}"
    answers = [await api.http.get(f"{path}/logs"), await api.http.post(f"{path}/exec", json={"cmd": "true"})]
    found = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    for kind in ("logs", "stats", "terminal"):
        with pytest.raises(InvalidStatus) as error:
            await connect(
                f"{api.url.replace('http', 'ws', 1)}/v1/ws/{kind}/{instance['id']}",
                additional_headers={"X-API-Key": api.db.api_key},
                proxy=None,
            )
        response = error.value.response
        found.append((response.status_code, "host_unreachable" if b"host_unreachable" in response.body else "other"))
    return found


async def test_instance_that_is_nowhere_or_not_running_is_an_invalid_state(api: Api) -> None:
    pending = (await api.launch("pending"))["data"]
    assert {status for status, _ in await refused(api, pending)} == {409}
    stopped = await placed(api, "stopped", "stopped")
    statuses = [status for status, _ in await refused(api, stopped)]
    assert statuses == [503, 409, 503, 409, 409], "the logs of a stopped one are there to be read"
    answer = await api.http.post(f"/v1/instances/{stopped['id']}/exec", json={"cmd": "true"})
    assert answer.json()["error"]["details"]["state"] == "stopped"


async def test_host_that_cannot_be_reached(api: Api) -> None:
    instance = await placed(api, "web")
    unreachable = [(503, "host_unreachable")] * 5
    assert await refused(api, instance) == unreachable, "nobody listens there"
    answer = await api.http.get(f"/v1/instances/{instance['id']}/logs")
    assert int(answer.headers["retry-after"]) > 0
    api.db.rows("UPDATE hosts SET agent_url = NULL")
    assert await refused(api, instance) == unreachable, "its agent serves nothing"
    api.db.rows("UPDATE hosts SET agent_url = %s, last_seen_at = now() - interval '1 minute'", AGENT)
    assert await refused(api, instance) == unreachable, "its lease has lapsed"


async def test_another_project_and_an_absent_instance_look_the_same(api: Api) -> None:
    instance = await placed(api, "web")
    async with api.as_(api.db.project("other")) as other:
        theirs = await other.get(f"/v1/instances/{instance['id']}/logs")
    absent = await api.http.get("/v1/instances/00000000-0000-0000-0000-000000000000/logs")
    for answer in (theirs, absent):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


class Talking:
    """An agent whose streams never end by themselves."""

    def __init__(self) -> None:
        self.open_now = 0

    async def open(self, target: Target, *_: Any) -> Opened[Any]:
        return self._opened(target)

    async def connect(self, target: Target, *_: Any) -> Opened[Any]:
        return self._opened(target)

    async def run(self, *_: Any) -> Any:
        await asyncio.sleep(60)

    async def close(self) -> None:
        pass

    def _opened(self, target: Target) -> Opened[Any]:
        ended = asyncio.Event()
        self.open_now += 1

        def close() -> None:
            self.open_now -= 1
            ended.set()

        async def lines() -> AsyncIterator[bytes]:
            yield b"x"
            await ended.wait()
            raise aiohttp.ClientPayloadError("closed")

        async def messages() -> AsyncIterator[Any]:
            yield aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, b"x", None)
            await ended.wait()

        return Opened(target, Answer(lines, messages()), close)


class Answer:
    """Of an agent: over HTTP, or a WebSocket's."""

    def __init__(self, lines: Any, messages: AsyncIterator[Any]) -> None:
        self.content = SimpleNamespace(iter_any=lines)
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages


def terminal(api: Api, instance: dict[str, Any]) -> Any:
    url = f"{api.url.replace('http', 'ws', 1)}/v1/ws/terminal/{instance['id']}"
    return connect(url, additional_headers={"X-API-Key": api.db.api_key}, proxy=None)


async def test_project_has_so_many_streams_and_no_more(api: Api) -> None:
    instance = await placed(api, "web")
    agents = api.app.state.agents = Talking()
    api.app.state.open_streams = OpenStreams(api.app.state.engine, 2, events=1)
    path = f"/v1/instances/{instance['id']}"
    async with api.http.stream("GET", f"{path}/logs?follow=true") as first, terminal(api, instance) as second:
        assert first.status_code == 200
        await second.recv()
        assert await refused(api, instance) == [(429, "too_many_streams")] * 2 + [(429, "other")] * 3
        answer = await api.http.get(f"{path}/logs")
        assert int(answer.headers["retry-after"]) > 0
        other = api.db.project("other")
        async with api.as_(other) as http:
            assert (await http.get(f"{path}/logs")).status_code == 404
    assert await eventually(lambda: agents.open_now == 0)
    for _ in range(4):
        async with api.http.stream("GET", f"{path}/logs?follow=true") as again:
            assert again.status_code == 200
        assert await eventually(lambda: agents.open_now == 0)


async def test_streams_end_when_the_key_that_opened_them_is_revoked(api: Api) -> None:
    instance = await placed(api, "web")
    agents = api.app.state.agents = Talking()
    looks = api.app.state.open_streams
    running = asyncio.ensure_future(api.http.post(f"/v1/instances/{instance['id']}/exec", json={"cmd": "sleep 60"}))
    async with (
        api.http.stream("GET", f"/v1/instances/{instance['id']}/logs?follow=true") as logs,
        terminal(api, instance) as shell,
    ):
        written = logs.aiter_raw()
        assert await anext(written) == b"x"
        assert await shell.recv() == b"x"
        await looks.look()
        assert agents.open_now == 2
        api.db.rows("UPDATE api_keys SET revoked_at = now()")
        await looks.look()
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(shell.recv(), 5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        with pytest.raises(httpx.RemoteProtocolError):  # cut, so that nobody takes it for the end
            await asyncio.wait_for(anext(written), 5)
        assert (await running).json()["error"]["code"] == "outcome_unknown"
        assert await eventually(lambda: agents.open_now == 0)
    await looks.look()


async def test_stream_that_closes_while_its_key_is_looked_at_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be told of for ever."""
    looks: OpenStreams = api.app.state.open_streams
    # Of whom the database knows nothing.
    nobody = Who(Credential(b"nobody", None, None), new_id(), frozenset(), "key:nobody", None, None, new_id())
    caller: Any = SimpleNamespace(project_id=nobody.project_id, who=nobody)
    held = looks.hold(caller, "instances:read")
    engine = api.app.state.engine

    class Closing:
        @asynccontextmanager
        async def connect(self) -> AsyncIterator[AsyncConnection]:
            async with engine.connect() as connection:
                yield connection
            held.close()

    monkeypatch.setattr(looks, "_engine", Closing())
    await looks.look()
    assert not looks._by_right


@pytest.mark.parametrize("command", ["x" * 2001, "a\0b", "é" * 2000, "'"])
async def test_command_of_a_terminal_is_one_that_its_agent_can_be_told(api: Api, command: str) -> None:
    instance = await placed(api, "web")
    path = f"/v1/ws/terminal/{instance['id']}?command={quote(command)}"
    headers = {"X-API-Key": api.db.api_key}
    with pytest.raises(InvalidStatus) as refused:
        await connect(api.url.replace("http", "ws", 1) + path, additional_headers=headers, proxy=None, open_timeout=5)
    status = refused.value.response.status_code
    assert (status, b"command" in refused.value.response.body) in ((422, True), (400, False))


async def test_time_out_is_a_number(api: Api) -> None:
    instance = await placed(api, "web")
    for timeout in (True, "5"):
        answer = await api.http.post(f"/v1/instances/{instance['id']}/exec", json={"cmd": "true", "timeout": timeout})
        assert answer.status_code == 422


@pytest.mark.parametrize(
    "head", [b"GET /v1/instances HTTP/1.1\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET /"]
)
async def test_head_without_end_is_refused_early(api: Api, head: bytes) -> None:
    _, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
    writer.write(head)
    sent = 0
    try:
        while not writer.is_closing() and sent < 8 << 20:
            writer.write(b"x" * 16384)
            sent += 16384
            await writer.drain()
            await asyncio.sleep(0.005)
    except ConnectionError:
        pass
    assert sent < 1 << 20
    writer.transport.abort()


async def test_large_body_after_a_small_head_is_no_large_head(api: Api) -> None:
    reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
    body = b" " * 200_000
    writer.write(b"POST /v1/instances HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"401"
    writer.close()
