"""The API on a real database, served by uvicorn on loopback in the tests' own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import argon2
import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from starlette.routing import BaseRoute
from temporalio.client import Client

from api.app import create_app
from drivers.blobs import FileBlobs
from model import passwords
from model.keyring import Keyring, new_master_key
from model.settings import Settings
from model.tickets import new_signing_key
from tests import services
from tests.api.documented import Documented
from tests.services import PORT_RANGE, Database, TemporalServer, database, eventually, own_database, temporal_server
from worker.api import CONNECTIONS, Protocol, Sockets
from worker.database import connect_async

__all__ = ["database", "own_database", "temporal_server"]

BODY = {"name": "web", "image": "cairn/base:latest"}
#: By the id of their router, which is of a module and stays.
_routes: dict[int, BaseRoute] = {}


@dataclass
class Api:
    """A served application, and a client with the installation's key."""

    app: FastAPI
    url: str
    http: httpx.AsyncClient
    db: Database

    async def launch(self, name: str = "web", **more: Any) -> dict[str, Any]:
        """A launch that is accepted; the answer's envelope."""
        answer = await self.http.post("/v1/instances", json=BODY | {"name": name} | more)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def put(self, instance: dict[str, Any], status: str) -> None:
        """What workers would have done: the instance in a state, its workflow ended."""
        deleted = ", deleted_at = now()" if status == "deleted" else ""
        self.db.rows(f"UPDATE instances SET status = %s{deleted} WHERE id = %s", status, instance["id"])
        self.db.rows(
            "UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_id = %s", instance["id"]
        )

    @property
    def keyring(self) -> Keyring:
        return Keyring(self.app.state.settings.master_keys.get_secret_value())

    def as_(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"X-API-Key": key}, timeout=30)

    async def signed_in(self, user: UUID) -> httpx.AsyncClient:
        """With an access token of the user's."""
        token = (await self.app.state.tokens()).sign(user, self.db.session(user))
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


class Quiet(uvicorn.Server):
    """uvicorn that leaves the tests' signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def share_routes(app: FastAPI) -> None:
    """FastAPI works out every route at an application's first request: here once for all that have the same routers."""
    for n, route in enumerate(app.router.routes):
        if (router := getattr(route, "original_router", None)) is not None:
            app.router.routes[n] = _routes.setdefault(id(router), route)


@asynccontextmanager
async def served(db: Database, temporal: Client, **given: Any) -> AsyncIterator[Api]:
    settings = Settings(
        port_range=PORT_RANGE,
        database_url=db.url("cairn_api"),
        overcommit_cpu=4,
        overcommit_memory=1,
        ticket_key=new_signing_key(),
        master_keys=new_master_key("test"),
        **{"mailer": "log"} | given,
    )
    engine = connect_async(db.url("cairn_api"), CONNECTIONS)
    folder = Path(tempfile.mkdtemp(prefix="cb-"))
    app = create_app(settings, engine, temporal, FileBlobs(folder))
    share_routes(app)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        # As uvloop does it: else each answer on a kept connection waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listener.getsockname()[1]
        answering = Documented(app)
        config = uvicorn.Config(
            answering, log_config=None, access_log=False, http=Protocol, ws=Sockets, lifespan="on", proxy_headers=False
        )
        server = Quiet(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        assert await eventually(lambda: server.started)
        url = f"http://127.0.0.1:{port}"
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=120), retries=2)
        async with httpx.AsyncClient(
            base_url=url, headers={"X-API-Key": db.api_key}, timeout=30, transport=transport
        ) as http:
            yield Api(app, url, http, db)
        app.state.stopping.set()
        server.should_exit = True
        await serving
    await engine.dispose()
    shutil.rmtree(folder)
    assert not answering.strays, answering.strays


@pytest_asyncio.fixture
async def api(database: Database, temporal_server: TemporalServer) -> AsyncIterator[Api]:
    """The API, with a Temporal that takes starts and no worker that carries them out."""
    async with served(database, await temporal_server.client()) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def shared_api(pytestconfig: pytest.Config) -> AsyncIterator[Api]:
    """One for all tests of a module that do not mind what others wrote."""
    with services.copied(*services.filled_postgres(pytestconfig)) as database:
        temporal = await asyncio.to_thread(services.running_temporal, pytestconfig)
        async with served(database, await temporal.client()) as one:
            yield one


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[None]:
    """Hashes that cost next to nothing: what is tested here is what is done with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        passwords._of_nobody.cache_clear()
        yield
    passwords._of_nobody.cache_clear()


async def no_temporal() -> Client:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return await TemporalServer(f"127.0.0.1:{port}").client(lazy=True)
