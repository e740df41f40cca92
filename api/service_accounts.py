"""``/v1/service-accounts``: members of a project who are programs."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, delete, insert, select, update

from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Name, Text
from api.paging import OfName, Paging, page_of
from api.resources import named, one, unique_name
from api.rights import RoleName, bind, check_gives
from model.base import new_id
from model.users import ServiceAccount

router = APIRouter(prefix="/v1/service-accounts", tags=["service-accounts"], responses=RESPONSES)
Description = Annotated[Text, Field(max_length=1000)]


class ServiceAccountView(BaseModel):
    id: str
    project_id: str
    name: str
    description: str
    version: int
    created_at: dt.datetime


class ServiceAccountCreate(BaseModel):
    """``POST /v1/service-accounts``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "ci", "role_name": "developer"}]}
    )

    name: Name
    description: Description = ""
    #: Without: none yet; see `POST /v1/rbac/bindings`.
    role_name: RoleName | None = None


class ServiceAccountPatch(BaseModel):
    """``PATCH /v1/service-accounts/{id}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"description": "releases"}]})

    name: Name | None = None
    description: Description | None = None


@router.post("", status_code=201, response_model=Envelope[ServiceAccountView])
async def create(
    request: Request, body: ServiceAccountCreate, caller: Annotated[Caller, may("service_accounts:write")]
) -> Response:
    """Make a service account. A role, which may do no more than who gives it, needs `members:write` too."""
    account_id = new_id()
    if answered := await Acceptance(request, caller).answered_before(account_id, body.model_dump(mode="json")):
        return _answer(request, await find(caller, answered.resource_id), 201)
    if body.role_name is not None:
        caller.require("members:write")
        await check_gives(caller, body.role_name)
    about = body.model_dump(exclude={"role_name"})
    with unique_name("a service account", body.name):
        await caller.execute(insert(ServiceAccount).values(id=account_id, project_id=caller.project_id, **about))
    caller.changed("service_account", account_id, after=about | {"role_name": body.role_name})
    if body.role_name is not None:
        await bind(caller, body.role_name, service_account_id=account_id)
    return _answer(request, await find(caller, account_id), 201)


@router.get("", response_model=Envelope[list[ServiceAccountView]])
async def index(
    request: Request, caller: Annotated[Caller, may("service_accounts:read")], page: Paging, name: OfName = None
) -> Response:
    """The project's service accounts, newest first."""
    query = select(ServiceAccount.__table__).where(*named(ServiceAccount, caller, name))
    return await page_of(request, caller, query, ServiceAccount.__table__.c.id, page, _view)


@router.get("/{account_id}", response_model=Envelope[ServiceAccountView])
async def show(request: Request, account_id: UUID, caller: Annotated[Caller, may("service_accounts:read")]) -> Response:
    """One service account."""
    return _answer(request, await find(caller, account_id))


@router.patch("/{account_id}", response_model=Envelope[ServiceAccountView])
async def patch(
    request: Request,
    account_id: UUID,
    body: ServiceAccountPatch,
    caller: Annotated[Caller, may("service_accounts:write")],
) -> Response:
    """Change its name or description."""
    row = await find(caller, account_id, lock=True)
    check_if_match(request, row.version)
    changed = body.model_dump(exclude_none=True)
    caller.changed("service_account", account_id, {name: getattr(row, name) for name in changed}, changed)
    if changed:
        with unique_name("a service account", body.name):
            await caller.execute(
                update(ServiceAccount)
                .where(_mine(caller, account_id))
                .values(**changed, version=ServiceAccount.version + 1)
            )
        caller.changed("service_account", account_id, {name: getattr(row, name) for name in changed}, changed)
    return _answer(request, await find(caller, account_id))


@router.delete("/{account_id}", status_code=204)
async def remove(
    request: Request, account_id: UUID, caller: Annotated[Caller, may("service_accounts:write")]
) -> Response:
    """Delete it, with its bindings and its keys, which open nothing from the next request on."""
    row = await find(caller, account_id, lock=True)
    check_if_match(request, row.version)
    caller.changed("service_account", account_id, before={"name": row.name, "description": row.description})
    await caller.execute(delete(ServiceAccount).where(_mine(caller, account_id)))
    return Response(status_code=204)


async def find(caller: Caller, account_id: UUID, *, lock: bool = False) -> Row[Any]:
    """Raises NotFound."""
    query = select(ServiceAccount.__table__).where(_mine(caller, account_id))
    return await one(caller, query.with_for_update() if lock else query, "service account", account_id)


def _mine(caller: Caller, account_id: UUID) -> ColumnElement[bool]:
    return (ServiceAccount.project_id == caller.project_id) & (ServiceAccount.id == account_id)


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ServiceAccountView.model_fields}
