"""Many streams of one project: every event once and in order on each, across a restart of the API; and what they cost.

``CAIRN_CHAOS=all`` makes it many more events.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import pytest
from psycopg.types.json import Jsonb
from websockets.sync.client import connect

from tests.receiver import Receiver
from tests.stack import Stack, wait_for
from worker import postgres

pytestmark = pytest.mark.engine
CLIENTS = 200
EVENTS = 5000 if os.environ.get("CAIRN_CHAOS") == "all" else 300
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Without an engine: only events matter here."""
    made = Stack(docker=False)
    try:
        yield made.start().ready()
    finally:
        made.remove()


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Client:
    """An ``EventSource`` as browsers have it: it comes again after the last event that it saw."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.ids: list[str] = []
        self.last = ""
        self.connections = 0

    async def run(self, http: aiohttp.ClientSession, until: int) -> None:
        while len(self.ids) < until:
            try:
                async with aclosing(self._once(http)) as events:
                    async for id in events:
                        self.ids.append(id)
                        if len(self.ids) == until:
                            return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.5)

    async def _once(self, http: aiohttp.ClientSession) -> AsyncIterator[str]:
        known = self.stack.endpoint()
        headers = {"X-API-Key": known["api_key"]} | ({"Last-Event-ID": self.last} if self.last else {})
        async with http.get(f"{known['api_url']}/events?type=load.", headers=headers) as answer:
            if answer.status != 200:
                return
            self.connections += 1
            async for line in answer.content:
                if line.startswith(b"id: "):
                    self.last = line[4:].strip().decode()
                elif line.startswith(b"data: "):
                    yield json.loads(line[6:])["id"]


def write(stack: Stack, count: int) -> list[str]:
    """Events, each in a transaction of its own; their ids, in the order of events."""
    (project,) = stack.get("/projects")
    with psycopg.connect(postgres.find(stack.data).url(postgres.SUPERUSER), autocommit=True) as connection:
        for number in range(count):
            connection.execute(
                "INSERT INTO events (project_id, type, resource_type, resource_id, data)"
                " VALUES (%s, 'load.one', 'test', %s, %s)",
                (
                    project["id"],
                    project["id"],
                    Jsonb({"name": f"web-{number}", "from": "provisioning", "to": "running"}),
                ),
            )
            connection.execute("SELECT pg_notify('cairn', '')")
    every = "SELECT epoch || '-' || xid || '-' || id FROM events WHERE type = 'load.one' ORDER BY epoch, xid, id"
    return [id for (id,) in stack.sql(every)]


async def test_many_streams_get_every_event_once_in_order_across_restarts(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    clients = [Client(stack) for _ in range(CLIENTS)]
    figures: dict[str, Any] = {"rss_alone_mib": memory(stack.pids()["api"]) / MIB}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        running = asyncio.gather(*(client.run(http, 3 * EVENTS) for client in clients))
        await asyncio.to_thread(wait_for, "all are connected", lambda: all(c.last for c in clients), 60)
        await asyncio.to_thread(write, stack, EVENTS)
        await asyncio.to_thread(wait_for, "a first part", lambda: all(len(c.ids) >= EVENTS for c in clients), 120)
        # The second part is measured, as the first warms everything up; the third comes while the API dies.
        pid = stack.pids()["api"]
        before, cpu, began = memory(pid), cpu_seconds(pid), time.monotonic()
        await asyncio.to_thread(write, stack, EVENTS)
        await asyncio.to_thread(wait_for, "a second part", lambda: all(len(c.ids) >= 2 * EVENTS for c in clients), 300)
        figures["cpu_ms_per_event"] = 1000 * (cpu_seconds(pid) - cpu) / EVENTS
        figures["seconds"] = time.monotonic() - began
        figures["rss_before_mib"], figures["rss_after_mib"] = before / MIB, memory(pid) / MIB
        await asyncio.to_thread(write, stack, EVENTS // 2)
        await asyncio.to_thread(stack.kill, "api")
        expected = await asyncio.to_thread(write, stack, EVENTS - EVENTS // 2)
        async with asyncio.timeout(300):
            await running
    with capsys.disabled():
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        print(f"\n{CLIENTS} clients, {EVENTS} events: {shown}")
    assert len(expected) == 3 * EVENTS
    for client in clients:
        assert client.ids == expected, "each once, and in order"
        assert client.connections >= 2, "the API died in between"
    assert figures["rss_after_mib"] - figures["rss_before_mib"] < 15


def test_websocket_goes_on_where_it_was_after_a_restart(stack: Stack) -> None:
    known = stack.endpoint()
    headers = {"X-API-Key": known["api_key"]}
    base = known["api_url"].replace("http", "ws", 1) + "/ws/events?type=instance."
    with connect(base, additional_headers=headers, proxy=None) as socket:
        first = stack.running()
        seen = [json.loads(socket.recv(20)) for _ in range(3)]
    stack.kill("api")
    stack.wait_for_api()
    second = stack.running()
    base = stack.endpoint()["api_url"].replace("http", "ws", 1) + "/ws/events?type=instance."
    with connect(f"{base}&last_event_id={seen[-1]['id']}", additional_headers=headers, proxy=None) as socket:
        seen += [json.loads(socket.recv(20)) for _ in range(3)]
    wanted = ["instance.pending", "instance.provisioning", "instance.running"]
    assert [(event["type"], event["resource_id"]) for event in seen] == [
        (type, instance["id"]) for instance in (first, second) for type in wanted
    ]
    stack.delete_all()


def test_webhook_gets_every_event_soon_and_signed(stack: Stack) -> None:
    with Receiver() as receiver:
        body = {"name": f"hook-{uuid4().hex[:8]}", "url": receiver.url, "events": ["instance."]}
        hook = stack.accept("POST", "/webhooks", body)["data"]
        made = [stack.running()["id"]]
        began = time.monotonic()

        def came() -> int:
            """Events of these; of others, which were deleted just before, some may come too."""
            return len({one.event["id"] for one in receiver.received if one.event["resource_id"] in made})

        wait_for("its events arrive", lambda: came() == 3)
        # By the notice of the commit, not by the next tick only.
        print(f"the last of three came {time.monotonic() - began:.1f} s after the launch had ended")
        assert all(one.is_signed_with(hook["secret"]) for one in receiver.received)
        receiver.usual = 500
        made.append(stack.running()["id"])
        wait_for("a failed attempt", lambda: came() > 3)
        (pending, *_) = stack.get(f"/webhooks/{hook['id']}/deliveries", state="pending")[::-1]
        receiver.usual = 204
        stack.accept("POST", f"/webhooks/{hook['id']}/deliveries/{pending['id']}/redeliver")
        wait_for("the rest", lambda: came() == 6, 10)
        logs = [stack.log(name) for name in ("api", "control_worker")]
        assert all(logs) and not any(hook["secret"] in text for text in logs)
        stack.request("DELETE", f"/webhooks/{hook['id']}").raise_for_status()
    stack.delete_all()
