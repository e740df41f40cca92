"""``/v1/users``: all users, for administrators of the platform."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, delete, func, select, text, update

from api import sessions
from api.accept import check_if_match, etag
from api.accounts import MOST_EMAIL, PersonName
from api.authentication import may
from api.caller import ENTER, Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.paging import Paging, page_of
from api.project_ends import FORGET
from model.errors import InUse, InvalidState, NotFound, ValidationFailed
from model.images import Image
from model.instances import Instance
from model.projects import Project
from model.users import Binding, Session, User

router = APIRouter(prefix="/v1/users", tags=["users"], responses=RESPONSES)
_AS_USER = text("SELECT set_config('cairn.user', :user, true)")


class AccountView(BaseModel):
    id: str
    email: str
    name: str
    is_admin: bool
    #: Otherwise nothing of theirs opens anything: no session, no key.
    active: bool
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


@router.get("/{user_id}", response_model=Envelope[AccountView])
async def show(request: Request, user_id: UUID, caller: Annotated[Caller, may("users:manage")]) -> Response:
    """One user."""
    return _answer(request, await _find(caller, user_id))


@router.patch("/{user_id}", response_model=Envelope[AccountView])
async def patch(
    request: Request, user_id: UUID, body: UserPatch, caller: Annotated[Caller, may("users:manage")]
) -> Response:
    """Rename, deactivate or activate a user, make or unmake an administrator. Who is deactivated is refused from the
    next request on, and so are all their keys; what they run goes on."""
    admins = await _lock_admins(caller)
    row = await _find(caller, user_id, lock=True)
    check_if_match(request, row.version)
    if body.active is False or body.is_admin is False:
        _check_not_last(user_id, admins)
    changed: dict[str, Any] = body.model_dump(include={"name", "is_admin"}, exclude_none=True)
    if body.active is not None and body.active != (row.deactivated_at is None):
        changed["deactivated_at"] = None if body.active else func.now()
    told = {name: value for name, value in body.model_dump(exclude_none=True).items() if value != _view(row)[name]}
    caller.changed("user", user_id, {name: _view(row)[name] for name in told}, told)
    if changed:
        changed |= {"version": User.version + 1, "updated_at": func.now()}
        await caller.execute(update(User).where(User.id == user_id).values(**changed))
    if body.active is False:
        await sessions.end(caller.connection, Session.user_id == user_id)
    return _answer(request, await _find(caller, user_id))


@router.delete("/{user_id}", status_code=204, responses=also(409))
async def remove(
    user_id: UUID,
    caller: Annotated[Caller, may("users:manage")],
    cascade: Annotated[bool, Query(description="With all that is in the personal project: not yet")] = False,
) -> Response:
    """Delete a user with their keys, sessions and memberships, and the personal project, where nothing is in it.
    409 `in_use`: instances or images are in it, or another project has no other owner."""
    if cascade:
        said = "not yet: delete what is in the personal project first"
        raise ValidationFailed(f"cascade: {said}", fields=[{"field": "cascade", "message": said}])
    admins = await _lock_admins(caller)
    row = await _find(caller, user_id, lock=True)
    _check_not_last(user_id, admins)
    caller.changed("user", user_id, before={name: getattr(row, name) for name in ("email", "name", "is_admin")})
    personal = (
        await caller.execute(select(Project.id, Project.name).where(Project.personal_of == user_id).with_for_update())
    ).all()
    try:
        for project in personal:
            await _check_empty(caller, project)
        await _check_no_last_owner(caller, user_id, {project.id for project in personal})
        for project in personal:
            await _forget(caller, project)
    finally:
        await caller.execute(ENTER, {"project": str(caller.project_id)})
        await caller.execute(_AS_USER, {"user": str(caller.who.user_id or "")})
    await caller.execute(delete(User).where(User.id == row.id))
    caller.changed("user", user_id, before={"email": row.email, "is_admin": row.is_admin})
    return Response(status_code=204)


async def _lock_admins(caller: Caller) -> set[UUID]:
    """Of two who take the right from each other at once, one waits here."""
    active = select(User.id).where(User.is_admin, User.deactivated_at.is_(None)).order_by(User.id)
    return set((await caller.execute(active.with_for_update())).scalars())


def _check_not_last(user_id: UUID, admins: set[UUID]) -> None:
    if admins == {user_id}:
        raise InvalidState("this is the last active administrator: make another one first", state="last_administrator")


async def _check_empty(caller: Caller, project: Row[Any]) -> None:
    """Raises InUse."""
    await caller.execute(ENTER, {"project": str(project.id)})
    inside = {}
    for noun, kind in (("instances", Instance), ("images", Image)):
        living = select(func.count()).select_from(kind).where(kind.project_id == project.id, kind.status != "deleted")
        inside[noun] = (await caller.execute(living)).scalar_one()
    if any(inside.values()):
        said = " and ".join(f"{count} {noun}" for noun, count in inside.items() if count)
        raise InUse(f"{said} are in the personal project: delete them first", project_id=str(project.id), **inside)


async def _forget(caller: Caller, project: Row[Any]) -> None:
    """With its secrets, keys and all else that is left in it."""
    await caller.execute(ENTER, {"project": str(project.id)})
    if not (await caller.execute(FORGET, {"project": project.id})).scalar_one():
        raise RuntimeError(f"project {project.id} is empty, and is not")


async def _check_no_last_owner(caller: Caller, user_id: UUID, but: set[UUID]) -> None:
    """Raises InUse."""
    await caller.execute(_AS_USER, {"user": str(user_id)})
    owner = Binding.role_name == "owner"
    owned = (
        select(Project.id, Project.unix_name)
        .join(Binding, Binding.project_id == Project.id)
        .where(Binding.user_id == user_id, owner, Project.deleted_at.is_(None))
        .order_by(Project.id)
    )
    for project in (await caller.execute(owned)).all():
        if project.id in but:
            continue
        await caller.execute(ENTER, {"project": str(project.id)})
        # Who leaves the project at this moment waits here, or was waited for.
        await caller.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
        others = (
            select(Binding.id)
            .join(User, User.id == Binding.user_id)
            .where(Binding.project_id == project.id, owner, User.id != user_id, User.deactivated_at.is_(None))
        )
        if (await caller.execute(others.limit(1))).one_or_none() is None:
            raise InUse(
                f"project '{project.unix_name}' has no other owner: bind one, or delete it first",
                project_id=str(project.id),
            )


async def _find(caller: Caller, user_id: UUID, *, lock: bool = False) -> Row[Any]:
    query = select(User.__table__).where(User.id == user_id)
    row = (await caller.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no user {user_id}")
    return row


def _answer(request: Request, row: Row[Any]) -> Response:
    return answer(request, _view(row), headers={"ETag": etag(row.version)})


def _view(row: Row[Any]) -> dict[str, Any]:
    found = {name: getattr(row, name) for name in AccountView.model_fields if name != "active"}
    return found | {"active": row.deactivated_at is None}
