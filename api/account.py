"""``/v1/auth/me`` and ``/v1/auth/logout``: the caller's own account."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select, update

from api import limits, lockout, sessions
from api.accounts import Password, PersonName, Token, check_password
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.hashing import Hashing
from model.errors import Forbidden, InvalidState, ValidationFailed
from model.projects import Project
from model.users import Binding, Session, User

router = APIRouter(prefix="/v1/auth", tags=["auth"], responses=RESPONSES)


class MeUser(BaseModel):
    id: str
    email: str
    name: str
    is_admin: bool
    default_project_id: str | None


class MeServiceAccount(BaseModel):
    id: str
    name: str


class MyProject(BaseModel):
    id: str
    name: str
    unix_name: str
    roles: list[str]


class Me(BaseModel):
    #: Of a user; the other is null.
    user: MeUser | None
    service_account: MeServiceAccount | None
    #: Where this request went: the key's, or the one that `X-Project-ID` named, or the user's default. Null: none.
    project: MyProject | None
    #: In that project: what the roles allow and the key's scopes leave.
    permissions: list[str]
    #: Of the key; null: no limit, or no key.
    scopes: list[str] | None
    key_id: str | None
    #: All that can be chosen with `X-Project-ID`.
    projects: list[MyProject]


class MePatch(BaseModel):
    """``PATCH /v1/auth/me``: what is not named stays. Another password needs the old one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "Jo"}]})

    name: PersonName | None = None
    password: Password | None = None
    old_password: Password | None = None


@router.get("/me", operation_id="get_me", response_model=Envelope[Me])
async def me(request: Request, caller: Annotated[Caller, may("account:read")]) -> Response:
    """Who this is, in which project, and what it may do there."""
    return answer(request, await _me(caller))


@router.patch("/me", operation_id="update_me", response_model=Envelope[Me])
async def patch(request: Request, body: MePatch, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Change one's name, or one's password: that ends all other sessions. API keys stay."""
    user_id = caller.who.user_id
    if user_id is None:
        raise Forbidden("a service account has neither password nor name of its own to change")
    mine = User.id == user_id
    told = {"name": body.name, "password": "another" if body.password is not None else None}
    caller.changed("user", user_id, after={name: value for name, value in told.items() if value is not None})
    changed: dict[str, Any] = {} if body.name is None else {"name": body.name}
    if body.password is not None:
        query = select(User.__table__, lockout.IS_LOCKED.label("is_locked")).where(mine)
        row = (await caller.execute(query, {"address": lockout.whence(request)})).one()
        await caller.release()  # nothing is held while passwords are hashed
        changed["password_hash"] = await _another_password(request, body, body.password, row)
        # Of two that change it at once, one is told that its old one is none any more.
        mine &= User.password_hash == row.password_hash
    else:
        await caller.release()
    async with caller.again() as connection:
        if changed:
            changed |= {"updated_at": func.now(), "version": User.version + 1}
            if (await connection.execute(update(User).where(mine).values(**changed))).rowcount == 0:
                raise _wrong()
        if body.password is not None:
            await lockout.forget(connection, user_id)
            others = Session.user_id == user_id
            if (this := caller.who.credential.session) is not None:
                others &= Session.id != this
            await sessions.end(connection, others)
        here = caller.on(connection)
        await here.audit()
        return answer(request, await _me(here))


class LogOut(BaseModel):
    """``POST /v1/auth/logout``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    refresh_token: Token | None = None


@router.post("/logout", status_code=204, operation_id="log_out", responses=also(409))
async def logout(caller: Annotated[Caller, may("account:write")], body: LogOut | None = None) -> Response:
    """End the session of this access token: it and the refresh token are void from the next request on. A
    `refresh_token` may be given, as other platforms want it: of another session of the caller's, that ends too."""
    session = caller.who.credential.session
    if session is None:
        raise InvalidState("an API key has no session to end: revoke it (POST /v1/auth/keys/{id}/revoke)", state="key")
    which: Any = Session.id == session
    if body is not None and body.refresh_token is not None:
        which |= sessions.of_token(body.refresh_token)
    await sessions.end(caller.connection, which & (Session.user_id == caller.who.user_id))
    return Response(status_code=204)


async def _another_password(request: Request, body: MePatch, wanted: str, row: Any) -> str:
    """What is kept of it. Raises Forbidden where the old one is wrong, RateLimited: whoever has stolen a session or a
    key tries no more passwords here than at a login, and makes nobody wait for their turn at one."""
    await limits.count_login(request)
    hashing: Hashing = request.app.state.hashing
    if body.old_password is None:
        said = "the old password is needed to set another"
        raise ValidationFailed(f"old_password: {said}", fields=[{"field": "old_password", "message": said}])
    address = lockout.whence(request)
    await check_password(hashing, address, wanted, row.email, body.name or row.name)
    if row.is_locked:
        raise _wrong()
    if not await hashing.matches(body.old_password, row.password_hash, address=address):
        await lockout.count_failure(request.app.state.engine, row.id, address)
        raise _wrong()
    return await hashing.hashed(wanted, address=address)


def _wrong() -> Forbidden:
    return Forbidden("the old password is not right")


async def _me(caller: Caller) -> dict[str, Any]:
    who = caller.who
    # Who has no role is in no project here, not in its own either, and sees none of the rows that are its own.
    shown = (await caller.execute(*who.credential.identify())).one()
    found: dict[str, Any] = {"user": None, "service_account": None, "scopes": shown.scopes}
    if who.user_id is not None:
        row = (await caller.execute(select(User.__table__).where(User.id == who.user_id))).one()
        found["user"] = {name: getattr(row, name) for name in MeUser.model_fields}
    else:
        found["service_account"] = {"id": shown.service_account_id, "name": shown.service_account_name}
    projects = await _projects(caller)
    here = [one for one in projects if one["id"] == caller.project_id]
    return found | {
        "project": here[0] if here else None,
        "permissions": sorted(who.permissions),
        "key_id": who.key_id,
        "projects": projects,
    }


async def _projects(caller: Caller) -> list[dict[str, Any]]:
    """Where the caller has a role; of a key only its own."""
    who = caller.who
    roles = func.array_agg(Binding.role_name).label("roles")
    mine = Binding.user_id == who.user_id if who.user_id else Binding.service_account_id == who.service_account_id
    query = (
        select(Project.id, Project.name, Project.unix_name, roles)
        .join(Binding, Binding.project_id == Project.id)
        .where(mine, Project.deleted_at.is_(None))
        .group_by(Project.id)
        .order_by(Project.id)
    )
    if who.key_id is not None:
        query = query.where(Project.id == caller.project_id)
    rows = await caller.execute(query)
    return [{**row._mapping, "roles": sorted(row.roles)} for row in rows]
