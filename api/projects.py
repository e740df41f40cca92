"""``/v1/projects``: the caller's projects, their policies, and their end."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Row, Select, func, insert, select, update

from api import new_projects, project_ends
from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import Text
from api.paging import OfName, Paging, page_of
from api.resources import one
from api.rights import OWNER, check_is_member
from model.audit import NOWHERE
from model.base import new_id
from model.errors import Forbidden, InvalidState, QuotaExceeded
from model.instances import Instance
from model.projects import FIRST_UNIX_NAME, DriftPolicy, Project
from model.settings import Settings
from model.users import Binding, User
from model.workflows import Event

router = APIRouter(prefix="/v1/projects", tags=["projects"], responses=RESPONSES)

ProjectName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$", strip_whitespace=True)]
UnixName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$")]
Description = Annotated[Text, Field(max_length=1000)]


class ProjectView(BaseModel):
    id: str
    name: str
    unix_name: str
    description: str
    #: A user's own, which goes with the user.
    personal: bool
    #: Nobody works in one that is not.
    active: bool
    #: What is in it is being deleted.
    deleting: bool
    drift_policy: DriftPolicy
    version: int
    created_at: dt.datetime


class ProjectCreate(BaseModel):
    """``POST /v1/projects``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "Payments", "description": "What customers pay with"}]}
    )

    #: For people; others may have the same.
    name: ProjectName
    #: For other systems: of all projects of the platform one alone has it, and it never changes. Without: one is made
    #: of the name.
    unix_name: UnixName | None = None
    description: Description = ""


class ProjectPatch(BaseModel):
    """``PATCH /v1/projects/{id}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"drift_policy": "heal"}]})

    name: ProjectName | None = None
    description: Description | None = None
    drift_policy: DriftPolicy | None = None


@router.get("", response_model=Envelope[list[ProjectView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("account:read")],
    page: Paging,
    name: OfName = None,
    all: Annotated[bool, Query()] = False,
) -> Response:
    """The caller's projects, newest first: those in which a user has a role, or the one of the key.

    `?all=true`: those of the whole platform, for its administrators.
    """
    query = _of(caller)
    if all:
        await caller.on_platform()
        query = select(Project.__table__).where(Project.deleted_at.is_(None))
    if name is not None:
        query = query.where(Project.name == name)
    return await page_of(request, caller, query, Project.__table__.c.id, page, view)


@router.post("", status_code=201, response_model=Envelope[ProjectView])
async def create(request: Request, body: ProjectCreate, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Make a project, which the caller owns, with the platform's usual quotas.

    429 `quota_exceeded` where they own as many as they may. 409 `name_taken` where another project of the platform has
    the `unix_name`, be it one that the caller does not see.
    """
    if caller.who.user_id is None:
        raise Forbidden("a service account belongs to one project, and makes no others")
    project_id = new_id()
    # Who has no project at all has none in which a request could be known again.
    if caller.project_id != NOWHERE:
        asked = body.model_dump(mode="json")
        if answered := await Acceptance(request, caller).answered_before(project_id, asked):
            await check_is_member(caller, answered.resource_id)
            return _answer(request, await _find(await caller.within(answered.resource_id), answered.resource_id), 201)
    settings: Settings = request.app.state.settings
    if "projects:manage" not in caller.who.permissions:
        await _check_room(caller, caller.who.user_id, settings.user_projects)
    made = await new_projects.make(caller, settings, caller.who.user_id, project_id, **body.model_dump())
    row = await _find(made, project_id)
    made.changed("project", project_id, after={"name": row.name, "unix_name": row.unix_name})
    return _answer(request, row, 201)


@router.get("/{project_id}", response_model=Envelope[ProjectView])
async def show(request: Request, project_id: UUID, caller: Annotated[Caller, may("project:read")]) -> Response:
    """One project. The path says which, as `X-Project-ID` does elsewhere: with an access token any of the user's, with
    a key the key's alone."""
    return _answer(request, await _find(caller, project_id))


@router.patch("/{project_id}", response_model=Envelope[ProjectView])
async def patch(
    request: Request, project_id: UUID, body: ProjectPatch, caller: Annotated[Caller, may("project:update")]
) -> Response:
    """Change the project. `drift_policy`: `report` shows what differs on the instance, `heal` also mends it."""
    row = await _lock(caller, project_id)
    check_if_match(request, row.version)
    changed = {
        field: value for field, value in body.model_dump(exclude_none=True).items() if value != getattr(row, field)
    }
    if "drift_policy" in changed:
        # What has drifted already is looked at again, under the new policy.
        drifted = (Instance.project_id == project_id) & Instance.drift.is_not(None)
        await caller.execute(update(Instance).where(drifted).values(updated_at=func.now()))
    return _answer(request, await _change(caller, row, changed, "project.updated"))


@router.post("/{project_id}/deactivate", response_model=Envelope[ProjectView])
async def deactivate(
    request: Request,
    project_id: UUID,
    caller: Annotated[Caller, may("projects:manage")],
    body: Nothing | None = None,
) -> Response:
    """Close the project: its members, and its keys, are answered 403 `project_inactive` from the next request on, and
    open streams end. What runs in it goes on running."""
    return await _set_active(request, caller, project_id, active=False)


@router.post("/{project_id}/activate", response_model=Envelope[ProjectView])
async def activate(
    request: Request,
    project_id: UUID,
    caller: Annotated[Caller, may("projects:manage")],
    body: Nothing | None = None,
) -> Response:
    """Open the project again."""
    return await _set_active(request, caller, project_id, active=True)


@router.delete(
    "/{project_id}", status_code=202, response_model=Envelope[ProjectView], responses={204: {"description": "Gone"}}
)
async def delete(
    request: Request,
    project_id: UUID,
    caller: Annotated[Caller, may("project:delete")],
    cascade: Annotated[bool, Query()] = False,
) -> Response:
    """Delete the project, its members, roles, service accounts and keys: 204. 409 `in_use` where there is more in it,
    which `details` counts.

    `?cascade=true`: delete that too, with a workflow: 202. Until it ends nothing new is made in the project; then the
    project, and that workflow, are 404. Where something cannot be deleted it fails and says what, and what is left is
    as it was. A user's personal project goes with the user, and the platform's first one stays: 409 `invalid_state`.
    """
    row = await _lock(caller, project_id, whole=True)
    if row.unix_name == FIRST_UNIX_NAME:
        raise InvalidState("the platform's first project is not deleted: its own administrators work in it")
    if row.personal_of is not None:
        raise InvalidState("a personal project goes with its user")
    # In the platform's log: nobody reads that of a project that is gone.
    about = {"name": row.name, "unix_name": row.unix_name}
    caller.changed("project", row.id, before=about, project=NOWHERE)
    if not cascade:
        check_if_match(request, row.version)
        await project_ends.forget(caller, row)
        return Response(status_code=204)
    return await project_ends.begin(request, caller, row, _shown)


async def _check_room(caller: Caller, user_id: UUID, most: int) -> None:
    """Each project has quotas: without this nobody would have any. Raises QuotaExceeded."""
    # Of many at once each waits here for those before.
    await caller.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    owned = (
        select(func.count())
        .select_from(Binding)
        .join(Project, Project.id == Binding.project_id)
        .where(Binding.user_id == user_id, Binding.role_name == OWNER, Project.deleted_at.is_(None))
    )
    if (await caller.execute(owned)).scalar_one() >= most:
        raise QuotaExceeded(f"a user owns at most {most} projects: delete one, or ask an administrator", projects=most)


async def _set_active(request: Request, caller: Caller, project_id: UUID, *, active: bool) -> Response:
    within = await caller.within(project_id)
    row = await _lock(within, project_id)
    if row.unix_name == FIRST_UNIX_NAME and not active:
        raise InvalidState("the platform's first project stays active: its own administrators work in it")
    if (row.deactivated_at is None) != active:
        values = {"deactivated_at": None if active else func.now()}
        row = await _change(within, row, values, f"project.{'activated' if active else 'deactivated'}")
    return _answer(request, row)


async def _change(caller: Caller, row: Row[Any], values: dict[str, Any], event: str) -> Row[Any]:
    if not values:
        return row
    caller.changed("project", row.id, {field: getattr(row, field) for field in values}, values)
    changed = update(Project).where(Project.id == row.id).values(**values, version=Project.version + 1)
    await caller.execute(changed)
    told = {"name": values.get("name", row.name), "changed": sorted(values)}
    about = {"resource_type": "project", "resource_id": row.id}
    await caller.execute(insert(Event).values(project_id=row.id, type=event, data=told, **about))
    return await _find(caller, row.id)


def _of(caller: Caller) -> Select[Any]:
    """A key opens its own alone."""
    query = select(Project.__table__).where(Project.deleted_at.is_(None))
    if caller.who.key_id is not None:
        return query.where(Project.id == caller.project_id)
    bound = select(Binding.id).where(Binding.project_id == Project.id, Binding.user_id == caller.who.user_id)
    return query.where(bound.exists())


async def _find(caller: Caller, project_id: UUID) -> Row[Any]:
    query = select(Project.__table__).where(Project.id == project_id, Project.deleted_at.is_(None))
    return await one(caller, query, "project", project_id)


async def _lock(caller: Caller, project_id: UUID, *, whole: bool = False) -> Row[Any]:
    """``whole``: also against who makes something in it just now."""
    query = select(Project.__table__).where(Project.id == project_id, Project.deleted_at.is_(None))
    return await one(caller, query.with_for_update(key_share=not whole), "project", project_id)


async def _shown(caller: Caller, project_id: UUID) -> dict[str, Any]:
    """Also of one that is gone by now."""
    row = await one(caller, select(Project.__table__).where(Project.id == project_id), "project", project_id)
    return view(row)


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, view(row), status, headers={"ETag": etag(row.version)})


def view(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "unix_name": row.unix_name,
        "description": row.description,
        "personal": row.personal_of is not None,
        "active": row.deactivated_at is None,
        "deleting": row.deleting_at is not None,
        "drift_policy": row.drift_policy,
        "version": row.version,
        "created_at": row.created_at,
    }
