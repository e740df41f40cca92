"""Real servers for tests: one PostgreSQL and one Temporal per test run, a fresh database per test.

The database of a test is a copy of a migrated and seeded one, with two hosts, ``one`` and ``two``, and no
over-commit to think about. A folder of tests takes the fixtures that it needs into its conftest.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg.rows import dict_row
from sqlalchemy import Engine, event
from temporalio.client import Client

from model.base import new_id
from model.secrets import digest
from model.settings import Settings
from tests.folders import new_folder
from tests.patience import is_over
from worker import database as schema
from worker import ports, temporal
from worker.children import die_with_parent
from worker.postgres import SUPERUSER, Postgres, find_binaries
from worker.temporal_client import DATA_CONVERTER

TEMPLATE = "cairn"
PORT_RANGE = (20000, 20999)
_numbers = itertools.count()


def child(argv: list[str], log: Path, env: Mapping[bytes, bytes] | None = None) -> subprocess.Popen[bytes]:
    """A server that cannot outlive this test run."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            env=env,
            stdout=output,
            stderr=output,
            preexec_fn=partial(die_with_parent, getpid()),  # noqa: PLW1509 - it does two system calls
        )


def until(check: Callable[[], Any], seconds: float = 10) -> Any:
    """The first answer that is true; the last one at the end of the time."""
    began = time.monotonic()
    while not (found := check()) and not is_over(began, seconds):
        time.sleep(0.02)
    return found


async def eventually(check: Callable[[], Any], seconds: float = 10) -> Any:
    """The same in a coroutine; ``check`` may be one."""
    began = time.monotonic()
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found or is_over(began, seconds):
            return found
        await asyncio.sleep(0.02)


class PostgresServer:
    """An embedded server in a folder of its own."""

    def __init__(self) -> None:
        self.folder = new_folder("cpg-")
        self.postgres = Postgres(self.folder / "postgres", self.folder / "run", find_binaries())
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.postgres.prepare()
        # What a test wrote need not survive the machine.
        quick = ("-c", "fsync=off", "-c", "max_connections=200")
        self.process = child([*self.postgres.command(), *quick], self.folder / "log")
        assert until(self.postgres._accepts, 20), (self.folder / "log").read_text()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def admin(self, statement: str) -> None:
        with psycopg.connect(self.postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def fill(self, name: str = TEMPLATE) -> dict[str, Any]:
        """Roles, schema, first rows; what a Database needs to know of them."""
        schema.bootstrap(self.postgres.url(SUPERUSER, "postgres"))
        owner = self.postgres.url("cairn_owner", name)
        schema.migrate(owner)
        hosts = [
            schema.HostSeed(
                id=new_id(),
                name=host,
                backend="docker",
                cpus=64,
                memory_mb=65536,
                credential=digest(f"agent-{host}"),
                public_key=bytes(32),
                fingerprint=bytes(32),
            )
            for host in ("one", "two")
        ]
        schema.seed(owner, installation=new_id(), api_key="cairn_test", hosts=hosts, settings=Settings())
        with psycopg.connect(self.postgres.url(SUPERUSER, name), autocommit=True) as connection:
            # Nobody renews their leases: these last as long as any test.
            connection.execute("UPDATE hosts SET last_seen_at = now() + interval '1 day'")
        return {"hosts": {host.name: host.id for host in hosts}}


@dataclass
class Database:
    """A test's own database."""

    server: PostgresServer
    name: str
    hosts: dict[str, UUID]
    project_id: UUID = field(init=False)
    api_key: str = "cairn_test"

    def __post_init__(self) -> None:
        self.project_id = self.one("SELECT id FROM projects WHERE name = 'default'")["id"]

    def url(self, role: str) -> str:
        return self.server.postgres.url(role, self.name)

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection[dict[str, Any]]:
        return psycopg.connect(self.url(role), row_factory=dict_row, autocommit=True)

    def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """As superuser: what is really there, whatever the policies say."""
        with self.connect() as connection:
            found = connection.execute(statement, parameters)
            return found.fetchall() if found.description else []

    def one(self, statement: str, *parameters: Any) -> dict[str, Any]:
        (row,) = self.rows(statement, *parameters)
        return row

    def settle(self) -> None:
        """Waits for every transaction of the server that is older than this: one of autovacuum's, in whatever
        database, also holds back what is sealed and told."""
        xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid"
        now = self.one("SELECT pg_current_xact_id()::text::bigint AS xid")["xid"]
        assert until(lambda: self.one(xmin)["xid"] > now, 60)

    def counts(self) -> dict[str, int]:
        """How many rows each table has that a request may write."""
        tables = ("instances", "workflows", "events", "idempotency_keys", "host_ports")
        return self.one("SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables))

    def quota(self, project_id: UUID | None = None) -> dict[str, float]:
        return self.one("SELECT * FROM quotas WHERE project_id = %s", project_id or self.project_id)

    def project(self, name: str, **limits: float) -> str:
        """Another project; the key that stands for it."""
        project = new_id()
        self.rows("INSERT INTO projects (id, name, unix_name) VALUES (%s, %s, %s)", project, name, f"p-{name}")
        self.rows("INSERT INTO quotas (project_id) VALUES (%s)", project)
        for what, limit in limits.items():
            self.rows(f"UPDATE quotas SET {what}_limit = %s WHERE project_id = %s", limit, project)
        return self.key(project, name, "owner")

    def user(self, project_id: UUID, name: str, *roles: str) -> UUID:
        """A user of this name, who has these roles in the project, which is the default one."""
        user, columns = new_id(), "id, email, name, default_project_id, verified_at"
        who = (user, f"{name}@example.org", name, project_id)
        self.rows(f"INSERT INTO users ({columns}) VALUES (%s, %s, %s, %s, now())", *who)
        for role in roles:
            binding = (new_id(), project_id, user, role)
            self.rows("INSERT INTO bindings (id, project_id, user_id, role_name) VALUES (%s, %s, %s, %s)", *binding)
        return user

    def session(self, user: UUID) -> UUID:
        """A login of the user's."""
        session = new_id()
        row = (session, user)
        self.rows("INSERT INTO sessions (id, user_id, expires_at) VALUES (%s, %s, now() + interval '1 day')", *row)
        return session

    def key(self, project_id: UUID, name: str, *roles: str, scopes: list[str] | None = None) -> str:
        """A key ``cairn_<name>`` of a user of that name, who has these roles in the project."""
        key, user = f"cairn_{name}", self.user(project_id, name, *roles)
        columns = "id, project_id, user_id, name, digest, scopes"
        row = (new_id(), project_id, user, name, digest(key), scopes)
        self.rows(f"INSERT INTO api_keys ({columns}) VALUES (%s, %s, %s, %s, %s, %s)", *row)
        return key


@dataclass
class TemporalServer:
    address: str
    namespace: str = "default"

    async def client(self, *, lazy: bool = False) -> Client:
        return await Client.connect(self.address, namespace=self.namespace, data_converter=DATA_CONVERTER, lazy=lazy)


def _once(config: pytest.Config, name: str, make: Callable[[], Any]) -> Any:
    """One per test run, though several folders have the fixture."""
    made: dict[str, Any] = config.__dict__.setdefault("_cairn_services", {})
    if name not in made:
        made[name] = make()
    return made[name]


def filled_postgres(config: pytest.Config) -> tuple[PostgresServer, dict[str, Any]]:
    """The test run's server, and what its template database holds."""

    def start() -> tuple[PostgresServer, dict[str, Any]]:
        server = PostgresServer()
        config.add_cleanup(server.remove)
        return server, server.fill()

    found: tuple[PostgresServer, dict[str, Any]] = _once(config, "postgres", start)
    return found


def running_temporal(config: pytest.Config) -> TemporalServer:
    """The test run's server."""
    server: TemporalServer = _once(config, "temporal", lambda: _temporal(config))
    return server


def _temporal(config: pytest.Config) -> TemporalServer:
    folder = new_folder("ctm-")
    avoid: set[int] = set()
    port, ui_port = (ports.choose(temporal.ADDRESS, avoid, PORT_RANGE) for _ in range(2))
    server = temporal.Temporal(temporal.find_binary(), folder / "temporal.db", port, ui_port, "default")
    process = child(server.command(), folder / "log")

    def stop() -> None:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(stop)
    assert until(lambda: asyncio.run(_serves(server.address)), 40), (folder / "log").read_text()
    return TemporalServer(server.address)


async def _serves(address: str) -> bool:
    """Its port is open before it serves."""
    try:
        await Client.connect(address)
    except RuntimeError:
        return False
    return True


@contextmanager
def copied(server: PostgresServer, facts: dict[str, Any]) -> Iterator[Database]:
    name = f"test_{next(_numbers)}"
    server.admin(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER cairn_owner STRATEGY FILE_COPY")
    try:
        yield Database(server, name, **facts)
    finally:
        server.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(pytestconfig: pytest.Config) -> Iterator[Database]:
    """A fresh database with the schema, the first rows and two hosts."""
    with copied(*filled_postgres(pytestconfig)) as made:
        yield made


@pytest.fixture
def own_database() -> Iterator[Database]:
    """The same on a server of its own, that the test may stop."""
    server = PostgresServer()
    try:
        yield Database(server, TEMPLATE, **server.fill())
    finally:
        server.remove()


@pytest.fixture
def worker_engine(database: Database) -> Iterator[Engine]:
    """As a worker's; but a step's transaction may take long where a busy machine lets this process stand still."""
    engine = schema.connect(database.url("cairn_worker"), 24)

    @event.listens_for(engine, "connect")
    def patient(connection: Any, _: object) -> None:
        connection.execute("SET idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    yield engine
    engine.dispose()


@pytest_asyncio.fixture
async def temporal_server(pytestconfig: pytest.Config) -> AsyncIterator[TemporalServer]:
    """A server on which no worker polls, unless a test starts one."""
    yield await asyncio.to_thread(running_temporal, pytestconfig)
