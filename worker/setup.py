"""Set-up of the services that a platform uses: PostgreSQL and Temporal. Program ``cairn-setup``.

What is there is left as it is, so that it may be run at every start and by several at once: one at a time does the
work. ``--check`` changes nothing, and says what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import psycopg
import structlog
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

import migrations
from model import logs
from model.base import Frozen, new_id
from model.keyring import new_master_key
from model.secrets import digest, new_key
from model.settings import SetupSettings, problem_of, with_password
from model.tickets import new_signing_key
from worker import data_folder, database, schedules
from worker.data_folder import StackError
from worker.temporal import SEARCH_ATTRIBUTES
from worker.temporal_client import connect_once

log = structlog.get_logger()
T = TypeVar("T")
#: One set-up at a time; the others wait for it.
LOCK = 0x6361_6972_6E_73
RETRY_SECONDS = 0.5
#: How long --check waits for each of both, unless CAIRN_SETUP_PATIENCE says so: whoever asks is there.
CHECK_SECONDS = 5.0
#: Temporal's answers that mean "not yet"; NOT_FOUND is one of them for some seconds after a namespace was made.
NOT_YET = (
    *(RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.UNKNOWN, RPCStatusCode.INTERNAL),
    RPCStatusCode.NOT_FOUND,
)
#: Files that are made where they are named and absent.
MADE: dict[str, Callable[[], str]] = {
    "CAIRN_API_KEY_FILE": new_key,
    "CAIRN_TICKET_KEY_FILE": new_signing_key,
    "CAIRN_MASTER_KEYS_FILE": partial(new_master_key, "first"),
    "CAIRN_ADMIN_PASSWORD_FILE": partial(secrets.token_urlsafe, 12),
}
State = Literal["there", "made", "changed", "missing"]


class Finding(Frozen):
    """One thing that a platform needs of its services, and what became of it."""

    name: str
    state: State
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name}" + (f": {self.detail}" if self.detail else "")


def main() -> None:
    if sys.argv[1:] not in ([], ["--check"]):
        raise SystemExit("usage: cairn-setup [--check]")
    try:
        complete = set_up(change=not sys.argv[1:], say=partial(print, flush=True))
    except StackError as error:
        complete = False
        print(error, file=sys.stderr, flush=True)
    # Threads of Temporal's client may be about to call the interpreter: where that is ending by then, it aborts.
    os._exit(0 if complete else 1)


def set_up(*, change: bool, say: Callable[[str], None]) -> bool:
    """Say what there is and, with ``change``, make what is missing; whether all of it is there then.

    Raises StackError where a service does not answer in time, or refuses.
    """
    found = list(_files(change))
    for finding in found:
        say(str(finding))
    if any(finding.state == "missing" for finding in found):
        return False  # they cannot be read, so nothing further can be said
    try:
        settings = SetupSettings()
    except (ValidationError, SettingsError) as error:
        raise StackError(f"{problem_of(error)} (see docs/configuration.md)") from None
    logs.configure(settings.log_level, settings.log_format, "setup")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not change and "setup_patience" not in settings.model_fields_set:
        settings = settings.model_copy(update={"setup_patience": CHECK_SECONDS})
    if not change:
        print(f"asking PostgreSQL and Temporal, each for at most {settings.setup_patience:g} s", file=sys.stderr)
    with _admin(settings, change) as admin:
        for finding in _database(admin, settings, change):
            found.append(finding)
            say(str(finding))
        # Still one at a time: the lock goes with the connection.
        found += asyncio.run(_temporal(settings, change, say))
    return all(finding.state != "missing" for finding in found)


def _files(change: bool) -> Iterator[Finding]:
    for variable, make in MADE.items():
        path = os.environ.get(variable)
        if not path:
            continue
        try:
            state: State = "there" if Path(path).exists() else "made" if change else "missing"
            if state == "made":
                data_folder.kept(Path(path), make)
        except OSError as error:
            raise StackError(f"{variable}: cannot be made: {error}") from None
        yield Finding(name=f"file {path}", state=state)


@contextlib.contextmanager
def _admin(settings: SetupSettings, change: bool) -> Iterator[psycopg.Connection]:
    """A connection that may make roles and databases, and holds the lock. Who only checks has been told of the wait."""
    end = time.monotonic() + settings.setup_patience
    said = False
    while True:
        try:
            connection = psycopg.connect(settings.database, autocommit=True, connect_timeout=5)
            break
        except ValueError as error:
            raise StackError(str(error)) from None
        except psycopg.OperationalError as error:
            if time.monotonic() > end:
                raise StackError(
                    f"PostgreSQL: not within {settings.setup_patience:g} s: {error}{_where(settings)}"
                ) from None
            if not said and change:
                log.warning("postgres.waiting", at_most=settings.setup_patience, error=str(error).partition("\n")[0])
            said = True
            time.sleep(RETRY_SECONDS)
    with connection:
        connection.execute(f"SET lock_timeout = '{settings.setup_patience:g}s'")
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        except psycopg.errors.LockNotAvailable:
            raise StackError(f"another set-up has run for {settings.setup_patience:g} s") from None
        yield connection


def _where(settings: SetupSettings) -> str:
    if "database_url" in settings.model_fields_set:
        return ""
    return (
        "\nCAIRN_DATABASE_URL is not set: it says which PostgreSQL is to be prepared. A platform of 'cairn up' has "
        "its own, and needs no set-up: see how it is with 'cairn doctor'"
    )


def _database(admin: psycopg.Connection, settings: SetupSettings, change: bool) -> Iterator[Finding]:
    try:
        yield from _roles(admin, settings, change)
        if not database.has_database(admin):
            yield Finding(name="database cairn, its schema and first rows", state="missing")
            return
        owner = as_role(settings, "cairn_owner", "cairn")
        yield _schema(owner, change)
        yield from _rows(owner, settings, change)
    except (psycopg.Error, OperationalError) as error:
        raise StackError(f"PostgreSQL: {str(error).strip()}") from None


def _roles(admin: psycopg.Connection, settings: SetupSettings, change: bool) -> Iterator[Finding]:
    """Roles, their passwords, the database."""
    there = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles").fetchall()}
    passwords = {role: secret.get_secret_value() for role in database.ROLES if (secret := _password(settings, role))}
    refused = {role: password for role, password in passwords.items() if not _opens(settings, role)}
    had = database.has_database(admin)
    if change:
        database.bootstrap(settings.database, refused)
    for role in database.ROLES:
        if role not in there:
            yield Finding(name=f"role {role}", state="made" if change else "missing")
        elif role in refused:
            yield Finding(name=f"role {role}", state="changed" if change else "missing", detail="its password")
        else:
            yield Finding(name=f"role {role}", state="there")
    if had or change:
        yield Finding(name="database cairn", state="there" if had else "made")


def _password(settings: SetupSettings, role: str) -> SecretStr | None:
    found: SecretStr | None = getattr(settings, f"{role.removeprefix('cairn_')}_password")
    return found


def as_role(settings: SetupSettings, role: str, name: str | None = None) -> str:
    """The database's URL as another role than the one that sets it up."""
    url = make_url(settings.database_url.get_secret_value()).set(username=role, password=None)
    plain = (url.set(database=name) if name else url).render_as_string(hide_password=False)
    secret = _password(settings, role)
    return plain if secret is None else with_password(plain, secret.get_secret_value())


def _opens(settings: SetupSettings, role: str) -> bool:
    """Whether the role's password is the one that was given. Where none is asked for it is not known: so not."""
    try:
        with psycopg.connect(as_role(settings, role), connect_timeout=5) as connection:
            return bool(connection.pgconn.used_password)
    except psycopg.OperationalError:
        return False


def _schema(owner: str, change: bool) -> Finding:
    engine = create_engine(database.driver_url(owner), poolclass=NullPool)
    with engine.connect() as connection:
        found = database.revision(connection)
    newest = migrations.newest()
    match migrations.standing(found):
        case "ok":
            return Finding(name=f"schema {newest}", state="there")
        case "newer":
            said = f"newer than this program's, which is {newest}: left as it is"
            return Finding(name=f"schema {found}", state="there", detail=said)
    before = f"from {found}" if found else ""
    if not change:
        return Finding(name=f"schema {newest}", state="missing", detail=before and f"it is {found}")
    database.migrate(owner)
    return Finding(name=f"schema {newest}", state="changed" if found else "made", detail=before)


def _rows(owner: str, settings: SetupSettings, change: bool) -> Iterator[Finding]:
    """The installation, its first project, its first key."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    before = _seeded(owner, key)
    if change:
        database.seed(owner, installation=settings.installation or new_id(), api_key=key, hosts=[], settings=settings)
    for name, there in _seeded(owner, key).items():
        state: State = "there" if before[name] else "made" if there else "missing"
        advice = "name a file for it: CAIRN_API_KEY_FILE" if name == "admin key" and not there and key is None else ""
        yield Finding(name=name, state=state, detail=advice)


def _seeded(owner: str, key: str | None) -> dict[str, bool]:
    of_key = "digest = %(digest)s" if key else "name = 'admin'"
    queries = {
        "installation": "SELECT count(*) FROM installation",
        "project default": "SELECT count(*) FROM projects WHERE name = 'default'",
        "admin key": f"SELECT count(*) FROM api_keys WHERE revoked_at IS NULL AND {of_key}",  # noqa: S608 - ours
    }
    found = {}
    with psycopg.connect(owner) as connection:
        for name, query in queries.items():
            try:
                with connection.transaction():
                    row = connection.execute(query, {"digest": digest(key or "")}).fetchone()
            except psycopg.errors.UndefinedTable:
                row = None
            found[name] = bool(row and row[0])
    return found


async def _temporal(settings: SetupSettings, change: bool, say: Callable[[str], None]) -> list[Finding]:
    end = time.monotonic() + settings.setup_patience
    found: list[Finding] = []

    async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
        said = False
        while True:
            try:
                return await attempt()
            except (RuntimeError, RPCError) as error:
                if isinstance(error, RPCError) and error.status not in NOT_YET:
                    raise StackError(f"Temporal refuses: {error.message}") from None
                if time.monotonic() > end:
                    raise StackError(f"Temporal: not within {settings.setup_patience:g} s: {error}") from None
                if not said:
                    log.warning(
                        "temporal.waiting",
                        address=settings.temporal_address,
                        at_most=settings.setup_patience,
                        error=str(error),
                    )
                said = True
                await asyncio.sleep(RETRY_SECONDS)

    client = await patiently(lambda: connect_once(settings))
    retention = timedelta(days=settings.temporal_retention)
    for part in (
        lambda: _namespace(client, retention, change),
        lambda: _search_attributes(client, change),
        lambda: _schedules(client, settings, change),
    ):
        finding = await patiently(part)
        found.append(finding)
        say(str(finding))
        if finding.state == "missing":
            break  # the rest is in it
    return found


async def _namespace(client: Client, retention: timedelta, change: bool) -> Finding:
    name = f"Temporal namespace {client.namespace}"
    kept = Duration()
    kept.FromTimedelta(retention)
    days = f"histories are kept for {retention / timedelta(days=1):g} days"
    try:
        there = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        if not change:
            return Finding(name=name, state="missing")
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace=client.namespace, workflow_execution_retention_period=kept)
        )
        return Finding(name=name, state="made", detail=days)
    if there.config.workflow_execution_retention_ttl.ToTimedelta() == retention:
        return Finding(name=name, state="there")
    if not change:
        return Finding(name=name, state="missing", detail=f"its retention: {days}")
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=kept)
        )
    )
    return Finding(name=name, state="changed", detail=days)


async def _search_attributes(client: Client, change: bool) -> Finding:
    name = "search attributes"
    asked = ListSearchAttributesRequest(namespace=client.namespace)
    there = await client.operator_service.list_search_attributes(asked)
    absent = [one for one in SEARCH_ATTRIBUTES if one not in there.custom_attributes]
    if not absent:
        return Finding(name=name, state="there", detail=", ".join(SEARCH_ATTRIBUTES))
    if not change:
        return Finding(name=name, state="missing", detail=", ".join(absent))
    wanted = dict.fromkeys(absent, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=client.namespace, search_attributes=wanted)
    )
    return Finding(name=name, state="made", detail=", ".join(absent))


async def _schedules(client: Client, settings: SetupSettings, change: bool) -> Finding:
    absent = await schedules.missing(client)
    if change:
        await schedules.declare(client, settings)
    if not absent:
        return Finding(name="schedules", state="there", detail=", ".join(schedules.WORK))
    return Finding(name="schedules", state="made" if change else "missing", detail=", ".join(absent))


if __name__ == "__main__":
    main()
