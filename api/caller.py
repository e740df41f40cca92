"""Who calls, and the one transaction of the request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from sqlalchemy import Executable, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import HTTPConnection

from api.http import MAX_BODY
from model.errors import BodyTooLarge, NotFound, Restored, Unauthenticated, UnsupportedMediaType, ValidationFailed
from model.secrets import digest

# One statement: who is it, which project, and from here on row-level security shows that project only.
_AUTHENTICATE = text(
    """
    SELECT k.id, k.name, p.id AS project_id, set_config('cairn.project', p.id::text, true),
        EXISTS (SELECT FROM restores WHERE finished_at IS NULL) AS restored
    FROM api_keys k LEFT JOIN projects p ON p.id = k.project_id AND p.id = coalesce(:project, k.project_id)
    WHERE k.digest = :digest AND k.revoked_at IS NULL
    """
)
ENTER = text("SELECT set_config('cairn.project', :project, true)")

#: A database that is silent for so long counts as away.
DATABASE_SECONDS = 5
#: A browser asks for the WebSocket subprotocols ``cairn`` and this with its key behind it.
SUBPROTOCOL, KEY_SUBPROTOCOL = "cairn", "key."
documented = (
    APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="ApiKey"),
    HTTPBearer(auto_error=False, scheme_name="Bearer"),
)


class Caller:
    """An authenticated request: its project, its actor, and its open transaction."""

    def __init__(
        self, engine: AsyncEngine, connection: AsyncConnection, project_id: UUID, actor: str, key_id: UUID
    ) -> None:
        self._engine = engine
        self._connection = connection
        self.project_id = project_id
        self.actor = actor
        self.key_id = key_id

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return await self._connection.execute(statement, parameters)

    @property
    def connection(self) -> AsyncConnection:
        return self._connection

    async def commit(self) -> None:
        """End the transaction and give the connection back: nothing may wait while holding one."""
        await self._connection.commit()
        await self._connection.close()

    def on(self, connection: AsyncConnection) -> Caller:
        """The same caller, in another of its transactions."""
        return Caller(self._engine, connection, self.project_id, self.actor, self.key_id)

    @asynccontextmanager
    async def again(self) -> AsyncIterator[AsyncConnection]:
        """A later, short transaction of the same caller, after ``commit``."""
        async with self._engine.begin() as connection:
            await connection.execute(ENTER, {"project": str(self.project_id)})
            yield connection

    @asynccontextmanager
    async def reopened(self) -> AsyncIterator[Caller]:
        """The same caller in another transaction, which an acceptance ends; what nothing ends is rolled back."""
        connection = self._engine.connect()
        await connection.start()
        try:
            await connection.execute(ENTER, {"project": str(self.project_id)})
            yield self.on(connection)
        finally:
            await connection.close()


async def authenticate(request: HTTPConnection) -> Caller:
    """Check the key; open the request's transaction in its project. Raises Unauthenticated, NotFound."""
    key = key_of(request)
    engine: AsyncEngine = request.app.state.engine
    malformed: ValidationFailed | None = None
    try:
        project = _project(request)
    except ValidationFailed as error:
        project, malformed = None, error  # to be told to those only whose key is valid
    parameters = {"digest": digest(key), "project": project}
    for last_try in (False, True):
        connection = engine.connect()
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                await connection.start()
                row = (await connection.execute(_AUTHENTICATE, parameters)).one_or_none()
            break
        except (DBAPIError, TimeoutError) as error:
            if connection.sync_connection is not None:  # None: it could not be opened at all
                await connection.close()
            # A connection that died while it lay in the pool: nothing was done on it, a fresh one will do.
            if last_try or not getattr(error, "connection_invalidated", False):
                raise
    if row is None or row.project_id is None or malformed is not None:
        await connection.close()
        if row is None:
            raise Unauthenticated("the API key is not valid")
        raise malformed or NotFound("there is no such project")
    request.state.authenticated = True
    if row.restored and request.scope.get("method", "GET") not in ("GET", "HEAD") and not _is_operation(request):
        await connection.close()
        raise Restored("the platform was restored from a backup: nothing is changed before its operator finishes that")
    structlog.contextvars.bind_contextvars(project_id=str(row.project_id))
    return Caller(engine, connection, row.project_id, f"key:{row.name}", row.id)


async def _unread(
    request: Request,
    _api_key: Annotated[str | None, Security(documented[0])],
    _bearer: Annotated[Any, Security(documented[1])],
) -> AsyncIterator[Caller]:
    caller = await authenticate(request)
    try:
        yield caller
    finally:
        # Rolls back what was not committed.
        await caller.connection.close()


#: A caller whose body is not read before it is asked for, and who commits itself.
#: ``scope="function"``: the transaction ends before the answer is sent, not after.
Unread = Annotated[Caller, Depends(_unread, scope="function")]


async def _caller(request: Request, caller: Unread) -> AsyncIterator[Caller]:
    await check_body(request)
    if request.method == "POST":
        idempotency_key(request)
    yield caller
    if not caller.connection.closed:
        await caller.commit()


Authenticated = Annotated[Caller, Depends(_caller, scope="function")]


def key_of(request: HTTPConnection) -> str:
    """What the caller shows of itself: an API key, or a host's credential. Raises Unauthenticated."""
    if key := request.headers.get("x-api-key"):
        return key
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for word in request.scope.get("subprotocols", ()):  # a WebSocket of a browser, which sends no headers of ours
        if word.startswith(KEY_SUBPROTOCOL):
            return str(word.removeprefix(KEY_SUBPROTOCOL))
    raise Unauthenticated("send an API key in the X-API-Key header")


def _is_operation(request: HTTPConnection) -> bool:
    """Whether it is what an operator of a restored platform needs."""
    return request.url.path.startswith(("/v1/operations/", "/v1/hosts/tokens"))


def _project(request: HTTPConnection) -> UUID | None:
    asked = request.headers.get("x-project-id")
    if asked is None:
        return None
    try:
        return UUID(asked)
    except ValueError:
        raise ValidationFailed(
            "X-Project-ID is not a UUID", fields=[{"field": "X-Project-ID", "message": "expected a UUID"}]
        ) from None


def idempotency_key(request: HTTPConnection) -> str | None:
    """Raises ValidationFailed."""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(r"[!-~]{1,255}", key):
        said = "1 to 255 visible ASCII characters"
        raise ValidationFailed(f"Idempotency-Key: {said}", fields=[{"field": "Idempotency-Key", "message": said}])
    return key


async def check_body(request: Request) -> None:
    """Raises BodyTooLarge, UnsupportedMediaType."""
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise BodyTooLarge(f"the body has more than {MAX_BODY} bytes")
    if request.method not in ("POST", "PUT", "PATCH") or not await request.body():
        return
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"expected application/json, got '{media_type or 'nothing'}'")
