"""``/v1/users``: all users, for administrators of the platform."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, func, select, update

from api import lockout, sessions, user_ends
from api.accept import Acceptance, check_if_match, etag
from api.accounts import MOST_EMAIL, Password, PersonName, Registration, check_password, make_user
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.hashing import Hashing
from api.paging import Paging, page_of
from model.base import new_id
from model.errors import Forbidden, InvalidState, NotFound
from model.users import Session, User

router = APIRouter(prefix="/v1/users", tags=["users"], responses=RESPONSES)


class AccountView(BaseModel):
    id: str
    email: str
    name: str
    is_admin: bool
    #: Otherwise nothing of theirs opens anything: no session, no key.
    active: bool
    #: It is known that the address is theirs: they had a mail that was sent there, or an administrator vouches for it.
    verified: bool
    default_project_id: str | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class UserPatch(BaseModel):
    """``PATCH /v1/users/{id}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"active": False}]})

    name: PersonName | None = None
    is_admin: bool | None = None
    active: bool | None = None
    verified: Literal[True] | None = None
    #: Another one, which you hand over: it ends the user's sessions. One's own: `PATCH /v1/auth/me`.
    password: Password | None = None


@router.get("", response_model=Envelope[list[AccountView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("users:manage")],
    page: Paging,
    email: Annotated[str | None, Query(max_length=MOST_EMAIL, pattern=r"^[^\x00]*$")] = None,
) -> Response:
    """All users, newest first; or the one of an address."""
    query = select(User.__table__)
    if email is not None:
        query = query.where(User.email == email.lower())
    return await page_of(request, caller, query, User.__table__.c.id, page, _view)


@router.post("", status_code=201, responses=also(409), response_model=Envelope[AccountView])
async def create(request: Request, body: Registration, caller: Annotated[Caller, may("users:manage")]) -> Response:
    """Make a user, with a project of their own, also where nobody can register. You vouch for the address, and hand the
    password over, which they change."""
    user_id = new_id()
    await caller.release()  # nothing is held while passwords are hashed
    hashing: Hashing = request.app.state.hashing
    address = lockout.whence(request)
    await check_password(hashing, address, body.password, body.email, body.name)
    kept = await hashing.hashed(body.password, address=address)
    async with caller.reopened() as again:
        asked = body.model_dump(exclude={"password"})
        if answered := await Acceptance(request, again).answered_before(user_id, asked):
            return _answer(request, await _find(again, answered.resource_id), 201)
        await make_user(request, again.connection, body.email, body.name, kept, user_id=user_id, verified=True)
        here = await again.within(caller.project_id)
        here.changed("user", user_id, after=asked)
        row = await _find(here, user_id)
        await here.commit()
    return _answer(request, row, 201)


@router.get("/{user_id}", response_model=Envelope[AccountView])
async def show(request: Request, user_id: UUID, caller: Annotated[Caller, may("users:manage")]) -> Response:
    """One user."""
    return _answer(request, await _find(caller, user_id))


@router.patch("/{user_id}", response_model=Envelope[AccountView])
async def patch(
    request: Request, user_id: UUID, body: UserPatch, caller: Annotated[Caller, may("users:manage")]
) -> Response:
    """Rename, deactivate or activate a user, vouch for the address, make or unmake an administrator, set another
    password. Who is deactivated is refused from the next request on, and so are all their keys; what they run goes on.
    Another password ends their sessions, a lock-out, and what mails could set; keys stay."""
    if body.password is None:
        return _answer(request, await _patch(request, user_id, body, caller))
    row = await _find(caller, user_id)
    if user_id == caller.who.user_id:
        raise Forbidden("your own password is changed with the old one: PATCH /v1/auth/me")
    await caller.release()  # nothing is held while passwords are hashed
    hashing: Hashing = request.app.state.hashing
    address = lockout.whence(request)
    await check_password(hashing, address, body.password, row.email, body.name or row.name)
    kept = await hashing.hashed(body.password, address=address)
    async with caller.reopened() as again:
        row = await _patch(request, user_id, body, again, kept)
        await again.commit()
    return _answer(request, row)


async def _patch(
    request: Request, user_id: UUID, body: UserPatch, caller: Caller, password_hash: str | None = None
) -> Row[Any]:
    admins = await _lock_admins(caller)
    row = await _find(caller, user_id, lock=True)
    check_if_match(request, row.version)
    if body.active is False or body.is_admin is False:
        _check_not_last(user_id, admins)
    changed: dict[str, Any] = body.model_dump(include={"name", "is_admin"}, exclude_none=True)
    if body.active is not None and body.active != (row.deactivated_at is None):
        changed["deactivated_at"] = None if body.active else func.now()
    if body.verified and row.verified_at is None:
        changed["verified_at"] = func.now()
    asked = body.model_dump(exclude_none=True, exclude={"password"})
    told = {name: value for name, value in asked.items() if value != _view(row)[name]}
    before = {name: _view(row)[name] for name in told}
    if password_hash is not None:
        changed["password_hash"] = password_hash
        told |= {"password": "another"}
    caller.changed("user", user_id, before, told)
    if changed:
        changed |= {"version": User.version + 1, "updated_at": func.now()}
        await caller.execute(update(User).where(User.id == user_id).values(**changed))
    if password_hash is not None:
        await lockout.forget(caller.connection, user_id)
    if body.active is False or password_hash is not None:
        await sessions.end(caller.connection, Session.user_id == user_id)
    return await _find(caller, user_id)


@router.delete(
    "/{user_id}",
    status_code=202,
    response_model=Envelope[AccountView],
    responses={**also(409), 204: {"description": "Gone"}},
)
async def remove(
    request: Request,
    user_id: UUID,
    caller: Annotated[Caller, may("users:manage")],
    cascade: Annotated[bool, Query()] = False,
) -> Response:
    """Delete a user with their keys, sessions and memberships, and the personal project, where nothing is in it: 204.
    409 `in_use`: instances or images are in it, or another project has no other owner.

    `?cascade=true`: delete those projects too, with all that is in them, by a workflow of the caller's project: 202.
    The user is deactivated at once, and gone when it ends; where something cannot be deleted it fails and says in which
    project, and the same request tries again.
    """
    await user_ends.lock_owned(caller, user_id)
    admins = await _lock_admins(caller)
    row = await _find(caller, user_id, lock=True)
    _check_not_last(user_id, admins)
    caller.changed("user", user_id, before={name: getattr(row, name) for name in ("email", "name", "is_admin")})
    if not cascade:
        await user_ends.forget(caller, row)
        return Response(status_code=204)

    async def show(caller: Caller, user_id: UUID) -> dict[str, Any]:
        """Also of one who is gone by now."""
        found = (await caller.execute(select(User.__table__).where(User.id == user_id))).one_or_none()
        return _view(found) if found is not None else _view(row) | {"active": False}

    return await user_ends.begin(request, caller, row, show)


async def _lock_admins(caller: Caller) -> set[UUID]:
    """Of two who take the right from each other at once, one waits here."""
    active = select(User.id).where(User.is_admin, User.deactivated_at.is_(None)).order_by(User.id)
    # Who binds one of them, which refers to the row, does not wait.
    return set((await caller.execute(active.with_for_update(key_share=True))).scalars())


def _check_not_last(user_id: UUID, admins: set[UUID]) -> None:
    if admins == {user_id}:
        raise InvalidState("this is the last active administrator: make another one first", state="last_administrator")


async def _find(caller: Caller, user_id: UUID, *, lock: bool = False) -> Row[Any]:
    query = select(User.__table__).where(User.id == user_id)
    row = (await caller.execute(query.with_for_update(key_share=True) if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no user {user_id}")
    return row


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _view(row: Row[Any]) -> dict[str, Any]:
    derived = {"active": row.deactivated_at is None, "verified": row.verified_at is not None}
    return {name: getattr(row, name) for name in AccountView.model_fields if name not in derived} | derived
