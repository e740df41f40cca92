"""An agent's server over real TLS, with streams of our own behind it."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp
from pydantic import SecretStr

from api.agent_client import Agents, Target
from drivers.streams import Usage
from model.errors import CairnError, InvalidState, PortClosed
from model.settings import Settings
from model.streams import Call, Run
from model.tickets import Gate, Ticket, Verb, new_signing_key, sign, verifying_key
from tests.services import eventually
from worker import agent_server
from worker.agent_server import AgentServer, url_of
from worker.identity import Keys, new_keys

HOST, INSTANCE, PROJECT, KEY = uuid4(), uuid4(), uuid4(), new_signing_key()
KEYS = new_keys("one")
CHUNK = b"x" * 65536


class Items:
    """Items that come as they are taken; closed, there are no more."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self._wake = getattr(items, "ended", threading.Event())
        self.taken = 0
        self.closed = threading.Event()

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        if self.closed.is_set():
            raise StopIteration
        item = next(self._items)
        if isinstance(item, CairnError):
            raise item
        self.taken += 1
        return item

    def close(self) -> None:
        self.closed.set()
        self._wake.set()

    def exit_code(self) -> int:
        return 3


class Echo:
    """A terminal that shows what is typed, capitals for small letters."""

    def __init__(self) -> None:
        self.mine, self.theirs = socket.socketpair()
        self.size = (0, 0)
        self.closed = threading.Event()

    def read(self) -> bytes:
        data = self.mine.recv(1000)
        return b"" if data == b"exit" else data.upper()

    def write(self, data: bytes) -> None:
        self.theirs.sendall(data)

    def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)
        self.theirs.sendall(b"%dx%d" % self.size)

    def exit_code(self) -> int | None:
        return 7

    def close(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)
        self.closed.set()


class FakeStreams:
    """One instance's streams."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.items: Iterable[Any] = [b"one\n", b"two\n"]
        self.archive = b""
        self.tidied = False

    def _open(self, made: Any) -> Any:
        self.opened.append(made)
        return made

    def logs(self, machine: UUID, *, tail: int | None, follow: bool) -> Items:
        return self._open(Items(self.items))

    def stats(self, machine: UUID) -> Items:
        counters = {"rx_bytes": 1, "tx_bytes": 2, "read_bytes": 3, "written_bytes": 4}
        return self._open(
            Items([Usage(at=dt.datetime.now(dt.UTC), cpu_percent=1.5, memory_bytes=10, pids=1, **counters)])
        )

    def run(self, machine: UUID, argv: list[str], *, timeout_seconds: float, env: object = None) -> Items:
        return self._open(Items(self.items))

    def terminal(self, machine: UUID, argv: list[str] | None, *, columns: int, rows: int, env: object = None) -> Echo:
        if argv == ["stopped"]:
            raise InvalidState("it does not run")
        return self._open(Echo())

    def get(self, machine: UUID, path: str) -> Items:
        return self._open(Items([b"tar of ", path.encode()]))

    def end_forgotten(self) -> None:
        self.tidied = True

    def put(self, machine: UUID, path: str, archive: Iterable[bytes]) -> None:
        self.archive = b"".join(archive)


class FakeCalls:
    """What listens in any of the instances, where its port is open."""

    def call(self, machine: UUID, call: Call) -> Any:
        raise AssertionError

    def connect(self, machine: UUID, port: int) -> socket.socket:
        try:
            return socket.create_connection(("127.0.0.1", port), 5)
        except OSError as error:
            raise PortClosed("nothing answers", port=port) from error


class Site:
    def __init__(self, url: str, streams: FakeStreams, gate: Gate, agents: Agents, http: aiohttp.ClientSession) -> None:
        self.url, self.streams, self.gate, self.agents, self.http = url, streams, gate, agents, http
        self.target = Target(INSTANCE, "web", HOST, "one", url, KEYS.fingerprint, PROJECT)

    stopping: asyncio.Event
    running: asyncio.Task[None]

    def ticket(self, verb: Verb, instance: UUID = INSTANCE, host: UUID = HOST, **more: Any) -> str:
        return sign(Ticket(instance=instance, verb=verb), host=host, **{"key": KEY} | more)

    async def status(self, verb: str, ticket: str | None, instance: UUID = INSTANCE, host: UUID = HOST) -> int:
        """What the agent answers."""
        method = {"exec": "POST", "write": "PUT"}.get(verb, "GET")
        body = Run(argv=["true"], timeout=1, limit=10).model_dump_json() if verb == "exec" else None
        headers = {"Authorization": f"Bearer {ticket}"} if ticket else {}
        url = f"{self.url}/hosts/{host}/instances/{instance}/{verb}"
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        if verb == "terminal":
            headers |= upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            url += "?columns=80&rows=24"
        async with self.http.request(method, url, headers=headers, data=body, ssl=False) as answer:
            return answer.status


@asynccontextmanager
async def serving(keys: Keys = KEYS) -> AsyncIterator[Site]:
    streams, gate = FakeStreams(), Gate([verifying_key(KEY)])
    served = AgentServer({HOST: streams, UUID(int=1): None}, gate, calls={HOST: FakeCalls()})
    listener = agent_server.listen(Settings(), "http://127.0.0.1:1")
    url = url_of(listener)
    stopping = asyncio.Event()
    running = asyncio.create_task(served.run(keys, listener, stopping))
    assert await eventually(lambda: streams.tidied)
    agents = Agents(SecretStr(KEY))
    # A connection for each request: one that was refused before its body was read is closed by the agent.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        site = Site(url, streams, gate, agents, http)
        site.stopping, site.running = stopping, running
        yield site
    await agents.close()
    stopping.set()
    await running
