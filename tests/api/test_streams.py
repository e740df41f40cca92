"""Which instances have streams, and what is said where they have none. Agents themselves: tests/worker."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.api.conftest import Api

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
