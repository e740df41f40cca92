"""Who a request is from, and what it may do: the dependency of every route that is not open to all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, Request
from fastapi.params import Security
from fastapi.security import APIKeyHeader, HTTPBearer, SecurityScopes
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import HTTPConnection

from api import anonymous, limits
from api.audit_rows import Record
from api.caller import Caller, Credential, Who, who_is
from api.http import MAX_BODY
from model.audit import NOWHERE
from model.errors import (
    BodyTooLarge,
    CairnError,
    Forbidden,
    NotFound,
    ProjectInactive,
    Restored,
    Unauthenticated,
    UnsupportedMediaType,
    ValidationFailed,
)
from model.permissions import ACCOUNT, ALL, PLATFORM
from model.secrets import digest, is_damaged
from model.settings import Settings
from model.tokens import Tokens, is_token

#: In the scope of a request that a cron job makes in this process: its id. Nothing from outside can be there.
JOB = "cairn.job"
#: A database that is silent for so long counts as away.
DATABASE_SECONDS = 5
#: How keys begin, but those that an operator made up.
KEYS = "cairn_"
#: A browser asks for the WebSocket subprotocols ``cairn`` and this with its key behind it.
SUBPROTOCOL, KEY_SUBPROTOCOL = "cairn", "key."
documented = (
    APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="ApiKey"),
    HTTPBearer(auto_error=False, scheme_name="Bearer"),
)


async def authenticate(request: HTTPConnection, *permissions: str) -> Caller:
    """Find out who it is; open the request's transaction in its project.

    Raises Unauthenticated, NotFound for a project that is not the caller's, Forbidden where it has not these
    permissions in it; RateLimited.
    """
    request.state.asked = permissions
    try:
        return await _authenticate(request, permissions)
    except Unauthenticated:
        await limits.count_stranger(request)
        raise


async def _authenticate(request: HTTPConnection, permissions: Sequence[str]) -> Caller:
    job: UUID | None = request.scope.get(JOB)
    shown = _shown(request) if job is None else None
    engine: AsyncEngine = request.app.state.engine
    malformed: ValidationFailed | None = None
    project: UUID | None = None
    try:
        project = _project(request, permissions)
    except ValidationFailed as error:
        malformed = error  # to be told to those only who are somebody
    credential = Credential(None, None, None, job) if job else await credential_of(request, shown, project)
    if shown is not None and credential.digest is not None and not shown.startswith(KEYS):
        await limits.check_stranger(request)
    connection, row = await _identify(engine, credential)
    if row is not None and limits.has_to_ask(request, key=_counted(row), user=row.user_id):
        # The counts are in the database too, and nothing else is held while it is asked for them.
        await connection.close()
        request.state.who = who_is(credential, row)
        await limits.count_caller(request, key=_counted(row), user=row.user_id)
        connection, row = await _identify(engine, credential)
    try:
        if job is not None and (row is None or row.project_id is None):
            raise Forbidden("nobody is left in whose name this cron job could act: change it, and it acts in yours")
        if row is None:
            anonymous.forget(request)
            raise Unauthenticated(f"the {_word(request, credential)} is not valid")
        who = request.state.who = who_is(credential, row)
        request.state.authenticated = True
        await limits.count_caller(request, key=_counted(row), user=who.user_id)
        if malformed is not None:
            raise malformed
        await _check_project_of_path(connection, who, request, permissions)
        _check(who, row, request, permissions)
    except CairnError:
        await connection.close()
        raise
    if who.key_id is not None:
        request.app.state.key_use.note(who.key_id)
    structlog.contextvars.bind_contextvars(project_id=str(who.project_id))
    return Caller(engine, connection, who, Record(request, permissions[0] if permissions else ""))


async def _identify(engine: AsyncEngine, credential: Credential) -> tuple[AsyncConnection, Row[Any] | None]:
    """The request's transaction, begun; and who it is, None: nobody."""
    for last_try in (False, True):
        connection = engine.connect()
        try:
            await connection.start()  # it waits for one that is free, as long as connect_async says
            async with asyncio.timeout(DATABASE_SECONDS):
                return connection, (await connection.execute(*credential.identify())).one_or_none()
        except (DBAPIError, TimeoutError) as error:
            if connection.sync_connection is not None:  # None: it could not be opened at all
                await connection.close()
            # A connection that died while it lay in the pool: nothing was done on it, a fresh one will do.
            if last_try or not getattr(error, "connection_invalidated", False):
                raise
    raise AssertionError("the second try returns or raises")


def _counted(row: Row[Any]) -> UUID | None:
    """By what a caller's requests are counted, beside by its user: what acts for a service account and shows no key of
    it, a cron job, has neither."""
    found: UUID | None = row.key_id if row.key_id or row.user_id else row.service_account_id
    return found


def _shown(request: HTTPConnection) -> str | None:
    """None: nothing, and nothing is needed. Raises Unauthenticated."""
    try:
        return key_of(request)
    except Unauthenticated:
        settings: Settings = request.app.state.settings
        if settings.auth != "anonymous":
            raise
        return None


async def credential_of(request: HTTPConnection, shown: str | None, project: UUID | None) -> Credential:
    """Raises Unauthenticated."""
    if shown is None:
        return Credential(None, await anonymous.session_of(request), project)
    if is_damaged(shown):
        raise Unauthenticated("the API key is not whole: a part of it was lost, or a character is another")
    if not is_token(shown):
        return Credential(digest(shown), None, project)
    tokens: Tokens = await request.app.state.tokens()
    return Credential(None, tokens.session_of(shown), project)


async def still_may(connection: AsyncConnection, who: Who, permission: str) -> bool:
    """Whether what this caller showed lets it do so in this project now. Nothing else was done on the connection."""
    row = (await connection.execute(*who.credential.identify())).one_or_none()
    if row is None or row.project_id != who.project_id or not row.is_active:
        return False
    return permission in who_is(who.credential, row).permissions


async def _check_project_of_path(
    connection: AsyncConnection, who: Who, request: HTTPConnection, permissions: Sequence[str]
) -> None:
    """What the platform does with projects: of those that are not theirs nobody learns even that. Raises NotFound."""
    about = _uuid(request.path_params.get("project_id", ""))
    missing = PLATFORM.keys() & set(permissions) - who.permissions
    if about is None or about == who.project_id or not missing:
        return
    row = (await connection.execute(*who.credential._replace(project=about).identify())).one_or_none()
    if row is None or row.project_id is None:
        raise NotFound("there is no such project")


def _check(who: Who, row: Row[Any], request: HTTPConnection, permissions: Sequence[str]) -> None:
    """Raises NotFound, Forbidden, Restored."""
    for_account = all(permission in ACCOUNT for permission in permissions)
    if who.project_id == NOWHERE and who.service_account_id and who.credential.project is None and not for_account:
        # It asks for none but its own.
        raise Forbidden(
            f"{who.actor} has no role in its project: give its service account one (POST /v1/rbac/bindings)",
            permission=permissions[0],
        )
    if who.project_id == NOWHERE and (who.credential.project is not None or not for_account):
        raise NotFound("there is no such project")
    for permission in permissions:
        who.require(permission)
    if who.project_id != NOWHERE and not row.is_active and not for_account:
        raise ProjectInactive("the project is deactivated: ask an administrator of the platform")
    if row.restored and request.scope.get("method", "GET") not in ("GET", "HEAD") and not _is_operation(request):
        raise Restored("the platform was restored from a backup: nothing is changed before its operator finishes that")


async def _unread(
    request: Request,
    scopes: SecurityScopes,
    _api_key: Annotated[str | None, Security(documented[0])],
    _bearer: Annotated[Any, Security(documented[1])],
) -> AsyncIterator[Caller]:
    caller = await authenticate(request, *scopes.scopes)
    try:
        if not set(scopes.scopes).isdisjoint(PLATFORM):
            await caller.enter_platform()
        yield caller
    finally:
        # Rolls back what was not committed.
        await caller.connection.close()


async def _caller(
    request: Request, caller: Annotated[Caller, Depends(_unread, scope="function")]
) -> AsyncIterator[Caller]:
    await check_body(request)
    if request.method == "POST":
        idempotency_key(request)
    yield caller
    if not caller.connection.closed:
        await caller.commit()


def may(permission: str) -> Any:
    """A dependency: the caller, who has this permission. Its transaction is committed where the handler has not.

    ``scope="function"``: the transaction ends before the answer is sent, not after.
    """
    return Security(_caller, scopes=[_known(permission)], scope="function")


def may_unread(permission: str) -> Any:
    """The same, whose body is not read before it is asked for, and who commits itself."""
    return Security(_unread, scopes=[_known(permission)], scope="function")


def _known(permission: str) -> str:
    if permission not in ALL:
        raise ValueError(f"there is no permission '{permission}' (model/permissions.py)")
    return permission


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
    raise Unauthenticated("log in (POST /v1/auth/login), or send an API key in the X-API-Key header")


def _word(request: HTTPConnection, credential: Credential) -> str:
    """What was shown, as whoever showed it calls it: what a Bearer header has is a token to them."""
    if credential.digest is None:
        return "access token"
    is_key = (
        "x-api-key" in request.headers or "authorization" not in request.headers or key_of(request).startswith(KEYS)
    )
    return "API key" if is_key else "token"


def _is_operation(request: HTTPConnection) -> bool:
    """Whether it is what an operator of a restored platform needs."""
    return request.url.path.startswith(("/v1/operations/", "/v1/hosts/tokens"))


def _project(request: HTTPConnection, permissions: Sequence[str]) -> UUID | None:
    """Which project is asked for: the one in the path, else that of the header. Where both are there and differ it is
    none that there is. What platform administrators do with a project is not done in it.

    Raises ValidationFailed.
    """
    asked = request.headers.get("x-project-id")
    named = _uuid(request.path_params.get("project_id", "")) if PLATFORM.keys().isdisjoint(permissions) else None
    if asked is None:
        return named
    found = _uuid(asked)
    if found is None:
        raise ValidationFailed(
            "X-Project-ID is not a UUID", fields=[{"field": "X-Project-ID", "message": "expected a UUID"}]
        )
    return found if named in (None, found) else NOWHERE


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


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
