"""``/v1/service-accounts/{id}/keys``: with which programs show who they are."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, func, insert, select, update

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES
from api.instance_schemas import Name
from api.paging import Paging, page_of
from api.resources import one
from api.rights import check_has, of_service_account
from api.service_accounts import find
from model.base import new_id
from model.errors import InvalidState
from model.permissions import ALL
from model.projects import ApiKey
from model.secrets import digest, new_key

router = APIRouter(prefix="/v1/service-accounts/{account_id}/keys", tags=["service-accounts"], responses=RESPONSES)
_NOUNS = {permission.partition(":")[0] for permission in ALL}


def _known(scopes: list[str]) -> list[str]:
    for scope in scopes:
        noun, _, verb = scope.partition(":")
        if scope not in ALL and not (verb == "*" and noun in _NOUNS):
            raise ValueError(f"there is no permission {scope[:64]!r}")
    return sorted(set(scopes))


Scopes = Annotated[list[str], Field(min_length=1, max_length=len(ALL)), AfterValidator(_known)]


class AccountKeyView(BaseModel):
    id: str
    name: str
    #: Permissions, or `noun:*`; null: all that the account may do.
    scopes: list[str] | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    #: To the half minute.
    last_used_at: dt.datetime | None
    #: From then on it opens nothing.
    revoked_at: dt.datetime | None


class NewAccountKeyView(AccountKeyView):
    #: Shown here, once. Null where the same request came again.
    key: str | None


class AccountKeyCreate(BaseModel):
    """``POST /v1/service-accounts/{id}/keys``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "ci-2026", "scopes": ["instances:*"]}]}
    )

    name: Name
    scopes: Scopes | None = None
    expires_at: AwareDatetime | None = None


class AccountKeyRotate(BaseModel):
    """``POST /v1/service-accounts/{id}/keys/{account_key_id}/rotate``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    #: For so long the old one works beside the new one.
    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=7 * 24 * 3600)] = 3600


@router.get("", response_model=Envelope[list[AccountKeyView]])
async def index(
    request: Request, account_id: UUID, caller: Annotated[Caller, may("service_accounts:read")], page: Paging
) -> Response:
    """Its keys, newest first; those that were revoked too."""
    await find(caller, account_id)
    query = select(*_COLUMNS).where(_theirs(caller, account_id))
    return await page_of(request, caller, query, ApiKey.__table__.c.id, page, _view)


@router.post("", status_code=201, response_model=Envelope[NewAccountKeyView])
async def create(
    request: Request, account_id: UUID, body: AccountKeyCreate, caller: Annotated[Caller, may("service_accounts:write")]
) -> Response:
    """Make a key, which is shown in `data.key`, here alone. Nobody makes one that may do more than they may
    themselves: 403."""
    await find(caller, account_id, lock=True)
    account_key_id = new_id()
    if answered := await Acceptance(request, caller).answered_before(account_key_id, body.model_dump(mode="json")):
        return answer(request, _view(await _key(caller, account_id, answered.resource_id)) | {"key": None}, 201)
    return await _make(request, caller, account_id, account_key_id, body.name, body.scopes, body.expires_at)


@router.post("/{account_key_id}/rotate", status_code=201, response_model=Envelope[NewAccountKeyView])
async def rotate(
    request: Request,
    account_id: UUID,
    account_key_id: UUID,
    caller: Annotated[Caller, may("service_accounts:write")],
    body: AccountKeyRotate | None = None,
) -> Response:
    """Make a key in the place of another, which goes on opening what it did for a while."""
    await find(caller, account_id, lock=True)
    body = body or AccountKeyRotate()
    old, made = await _key(caller, account_id, account_key_id), new_id()
    if answered := await Acceptance(request, caller).answered_before(made, body.model_dump(mode="json")):
        return answer(request, _view(await _key(caller, account_id, answered.resource_id)) | {"key": None}, 201)
    until = func.now() + dt.timedelta(seconds=body.overlap_seconds)
    ended = await caller.execute(
        update(ApiKey)
        .where(_theirs(caller, account_id), ApiKey.id == account_key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=until)
    )
    if ended.rowcount == 0:
        raise InvalidState(f"key {old.name} was rotated or revoked already", state="revoked")
    return await _make(request, caller, account_id, made, old.name, old.scopes, old.expires_at)


@router.post("/{account_key_id}/revoke", response_model=Envelope[AccountKeyView])
async def revoke(
    request: Request,
    account_id: UUID,
    account_key_id: UUID,
    caller: Annotated[Caller, may("service_accounts:write")],
    body: Nothing | None = None,
) -> Response:
    """Make a key void, from the next request on."""
    row = await _key(caller, account_id, account_key_id)
    caller.changed("api_key", account_key_id, before={"name": row.name, "service_account_id": str(account_id)})
    await caller.execute(
        update(ApiKey)
        .where(_theirs(caller, account_id), ApiKey.id == account_key_id)
        .values(revoked_at=func.least(func.coalesce(ApiKey.revoked_at, func.now()), func.now()))
    )
    return answer(request, _view(await _key(caller, account_id, account_key_id)))


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
    told: dict[str, Any] = {"name": name, "scopes": scopes, "expires_at": expires_at}
    caller.changed("api_key", account_key_id, after=told | {"service_account_id": str(account_id)})
    key = new_key()
    about = {"name": name, "scopes": scopes, "expires_at": expires_at, "digest": digest(key)}
    made = insert(ApiKey).values(
        id=account_key_id, project_id=caller.project_id, service_account_id=account_id, **about
    )
    row = (await caller.execute(made.returning(*_COLUMNS))).one()
    return answer(request, _view(row) | {"key": key}, 201)


_COLUMNS = [ApiKey.__table__.c[name] for name in AccountKeyView.model_fields]


def _theirs(caller: Caller, account_id: UUID) -> ColumnElement[bool]:
    return (ApiKey.project_id == caller.project_id) & (ApiKey.service_account_id == account_id)


async def _key(caller: Caller, account_id: UUID, account_key_id: UUID) -> Row[Any]:
    query = select(*_COLUMNS).where(_theirs(caller, account_id), ApiKey.id == account_key_id)
    return await one(caller, query, "key", account_key_id)


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in AccountKeyView.model_fields}
