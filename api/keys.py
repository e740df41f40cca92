"""``/v1/auth/keys``: the caller's own API keys."""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, delete, select

from api import key_rows
from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.instance_schemas import Text
from api.key_rows import KeyView, NewKeyView, Rotate, Scope
from api.paging import OfName, Paging, page_of
from model.audit import NOWHERE
from model.base import new_id
from model.errors import Forbidden, ValidationFailed
from model.permissions import ALL, allows
from model.projects import ApiKey

router = APIRouter(prefix="/v1/auth/keys", tags=["auth"], responses=RESPONSES)


class KeyCreate(BaseModel):
    """``POST /v1/auth/keys``. No ``scopes``: all that its owner's roles allow, or what the key that asks may."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "ci", "scopes": ["instances:*", "images:read"]}]}
    )

    name: Annotated[Text, Field(min_length=1, max_length=63)]
    scopes: Annotated[list[Scope], Field(max_length=len(ALL))] | None = None
    expires_at: AwareDatetime | None = None
    #: The one project that it opens; by default the one of this request.
    project: UUID | None = None


@router.post("", status_code=201, operation_id="create_key", response_model=Envelope[NewKeyView])
async def create(request: Request, body: KeyCreate, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Make a key. It opens one project, for the caller, and never more of it than what asks for it may itself."""
    key_id = new_id()
    if body.project is None and caller.project_id == NOWHERE:
        said = "name the project that the key opens: you have no default one"
        raise ValidationFailed(said, fields=[{"field": "project", "message": said}])
    caller = await caller.into(body.project or caller.project_id)
    if answered := await Acceptance(request, caller).answered_before(key_id, body.model_dump(mode="json")):
        return await key_rows.again(request, caller, _mine(caller), answered.resource_id)
    if body.expires_at is not None and body.expires_at <= dt.datetime.now(dt.UTC):
        raise ValidationFailed(
            "expires_at is over", fields=[{"field": "expires_at", "message": "expected a time to come"}]
        )
    scopes, ends = await _within(caller, body.scopes, body.expires_at)
    return await key_rows.make(request, caller, key_id, _owner(caller), name=body.name, scopes=scopes, expires_at=ends)


@router.get("", operation_id="list_keys", response_model=Envelope[list[KeyView]])
async def index(
    request: Request, caller: Annotated[Caller, may("account:read")], page: Paging, name: OfName = None
) -> Response:
    """The caller's keys, newest first: of a user those of all projects, to a key those of its own. Not the keys
    themselves: of them a digest is kept."""
    query = select(ApiKey.__table__).where(_mine(caller))
    if name is not None:
        query = query.where(ApiKey.name == name)
    return await page_of(request, caller, query, ApiKey.__table__.c.id, page, key_rows.view)


@router.get("/{api_key_id}", operation_id="get_key", response_model=Envelope[KeyView])
async def show(request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:read")]) -> Response:
    """One of the caller's keys."""
    return answer(request, key_rows.view(await key_rows.find(caller, _mine(caller), api_key_id)))


@router.post("/{api_key_id}/rotate", status_code=201, operation_id="rotate_key", response_model=Envelope[NewKeyView])
async def rotate(
    request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:write")], body: Rotate | None = None
) -> Response:
    """Make a key like this one, which ends after the overlap."""
    body = body or Rotate()
    old = await key_rows.find(caller, _mine(caller), api_key_id)
    caller = await caller.into(old.project_id)
    fresh = new_id()
    if answered := await Acceptance(request, caller).answered_before(fresh, body.model_dump()):
        return await key_rows.again(request, caller, _mine(caller), answered.resource_id)
    old = await key_rows.end_after(caller, _mine(caller), api_key_id, body)
    scopes, ends = await _within(caller, old.scopes, old.expires_at)
    return await key_rows.make(request, caller, fresh, _owner(caller), name=old.name, scopes=scopes, expires_at=ends)


@router.post("/{api_key_id}/revoke", operation_id="revoke_key", response_model=Envelope[KeyView])
async def revoke(
    request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:write")], body: Nothing | None = None
) -> Response:
    """Let it open nothing from the next request on. It can be seen for some days more.

    Just this one: a key in whose place it came goes on until its overlap ends, or is revoked by its own id.
    """
    return answer(request, key_rows.view(await key_rows.revoke(caller, _mine(caller), api_key_id)))


@router.delete("/{api_key_id}", status_code=204, operation_id="delete_key", responses=also(404))
async def remove(api_key_id: UUID, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Revoke it and forget it."""
    gone = delete(ApiKey).where(_mine(caller), ApiKey.id == api_key_id).returning(ApiKey.id)
    if (await caller.execute(gone)).one_or_none() is None:
        raise key_rows.absent(api_key_id)
    caller.changed("api_key", api_key_id)
    return Response(status_code=204)


def _mine(caller: Caller) -> ColumnElement[bool]:
    """Keys of the caller; to a key, of its own project alone: it opens no other, by no detour."""
    who = caller.who
    mine = ApiKey.user_id == who.user_id if who.user_id else ApiKey.service_account_id == who.service_account_id
    return mine if who.key_id is None else mine & (ApiKey.project_id == caller.project_id)


def _owner(caller: Caller) -> dict[str, UUID | None]:
    who = caller.who
    return {"user_id": who.user_id} if who.user_id else {"service_account_id": who.service_account_id}


async def _within(
    caller: Caller, scopes: list[str] | None, expires_at: dt.datetime | None
) -> tuple[list[str] | None, dt.datetime | None]:
    """What was asked for, where the credential that asks may as much, and lasts as long. Raises Forbidden."""
    if caller.who.key_id is None:
        return scopes, expires_at
    asking = (await caller.execute(select(ApiKey.__table__).where(ApiKey.id == caller.who.key_id))).one()
    if asking.scopes is not None:
        scopes = asking.scopes if scopes is None else scopes
        beyond = [
            scope
            for scope in scopes
            if scope not in asking.scopes and not all(allows(asking.scopes, one) for one in ALL if allows([scope], one))
        ]
        if beyond:
            raise Forbidden(f"the key that asks has not the scopes {', '.join(beyond)} itself", scopes=beyond)
    # One that was rotated goes on for a while: whoever has it after that must not have made another.
    ends = min((end for end in (asking.expires_at, asking.revoked_at) if end is not None), default=None)
    if ends is not None and (expires_at is None or expires_at > ends):
        raise Forbidden(f"a key makes none that lasts longer than itself, until {ends.isoformat()}")
    return scopes, expires_at
