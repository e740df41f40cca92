"""``/v1/service-accounts/{id}/keys``: with which programs show who they are."""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, select

from api import key_rows
from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import Name
from api.key_rows import KeyView, NewKeyView, Rotate, Scope
from api.paging import Paging, page_of
from api.rights import check_has, of_service_account
from api.service_accounts import find
from model.base import new_id
from model.permissions import ALL
from model.projects import ApiKey

router = APIRouter(prefix="/v1/service-accounts/{account_id}/keys", tags=["service-accounts"], responses=RESPONSES)
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=len(ALL))]


class AccountKeyCreate(BaseModel):
    """``POST /v1/service-accounts/{id}/keys``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "ci-2026", "scopes": ["instances:*"]}]}
    )

    name: Name
    scopes: Scopes | None = None
    expires_at: AwareDatetime | None = None


@router.get("", response_model=Envelope[list[KeyView]])
async def index(
    request: Request, account_id: UUID, caller: Annotated[Caller, may("service_accounts:read")], page: Paging
) -> Response:
    """Its keys, newest first; those that were revoked too."""
    await find(caller, account_id)
    query = select(ApiKey.__table__).where(_theirs(caller, account_id))
    return await page_of(request, caller, query, ApiKey.__table__.c.id, page, key_rows.view)


@router.post("", status_code=201, response_model=Envelope[NewKeyView])
async def create(
    request: Request, account_id: UUID, body: AccountKeyCreate, caller: Annotated[Caller, may("service_accounts:write")]
) -> Response:
    """Make a key, which is shown in `data.key`, here alone, and to the same request again with its `Idempotency-Key`.
    Nobody makes one that may do more than they may themselves: 403."""
    await find(caller, account_id, lock=True)
    account_key_id = new_id()
    if answered := await Acceptance(request, caller).answered_before(account_key_id, body.model_dump(mode="json")):
        return await _again(request, caller, account_id, answered.resource_id)
    return await _make(request, caller, account_id, account_key_id, body.name, body.scopes, body.expires_at)


@router.post("/{account_key_id}/rotate", status_code=201, response_model=Envelope[NewKeyView])
async def rotate(
    request: Request,
    account_id: UUID,
    account_key_id: UUID,
    caller: Annotated[Caller, may("service_accounts:write")],
    body: Rotate | None = None,
) -> Response:
    """Make a key in the place of another, which goes on opening what it did for a while."""
    await find(caller, account_id, lock=True)
    body = body or Rotate()
    made = new_id()
    if answered := await Acceptance(request, caller).answered_before(made, body.model_dump(mode="json")):
        return await _again(request, caller, account_id, answered.resource_id)
    old = await key_rows.end_after(caller, _theirs(caller, account_id), account_key_id, body)
    return await _make(request, caller, account_id, made, old.name, old.scopes, old.expires_at)


@router.post("/{account_key_id}/revoke", response_model=Envelope[KeyView])
async def revoke(
    request: Request,
    account_id: UUID,
    account_key_id: UUID,
    caller: Annotated[Caller, may("service_accounts:write")],
    body: Nothing | None = None,
) -> Response:
    """Make a key void, from the next request on. Just this one: a key in whose place it came goes on until its overlap
    ends, or is revoked by its own id."""
    return answer(request, key_rows.view(await key_rows.revoke(caller, _theirs(caller, account_id), account_key_id)))


async def _make(
    request: Request,
    caller: Caller,
    account_id: UUID,
    account_key_id: UUID,
    name: str,
    scopes: list[str] | None,
    expires_at: dt.datetime | None,
) -> Response:
    check_has(caller, await of_service_account(caller, account_id, scopes), "the key")
    owner: dict[str, UUID | None] = {"service_account_id": account_id}
    return await key_rows.make(request, caller, account_key_id, owner, name=name, scopes=scopes, expires_at=expires_at)


async def _again(request: Request, caller: Caller, account_id: UUID, account_key_id: UUID) -> Response:
    """To who may make it still."""
    row = await key_rows.find(caller, _theirs(caller, account_id), account_key_id)
    check_has(caller, await of_service_account(caller, account_id, row.scopes), "the key")
    return await key_rows.again(request, caller, _theirs(caller, account_id), account_key_id)


def _theirs(caller: Caller, account_id: UUID) -> ColumnElement[bool]:
    return (ApiKey.project_id == caller.project_id) & (ApiKey.service_account_id == account_id)
