"""``/v1/rbac/bindings``: who has which role in the project."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import Row, Select, delete, select

from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.paging import Paging, page_of
from api.resources import one
from api.rights import OWNER, RoleName, bind, check_an_owner_is_left, check_gives, check_proved, hold
from model.errors import NotFound
from model.users import Binding, ServiceAccount, User

router = APIRouter(prefix="/v1/rbac/bindings", tags=["roles"], responses=RESPONSES)


class Subject(BaseModel):
    id: str
    name: str
    #: Of a user.
    email: str | None


class BindingView(BaseModel):
    id: str
    role_name: str
    user: Subject | None
    service_account: Subject | None
    created_at: dt.datetime


class BindingCreate(BaseModel):
    """``POST /v1/rbac/bindings``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"role_name": "developer", "user_identifier": "jo@example.org"}]},
    )

    role_name: RoleName
    #: The id or the e-mail address of a user, or the id of a service account of the project.
    user_identifier: Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,254}$", strip_whitespace=True)]


@router.get("", response_model=Envelope[list[BindingView]])
async def index(request: Request, caller: Annotated[Caller, may("members:read")], page: Paging) -> Response:
    """Bindings of users and service accounts to roles, newest first."""
    return await page_of(request, caller, _query(caller), Binding.__table__.c.id, page, _view)


@router.post("", status_code=201, response_model=Envelope[BindingView])
async def create(request: Request, body: BindingCreate, caller: Annotated[Caller, may("members:write")]) -> Response:
    """Give somebody a role. The same again answers the binding that there is.

    Nobody gives a role that may do more than they may themselves: 403. 404 where no account is known by this address
    or id: who may bind learns so much, and nobody else. Somebody without an account is invited
    (`POST /v1/projects/{id}/invitations`), which tells nothing; so is somebody who is no member yet and has not proved
    the address: 409 `address_unproved`.
    """
    await hold(caller)
    await check_gives(caller, body.role_name)
    user_id, account_id = await _subject(caller, body.user_identifier)
    if user_id is not None:
        await check_proved(caller, user_id)
    await bind(caller, body.role_name, user_id=user_id, service_account_id=account_id)
    query = _query(caller).where(
        Binding.role_name == body.role_name,
        Binding.user_id == user_id if user_id else Binding.service_account_id == account_id,
    )
    row = (await caller.execute(query)).one()
    caller.changed("binding", row.id, after=_told(row))
    return answer(request, _view(row), 201)


@router.get("/{binding_id}", response_model=Envelope[BindingView])
async def show(request: Request, binding_id: UUID, caller: Annotated[Caller, may("members:read")]) -> Response:
    """One binding."""
    return answer(request, _view(await _find(caller, binding_id)))


@router.delete("/{binding_id}", status_code=204)
async def remove(binding_id: UUID, caller: Annotated[Caller, may("members:write")]) -> Response:
    """Take a role from somebody, from their next request on; their streams end. The last owner stays: 409
    `last_owner`. Nobody takes a role that may do more than they may themselves: 403."""
    await hold(caller)
    row = await _find(caller, binding_id)
    await check_gives(caller, row.role_name)
    if row.role_name == OWNER and row.user_id is not None:
        await check_an_owner_is_left(caller, row.user_id)
    caller.changed("binding", binding_id, before=_told(row))
    await caller.execute(delete(Binding).where(Binding.project_id == caller.project_id, Binding.id == binding_id))
    return Response(status_code=204)


async def _subject(caller: Caller, identifier: str) -> tuple[UUID | None, UUID | None]:
    """The user or the service account that is meant. Raises NotFound."""
    try:
        asked: UUID | None = UUID(identifier)
    except ValueError:
        asked = None
    known = User.email == identifier.lower() if asked is None else User.id == asked
    user_id = (await caller.execute(select(User.id).where(known))).scalar_one_or_none()
    if user_id is not None:
        return user_id, None
    if asked is not None:
        accounts = (ServiceAccount.project_id == caller.project_id) & (ServiceAccount.id == asked)
        account_id = (await caller.execute(select(ServiceAccount.id).where(accounts))).scalar_one_or_none()
        if account_id is not None:
            return None, account_id
    raise NotFound(f"there is nobody known as {identifier}: invite them")


def _query(caller: Caller) -> Select[Any]:
    return (
        select(
            *Binding.__table__.c,
            User.name.label("user_name"),
            User.email,
            ServiceAccount.name.label("account_name"),
        )
        .select_from(Binding)
        .outerjoin(User, User.id == Binding.user_id)
        .outerjoin(
            ServiceAccount,
            (ServiceAccount.project_id == Binding.project_id) & (ServiceAccount.id == Binding.service_account_id),
        )
        .where(Binding.project_id == caller.project_id)
    )


async def _find(caller: Caller, binding_id: UUID) -> Row[Any]:
    return await one(caller, _query(caller).where(Binding.id == binding_id), "binding", binding_id)


def _told(row: Row[Any]) -> dict[str, Any]:
    """For the audit log."""
    whose = {name: str(subject) for name in ("user_id", "service_account_id") if (subject := getattr(row, name))}
    return {"role_name": row.role_name, **whose}


def _view(row: Row[Any]) -> dict[str, Any]:
    user = {"id": row.user_id, "name": row.user_name, "email": row.email}
    account = {"id": row.service_account_id, "name": row.account_name, "email": None}
    return {
        "id": row.id,
        "role_name": row.role_name,
        "user": user if row.user_id is not None else None,
        "service_account": account if row.service_account_id is not None else None,
        "created_at": row.created_at,
    }
