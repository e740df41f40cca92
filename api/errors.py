"""Every error as an answer: one shape, and after authentication only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api import denials, problems
from api.authentication import authenticate
from api.envelope import ErrorEnvelope, answer
from api.openapi import allowed
from api.schema import NOT_SET_UP, lacking
from model.errors import (
    BodyTooLarge,
    CairnError,
    Forbidden,
    HostUnreachable,
    InvalidState,
    Malformed,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Restored,
    TooManyImports,
    TooManyStreams,
    Unavailable,
    ValidationFailed,
)

log = structlog.get_logger()


def also(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: errors that do not follow from its method and headers (api/openapi.py)."""
    return {status: {"model": ErrorEnvelope} for status in statuses}


#: What any route may answer.
RESPONSES = also(401, 422, 503)


class MethodNotAllowed(CairnError):
    code, status = "method_not_allowed", 405


#: A lock was waited for too long, or would have been for ever (a deadlock: PostgreSQL chose this transaction to end).
_NOT_LOCKED = ("55P03", "40P01")
#: A foreign key.
_REFERS_TO_NOTHING = "23503"
#: What the database says who makes something in such a project.
_DELETING = "the project is being deleted"
#: A table, a column, a function, or the right to one.
_ABSENT = ("42P01", "42703", "42883", "42501")
_BY_STATUS: dict[int, type[CairnError]] = {
    400: Malformed,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
}


def install(app: FastAPI) -> None:
    # Starlette's signature says Exception; each handler gets just what it is registered for.
    app.add_exception_handler(CairnError, _cairn)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(WebSocketRequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    for away in (DBAPIError, PoolTimeout, ConnectionError, asyncio.TimeoutError):
        app.add_exception_handler(away, _database)


def render(request: Request, error: CairnError, headers: Mapping[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.details["retry_after_seconds"])
    elif isinstance(error, HostUnreachable | TooManyStreams | TooManyImports):
        headers["Retry-After"] = "5"
    elif isinstance(error, Restored):
        headers["Retry-After"] = "60"
    elif error.status == Unavailable.status:
        headers["Retry-After"] = "1"
    elif isinstance(error, QuotaExceeded):
        headers["Retry-After"] = "10"
    body = {"code": error.code, "message": error.message, "details": error.details}
    return answer(
        request, None, error.status, error=body, headers=headers, workflow_id=error.details.get("workflow_id")
    )


async def _cairn(request: Request, error: CairnError) -> Response:
    denials.note(request, error)
    return render(request, error)


async def _after_authentication(
    request: Request, error: CairnError, headers: Mapping[str, str] | None = None
) -> Response:
    """A stranger learns nothing of routes and schemas: first the key, then what is wrong."""
    if request.url.path.startswith("/v1") and not getattr(request.state, "authenticated", False):
        try:
            caller = await authenticate(request)
            await caller.connection.close()
        except CairnError as refused:
            # What there is in no project is not in one that is not theirs either.
            if not (isinstance(error, MethodNotAllowed) and isinstance(refused, NotFound)):
                return await _cairn(request, refused)
        except (DBAPIError, PoolTimeout) as away:
            return await _database(request, away)
    return render(request, error, headers)


async def _invalid(request: Request, error: RequestValidationError | WebSocketRequestValidationError) -> Response:
    found = error.errors()
    methods = allowed(request.app.state.routes, request.url.path, exactly=True)
    method = request.scope.get("method", "GET")
    if methods and method not in methods:  # by another it is a path with an id, which this is none of
        said = f"{method} {request.url.path}: Method Not Allowed"
        return await _after_authentication(request, MethodNotAllowed(said), {"Allow": ", ".join(methods)})
    if any(problem["type"] == "json_invalid" for problem in found):
        return await _after_authentication(request, Malformed("the body is not valid JSON"))
    fields = [{"field": problems.field_of(problem["loc"]), "message": problems.said(problem)} for problem in found]
    summary = "; ".join(f"{field['field']}: {field['message']}" for field in fields[:5])
    return await _after_authentication(request, ValidationFailed(summary, fields=fields))


async def _http(request: Request, error: HTTPException) -> Response:
    kind = _BY_STATUS.get(error.status_code, Malformed)
    said = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    if kind is MethodNotAllowed and (methods := allowed(request.app.state.routes, request.url.path)):
        headers["Allow"] = ", ".join(methods)  # the router knows those of one function only
    return await _after_authentication(request, kind(said), headers)


async def _database(request: Request, error: Exception) -> Response:
    if isinstance(error, IntegrityError) and _DELETING in str(error.orig):
        return render(request, InvalidState("the project is being deleted: nothing new is made in it"))
    if isinstance(error, IntegrityError) and getattr(error.orig, "sqlstate", None) == _REFERS_TO_NOTHING:
        # It was there when it was looked for: users, service accounts, projects are deleted meanwhile.
        log.warning("database.gone_meanwhile", error=str(error.orig).partition("\n")[0])
        return render(request, InvalidState("something that this is about was deleted at this moment: look again"))
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _NOT_LOCKED:
        log.warning("database.not_locked", sqlstate=getattr(error.orig, "sqlstate", None))
        return render(request, Unavailable("a step holds the resource for unusually long; nothing was accepted"))
    if isinstance(error, DBAPIError) and not _away(error):
        return await _not_set_up(request, error) or await bug(request, error)
    if isinstance(error, PoolTimeout):
        log.warning("database.pool_full", error=str(error).partition("\n")[0])
        return render(request, Unavailable("this API has more to do than it can; nothing was accepted, try again"))
    log.warning("database.away", error=str(error).partition("\n")[0])
    return render(request, Unavailable("the database is away; nothing was accepted, try again"))


async def _not_set_up(request: Request, error: DBAPIError) -> Response | None:
    """Where a table or a column is missing because the schema is: that is no bug, and will pass."""
    if getattr(error.orig, "sqlstate", None) not in _ABSENT:
        return None
    try:
        missing = await lacking(request.app.state.engine)
    except SQLAlchemyError:
        return None
    if missing is None:
        return None
    log.warning("database.not_set_up", lacks=missing)
    return render(request, Unavailable(NOT_SET_UP))


def _away(error: DBAPIError) -> bool:
    """Connection errors and shutdowns (class 08, 57), as against errors in what we asked."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state[:2] in ("08", "57", "53")


async def bug(request: Request, error: Exception) -> Response:
    if isinstance(error, DBAPIError):
        # Its first line says what; the others repeat the row, with all that is secret in it.
        said = str(error.orig).partition("\n")[0]
        log.error("http.bug", error=said, sqlstate=getattr(error.orig, "sqlstate", None), statement=error.statement)
    else:
        log.error("http.bug", exc_info=error)
    return answer(
        request,
        None,
        500,
        error={"code": "internal", "message": "an error of ours; it was logged with this request id", "details": {}},
    )
