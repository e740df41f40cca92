"""``/v1/projects/{id}/members``: the users who have a role in the project."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, delete, func, select

from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.paging import Paging, page_of
from api.resources import one
from api.rights import OWNER, RoleName, bind, check_an_owner_is_left, check_gives, check_proved, hold
from model.users import Binding, User

router = APIRouter(prefix="/v1/projects/{project_id}/members", tags=["members"], responses=RESPONSES)


class MemberView(BaseModel):
    #: The user's.
    id: str
    email: str
    name: str
    roles: list[str]
    #: Since then.
    created_at: dt.datetime


class MemberPut(BaseModel):
    """``PUT /v1/projects/{id}/members/{user_id}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"roles": ["developer"]}]})

    roles: Annotated[list[RoleName], Field(min_length=1, max_length=20)]


@router.get("", response_model=Envelope[list[MemberView]])
async def index(
    request: Request, project_id: UUID, caller: Annotated[Caller, may("members:read")], page: Paging
) -> Response:
    """The users of the project, with their roles there."""
    return await page_of(request, caller, _query(caller), User.__table__.c.id, page, lambda row: dict(row._mapping))


@router.get("/{user_id}", response_model=Envelope[MemberView])
async def show(
    request: Request, project_id: UUID, user_id: UUID, caller: Annotated[Caller, may("members:read")]
) -> Response:
    """One of them."""
    return answer(request, await _member(caller, user_id))


@router.put("/{user_id}", response_model=Envelope[MemberView])
async def put(
    request: Request,
    project_id: UUID,
    user_id: UUID,
    body: MemberPut,
    caller: Annotated[Caller, may("members:write")],
) -> Response:
    """Give a user just these roles in the project: who was no member is one. As with bindings, nobody gives or takes
    what goes beyond their own (403), and the last owner stays one (409 `last_owner`). Who is no member yet, and has
    not proved the address, is invited instead: 409 `address_unproved`."""
    await hold(caller)
    await one(caller, select(User.id).where(User.id == user_id), "user", user_id)
    await check_proved(caller, user_id)
    before, after = await _roles(caller, user_id), set(body.roles)
    for role_name in sorted(after ^ before):
        await check_gives(caller, role_name)
    if OWNER in before - after:
        await check_an_owner_is_left(caller, user_id)
    caller.changed("member", user_id, {"roles": sorted(before)}, {"roles": sorted(after)})
    for role_name in sorted(after - before):
        await bind(caller, role_name, user_id=user_id)
    await caller.execute(delete(Binding).where(_theirs(caller, user_id), Binding.role_name.in_(before - after)))
    return answer(request, await _member(caller, user_id))


@router.delete("/{user_id}", status_code=204)
async def remove(project_id: UUID, user_id: UUID, caller: Annotated[Caller, may("members:write")]) -> Response:
    """Remove a user from the project, from the next request on: all their roles, so that their keys open nothing of
    it."""
    await hold(caller)
    await _member(caller, user_id)
    before = await _roles(caller, user_id)
    for role_name in sorted(before):
        await check_gives(caller, role_name)
    if OWNER in before:
        await check_an_owner_is_left(caller, user_id)
    caller.changed("member", user_id, before={"roles": sorted(before)})
    await caller.execute(delete(Binding).where(_theirs(caller, user_id)))
    return Response(status_code=204)


def _theirs(caller: Caller, user_id: UUID) -> Any:
    return (Binding.project_id == caller.project_id) & (Binding.user_id == user_id)


async def _roles(caller: Caller, user_id: UUID) -> set[str]:
    """Those that the user has; of a project that is held nobody else changes them."""
    return set((await caller.execute(select(Binding.role_name).where(_theirs(caller, user_id)))).scalars())


def _query(caller: Caller) -> Select[Any]:
    about: list[Any] = [
        *(User.id, User.email, User.name),
        func.array_agg(Binding.role_name).label("roles"),
        func.min(Binding.created_at).label("created_at"),
    ]
    joined = select(*about).join(Binding, Binding.user_id == User.id)
    return joined.where(Binding.project_id == caller.project_id).group_by(User.id)


async def _member(caller: Caller, user_id: UUID) -> dict[str, Any]:
    return dict((await one(caller, _query(caller).where(User.id == user_id), "member", user_id))._mapping)
