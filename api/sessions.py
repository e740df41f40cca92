"""Sessions of users who logged in: how they begin, go on and end."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Any
from uuid import UUID

import structlog
from fastapi import Request
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.accounts import view
from model.base import new_id
from model.errors import Unauthenticated
from model.secrets import digest
from model.settings import Settings
from model.tokens import ACCESS_SECONDS, Tokens
from model.users import RefreshToken, Session, User

log = structlog.get_logger()
NOT_VALID = "the refresh token is not valid (any more): log in again"


async def begin(request: Request, connection: AsyncConnection, user: Any) -> dict[str, Any]:
    """A session of this user, and what it is used with."""
    settings: Settings = request.app.state.settings
    session = new_id()
    ends = func.now() + dt.timedelta(days=settings.session_days)
    await connection.execute(insert(Session).values(id=session, user_id=user.id, expires_at=ends))
    return await _granted(request, connection, session, user)


async def go_on(request: Request, shown: str) -> dict[str, Any]:
    """The next tokens of the session. Raises Unauthenticated; of a token that was used before, the session ends."""
    engine: AsyncEngine = request.app.state.engine
    await request.app.state.tokens()  # without keys to sign with, nothing is used up
    mine = RefreshToken.digest == digest(shown)
    async with engine.begin() as connection:
        # Of two that come at once, the second waits here for the first, and is one too many.
        used = update(RefreshToken).where(mine, RefreshToken.used_at.is_(None)).values(used_at=func.now())
        session = (await connection.execute(used.returning(RefreshToken.session_id))).scalar_one_or_none()
        if session is not None:
            goes_on = (
                update(Session)
                .where(Session.id == session, Session.ended_at.is_(None), Session.expires_at > func.now())
                .where(Session.user_id == User.id, User.deactivated_at.is_(None))
                .values(last_used_at=func.now())
                .returning(User.id, User.email, User.name, User.default_project_id)
            )
            user = (await connection.execute(goes_on)).one_or_none()
            if user is not None:
                return await _granted(request, connection, session, user)
        else:
            session = (await connection.execute(select(RefreshToken.session_id).where(mine))).scalar_one_or_none()
            if session is not None:
                await end(connection, Session.id == session)
                log.warning("session.token_reused", session_id=str(session))
    raise Unauthenticated(NOT_VALID)


def of_token(shown: str) -> Any:
    """Which session a refresh token is of, as a condition."""
    return Session.id.in_(select(RefreshToken.session_id).where(RefreshToken.digest == digest(shown)))


async def end(connection: AsyncConnection, which: Any) -> None:
    """Their access tokens are void from the next request on."""
    await connection.execute(update(Session).where(which, Session.ended_at.is_(None)).values(ended_at=func.now()))


async def _granted(request: Request, connection: AsyncConnection, session: UUID, user: Any) -> dict[str, Any]:
    tokens: Tokens = await request.app.state.tokens()
    refresh = secrets.token_urlsafe(32)
    await connection.execute(insert(RefreshToken).values(digest=digest(refresh), session_id=session))
    return {
        "access_token": tokens.sign(user.id, session),
        "refresh_token": refresh,
        "expires_in": ACCESS_SECONDS,
        "user": view(user),
    }
