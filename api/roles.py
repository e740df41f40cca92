"""``/v1/rbac/roles``: the built-in roles, which are the same everywhere, and a project's own."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update

from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Text
from api.paging import Paging, page_of
from api.resources import unique_name
from api.rights import RoleName, check_has
from model.base import new_id
from model.errors import Forbidden, InUse, NameTaken, NotFound
from model.permissions import PROJECT, ROLES
from model.users import Binding, Invitation, Role

router = APIRouter(prefix="/v1/rbac/roles", tags=["roles"], responses=RESPONSES)


def _known(permissions: list[str]) -> list[str]:
    unknown = sorted(set(permissions) - PROJECT.keys())
    if unknown:
        raise ValueError(f"there is no permission {unknown[0][:64]!r} in projects")
    return sorted(set(permissions))


Permissions = Annotated[list[str], Field(max_length=len(PROJECT)), AfterValidator(_known)]
Description = Annotated[Text, Field(max_length=1000)]
Named = Annotated[str, Path(max_length=63, pattern=r"^[^\x00]*$")]


class RoleView(BaseModel):
    name: str
    description: str
    permissions: list[str]
    built_in: bool
    #: Of a project's own.
    version: int | None
    created_at: dt.datetime | None


class RoleCreate(BaseModel):
    """``POST /v1/rbac/roles``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "releaser", "permissions": ["instances:read", "instances:create"]}]},
    )

    name: RoleName
    description: Description = ""
    permissions: Permissions


class RolePatch(BaseModel):
    """``PATCH /v1/rbac/roles/{name}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"permissions": ["instances:read"]}]})

    description: Description | None = None
    permissions: Permissions | None = None


@router.get("", response_model=Envelope[list[RoleView]])
async def index(request: Request, caller: Annotated[Caller, may("roles:read")], page: Paging) -> Response:
    """The built-in roles, and then the project's own, newest first."""
    query = select(Role.__table__).where(Role.project_id == caller.project_id)
    built_in = [_built_in(name) for name in ROLES]
    return await page_of(request, caller, query, Role.__table__.c.id, page, _view, first=built_in)


@router.post("", status_code=201, response_model=Envelope[RoleView])
async def create(request: Request, body: RoleCreate, caller: Annotated[Caller, may("roles:write")]) -> Response:
    """Make a role of the project's own. It may do no more than who makes it: 403."""
    role_id = new_id()
    if await Acceptance(request, caller).answered_before(role_id, body.model_dump(mode="json")):
        return _answer(request, await _find(caller, body.name), 201)
    check_has(caller, body.permissions, "the role")
    if body.name in ROLES:
        raise NameTaken(f"'{body.name}' is a built-in role", name=body.name)
    with unique_name("a role", body.name):
        await caller.execute(insert(Role).values(id=role_id, project_id=caller.project_id, **body.model_dump()))
    caller.changed("role", body.name, after=body.model_dump())
    return _answer(request, await _find(caller, body.name), 201)


@router.get("/{role_name}", response_model=Envelope[RoleView])
async def show(request: Request, role_name: Named, caller: Annotated[Caller, may("roles:read")]) -> Response:
    """One role."""
    if role_name in ROLES:
        return answer(request, _built_in(role_name))
    return _answer(request, await _find(caller, role_name))


@router.patch("/{role_name}", response_model=Envelope[RoleView])
async def patch(
    request: Request, role_name: Named, body: RolePatch, caller: Annotated[Caller, may("roles:write")]
) -> Response:
    """Change one of the project's own roles; whoever has it may do just that from the next request on. Nobody adds,
    or takes away, what they may not do themselves, and nobody changes the built-in ones: 403."""
    _check_own(role_name)
    row = await _lock(caller, role_name)
    check_if_match(request, row.version)
    changed = body.model_dump(exclude_none=True)
    if body.permissions is not None:
        check_has(caller, set(body.permissions) ^ set(row.permissions), f"what the role '{role_name}' gains or loses")
    caller.changed("role", role_name, {name: getattr(row, name) for name in changed}, changed)
    if changed:
        values = {**changed, "version": Role.version + 1, "updated_at": func.now()}
        await caller.execute(update(Role).where(_mine(caller, role_name)).values(**values))
        caller.changed("role", role_name, {name: getattr(row, name) for name in changed}, changed)
    return _answer(request, await _find(caller, role_name))


@router.delete("/{role_name}", status_code=204)
async def remove(request: Request, role_name: Named, caller: Annotated[Caller, may("roles:write")]) -> Response:
    """Delete a role that nobody has, and nobody was invited to: else 409 `in_use`."""
    _check_own(role_name)
    row = await _lock(caller, role_name)
    check_if_match(request, row.version)
    for table, noun in ((Binding, "bindings"), (Invitation, "invitations")):
        count = select(func.count()).where(table.project_id == caller.project_id, table.role_name == role_name)
        if table is Invitation:
            count = count.where(Invitation.accepted_at.is_(None), Invitation.expires_at > func.now())
        if number := (await caller.execute(count)).scalar_one():
            said = noun if number > 1 else noun.removesuffix("s")
            raise InUse(f"the role '{role_name}' is in {number} {said}: remove these first", **{noun: number})
    caller.changed("role", role_name, before={"permissions": row.permissions})
    await caller.execute(delete(Role).where(_mine(caller, role_name)))
    return Response(status_code=204)


def _check_own(role_name: str) -> None:
    if role_name in ROLES:
        raise Forbidden(f"'{role_name}' is built in: it is the same in every project, and nobody changes it")


def _mine(caller: Caller, role_name: str) -> ColumnElement[bool]:
    return (Role.project_id == caller.project_id) & (Role.name == role_name)


async def _find(caller: Caller, role_name: str) -> Row[Any]:
    return await _one(caller, role_name, select(Role.__table__).where(_mine(caller, role_name)))


async def _lock(caller: Caller, role_name: str) -> Row[Any]:
    return await _one(caller, role_name, select(Role.__table__).where(_mine(caller, role_name)).with_for_update())


async def _one(caller: Caller, role_name: str, query: Any) -> Row[Any]:
    row: Row[Any] | None = (await caller.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no role {role_name}")
    return row


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _built_in(name: str) -> dict[str, Any]:
    about = {"name": name, "description": "", "permissions": sorted(ROLES[name]), "built_in": True}
    return about | {"version": None, "created_at": None}


def _view(row: Row[Any]) -> dict[str, Any]:
    about = {"name": row.name, "description": row.description, "permissions": row.permissions, "built_in": False}
    return about | {"version": row.version, "created_at": row.created_at}
