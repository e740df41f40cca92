"""``/v1/auth``: what needs no credential, since it is how one is got."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api import audit_rows, lockout, sessions
from api.accounts import MOST_EMAIL, Email, Password, Registration, Token, UserView, check_password, make_user
from api.agent_credentials import JoiningRoute
from api.authentication import check_body
from api.caller import ENTER
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.hashing import Hashing
from api.instance_schemas import Text
from api.letters import RESET
from model.base import new_id
from model.cron import CronJob
from model.errors import MailsOff, RegistrationClosed, Unauthenticated
from model.passwords import is_outdated
from model.projects import ApiKey, Project
from model.secrets import digest
from model.settings import Settings
from model.users import Binding, Invitation, Mail, PasswordReset, Session, User

router = APIRouter(prefix="/v1/auth", tags=["auth"], responses=RESPONSES, route_class=JoiningRoute)
log = structlog.get_logger()
T = TypeVar("T")
#: A refusal is answered at a multiple of this, so that what differs between users and strangers does not show.
PACE_SECONDS = 0.25
_AS_USER = text("SELECT set_config('cairn.user', :user, true)")
WRONG = "the address or the password is not right"
EXAMPLE = {"email": "jo@example.org", "password": "correct horse battery staple"}


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class Login(BaseModel):
    """``POST /v1/auth/login``."""

    model_config = _example(EXAMPLE)

    email: Annotated[Text, Field(max_length=MOST_EMAIL)]
    password: Password


class Refresh(BaseModel):
    """``POST /v1/auth/refresh``."""

    model_config = _example({"refresh_token": "as-the-login-answered-it"})

    refresh_token: Token


class Forgot(BaseModel):
    """``POST /v1/auth/forgot-password``."""

    model_config = _example({"email": EXAMPLE["email"]})

    email: Email


class Reset(BaseModel):
    """``POST /v1/auth/reset-password``."""

    model_config = _example({"token": "as-the-mail-has-it", "password": EXAMPLE["password"]})

    token: Token
    password: Password


class Granted(BaseModel):
    access_token: str
    #: Good for one use, of which the answer has the next.
    refresh_token: str
    #: Seconds that the access token is good for.
    expires_in: int
    user: UserView


async def _open(request: Request) -> AsyncEngine:
    await check_body(request)
    engine: AsyncEngine = request.app.state.engine
    return engine


Open = Annotated[AsyncEngine, Depends(_open)]


@router.post(
    "/register",
    status_code=201,
    operation_id="register_user",
    responses=also(403, 409),
    response_model=Envelope[UserView],
)
async def register(request: Request, body: Registration, engine: Open) -> Response:
    """Become a user, with a project of one's own. Where registration is closed: 403 `registration_closed`."""
    settings: Settings = request.app.state.settings
    if settings.registration == "closed":
        raise RegistrationClosed("nobody can register here: ask an administrator of the platform")
    hashing: Hashing = request.app.state.hashing
    address = lockout.whence(request)
    await check_password(hashing, address, body.password, body.email, body.name)
    kept = await hashing.hashed(body.password, address=address)
    async with engine.begin() as connection:
        user = await make_user(request, connection, body.email, body.name, kept)
        await _audit(request, connection, user["id"], body.email)
    log.info("user.registered", user_id=str(user["id"]))
    return answer(request, user, 201)


@router.post("/login", operation_id="log_in", response_model=Envelope[Granted])
async def login(request: Request, body: Login, engine: Open) -> Response:
    """Get an access token, to be sent as `Authorization: Bearer`, and a refresh token for the next. A wrong password,
    an unknown address and an account that is locked for a while after many wrong passwords answer the same."""
    return answer(request, await _paced(_login(request, engine, body.email.lower(), body.password)))


async def _login(request: Request, engine: AsyncEngine, email: str, password: str) -> dict[str, Any]:
    await request.app.state.tokens()  # nobody can log in without keys: said before anything is looked at
    hashing: Hashing = request.app.state.hashing
    here = {"address": lockout.whence(request)}
    may_try = ~lockout.IS_LOCKED & User.deactivated_at.is_(None)
    known = select(User.id, User.password_hash).where(User.email == email, may_try)
    async with engine.connect() as connection:
        user = (await connection.execute(known, here)).one_or_none()
    kept = user.password_hash if user else None
    right = await hashing.matches(password, kept, **here)
    if user is None or kept is None or not right:
        await lockout.count_failure(engine, user.id if user else new_id(), **here)
        raise Unauthenticated(WRONG)
    fresh = await hashing.hashed(password, **here) if is_outdated(kept) else kept
    async with engine.begin() as connection:
        logged_in = (
            update(User)
            # Unless it was locked, deactivated or changed in the meantime.
            .where(User.id == user.id, may_try, User.password_hash == kept)
            .values(failed_logins=0, locked_until=None, password_hash=fresh)
            .returning(*User.__table__.c)
        )
        row = (await connection.execute(logged_in, here)).one_or_none()
        if row is None:
            raise Unauthenticated(WRONG)
        await lockout.note_login(connection, row.id, **here)
        await _audit(request, connection, row.id, email)
        return await sessions.begin(request, connection, row)


async def _paced(work: Awaitable[T]) -> T:
    """What it comes to; a refusal at the next multiple of ``PACE_SECONDS``."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        return await work
    except Unauthenticated:
        took = loop.time() - began
        await asyncio.sleep(math.ceil(took / PACE_SECONDS) * PACE_SECONDS - took)
        raise


@router.post("/refresh", operation_id="refresh_session", response_model=Envelope[Granted])
async def refresh(request: Request, body: Refresh, _engine: Open) -> Response:
    """Get the next access token and the next refresh token; this one is used up. One that comes a second time was
    stolen, before or after: the session ends, and whoever holds the other logs in again."""
    return answer(request, await sessions.go_on(request, body.refresh_token))


@router.post("/forgot-password", status_code=204, operation_id="forgot_password", responses=also(403))
async def forgot(request: Request, body: Forgot, engine: Open) -> Response:
    """Ask for a mail with a token that sets another password, once, within half an hour. The answer is the same
    whether there is such a user or not. Where the platform sends no mails: 403 `mails_off`."""
    settings: Settings = request.app.state.settings
    if not settings.has_mails:
        raise MailsOff("no mails are sent here: an administrator of the platform has to set CAIRN_SMTP_URL")
    asked = upsert(Mail).values(id=new_id(), kind=RESET, recipient=body.email)
    async with engine.begin() as connection:
        # Without an arbiter: the index is a partial one.
        await connection.execute(asked.on_conflict_do_nothing())
    request.app.state.mails.ring()
    return Response(status_code=204)


@router.post("/reset-password", status_code=204, operation_id="reset_password")
async def reset(request: Request, body: Reset, engine: Open) -> Response:
    """Set another password with the token of a mail. It ends all sessions, and a lock; API keys stay, unless it is the
    first that proves the address: then the personal project is closed to all others too."""
    hashing: Hashing = request.app.state.hashing
    settings: Settings = request.app.state.settings
    mine = (PasswordReset.digest == digest(body.token)) & (PasswordReset.expires_at > func.now())
    known = (
        select(User.id, User.email, User.name, User.verified_at)
        .join(PasswordReset, PasswordReset.user_id == User.id)
        .where(mine)
    )
    async with engine.connect() as connection:
        user = (await connection.execute(known)).one_or_none()
    if user is None:
        raise _void()
    address = lockout.whence(request)
    await check_password(hashing, address, body.password, user.email, user.name)
    kept = await hashing.hashed(body.password, address=address)
    async with engine.begin() as connection:
        used = await connection.execute(delete(PasswordReset).where(mine).returning(PasswordReset.user_id))
        if used.one_or_none() is None:
            raise _void()
        changed: dict[str, Any] = {"password_hash": kept, "updated_at": func.now()}
        if user.verified_at is None and not settings.mails_are_logged:
            # Whoever registered this address before its owner came is not to keep a way in.
            await connection.execute(_AS_USER, {"user": str(user.id)})
            await _revoke(connection, ApiKey.user_id == user.id)
            await _close(connection, user.id)
            changed["verified_at"] = func.now()
        await connection.execute(update(User).where(User.id == user.id).values(**changed))
        await lockout.forget(connection, user.id)
        await lockout.note_login(connection, user.id, address)
        await sessions.end(connection, Session.user_id == user.id)
        await _audit(request, connection, user.id, user.email)
    log.info("user.password_reset", user_id=str(user.id))
    return Response(status_code=204)


async def _close(connection: AsyncConnection, user_id: UUID) -> None:
    """The user's personal project to all others: members, invitations, service accounts' keys; and cron jobs wait until
    they are looked at."""
    mine = select(Project.id).where(Project.personal_of == user_id, Project.deleted_at.is_(None))
    project_id = (await connection.execute(mine)).scalar_one_or_none()
    if project_id is None:
        return
    await connection.execute(ENTER, {"project": str(project_id)})
    await _revoke(connection, (ApiKey.project_id == project_id) & ApiKey.service_account_id.is_not(None))
    others = (Binding.project_id == project_id) & (Binding.user_id != user_id)
    await connection.execute(delete(Binding).where(others))
    await connection.execute(delete(Invitation).where(Invitation.project_id == project_id))
    paused = {"paused": True, "version": CronJob.version + 1, "updated_at": func.now()}
    live = (CronJob.project_id == project_id) & CronJob.deleted_at.is_(None) & ~CronJob.paused
    await connection.execute(update(CronJob).where(live).values(**paused))


async def _revoke(connection: AsyncConnection, whose: ColumnElement[bool]) -> None:
    over = func.least(func.coalesce(ApiKey.revoked_at, func.now()), func.now())
    await connection.execute(update(ApiKey).where(whose).values(revoked_at=over))


async def _audit(request: Request, connection: AsyncConnection, user_id: UUID, email: str) -> None:
    await audit_rows.write(connection, request, "account:write", f"user:{email}", ("user", user_id), user_id=user_id)


def _void() -> Unauthenticated:
    return Unauthenticated("the token is not valid (any more): ask for another with POST /v1/auth/forgot-password")
