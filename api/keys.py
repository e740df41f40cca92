"""``/v1/auth/keys``: the caller's own API keys."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.instance_schemas import Text
from api.paging import OfName, Paging, page_of
from model.audit import NOWHERE
from model.base import new_id
from model.errors import Forbidden, IdempotencyMismatch, InvalidState, NotFound, Unavailable, ValidationFailed
from model.keyring import Keyring
from model.permissions import ALL, allows
from model.projects import ApiKey
from model.secrets import api_key_of, digest
from model.settings import Settings

router = APIRouter(prefix="/v1/auth/keys", tags=["auth"], responses=RESPONSES)
MOST_OVERLAP = 7 * 24 * 3600
_NOUNS = frozenset(name.partition(":")[0] for name in ALL)


def _scope(value: str) -> str:
    noun, _, verb = value.partition(":")
    if value not in ALL and not (verb == "*" and noun in _NOUNS):
        raise ValueError("expected a permission, such as instances:read, or all of a noun: instances:*")
    return value


Scope = Annotated[Text, Field(max_length=100), AfterValidator(_scope)]


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


class Rotate(BaseModel):
    """``POST /v1/auth/keys/{id}/rotate``: for how long the old one goes on beside the new one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=MOST_OVERLAP)] = 3600


class KeyView(BaseModel):
    id: str
    project_id: str
    name: str
    scopes: list[str] | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    #: To the half minute.
    last_used_at: dt.datetime | None
    #: From then on it opens nothing; of one that was rotated maybe ahead.
    revoked_at: dt.datetime | None


class NewKeyView(KeyView):
    #: Shown in this answer, and to the same request again with the same `Idempotency-Key`; never otherwise.
    key: str


@router.post("", status_code=201, operation_id="create_key", response_model=Envelope[NewKeyView])
async def create(request: Request, body: KeyCreate, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Make a key. It opens one project, for the caller, and never more of it than what asks for it may itself."""
    key_id = new_id()
    if body.project is None and caller.project_id == NOWHERE:
        said = "name the project that the key opens: you have no default one"
        raise ValidationFailed(said, fields=[{"field": "project", "message": said}])
    caller = await caller.into(body.project or caller.project_id)
    if answered := await Acceptance(request, caller).answered_before(key_id, body.model_dump(mode="json")):
        return await _again(request, caller, answered.resource_id)
    if body.expires_at is not None and body.expires_at <= dt.datetime.now(dt.UTC):
        raise ValidationFailed(
            "expires_at is over", fields=[{"field": "expires_at", "message": "expected a time to come"}]
        )
    scopes, ends = await _within(caller, body.scopes, body.expires_at)
    return await _make(request, caller, key_id, name=body.name, scopes=scopes, expires_at=ends)


@router.get("", operation_id="list_keys", response_model=Envelope[list[KeyView]])
async def index(
    request: Request, caller: Annotated[Caller, may("account:read")], page: Paging, name: OfName = None
) -> Response:
    """The caller's keys, newest first: of a user those of all projects, to a key those of its own. Not the keys
    themselves: of them a digest is kept."""
    query = select(ApiKey.__table__).where(_mine(caller))
    if name is not None:
        query = query.where(ApiKey.name == name)
    return await page_of(request, caller, query, ApiKey.__table__.c.id, page, _view)


@router.get("/{api_key_id}", operation_id="get_key", response_model=Envelope[KeyView])
async def show(request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:read")]) -> Response:
    """One of the caller's keys."""
    return answer(request, _view(await _find(caller, api_key_id)))


@router.post("/{api_key_id}/rotate", status_code=201, operation_id="rotate_key", response_model=Envelope[NewKeyView])
async def rotate(
    request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:write")], body: Rotate | None = None
) -> Response:
    """Make a key like this one, which ends after the overlap."""
    body = body or Rotate()
    old = await _find(caller, api_key_id)
    caller = await caller.into(old.project_id)
    fresh = new_id()
    if answered := await Acceptance(request, caller).answered_before(fresh, body.model_dump()):
        return await _again(request, caller, answered.resource_id)
    old = await _find(caller, api_key_id, lock=True)
    now = dt.datetime.now(dt.UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise InvalidState("the key was revoked or rotated before, or has expired: make another", state="void")
    scopes, ends = await _within(caller, old.scopes, old.expires_at)
    over = func.now() + dt.timedelta(seconds=body.overlap_seconds)
    await caller.execute(update(ApiKey).where(ApiKey.id == api_key_id).values(revoked_at=over))
    caller.changed("key", fresh, before={"id": api_key_id, "name": old.name})
    return await _make(request, caller, fresh, name=old.name, scopes=scopes, expires_at=ends)


@router.post("/{api_key_id}/revoke", operation_id="revoke_key", response_model=Envelope[KeyView])
async def revoke(
    request: Request, api_key_id: UUID, caller: Annotated[Caller, may("account:write")], body: Nothing | None = None
) -> Response:
    """Let it open nothing from the next request on. It can be seen for some days more."""
    await _find(caller, api_key_id, lock=True)
    over = func.least(ApiKey.revoked_at, func.now())
    row = await caller.execute(
        update(ApiKey).where(ApiKey.id == api_key_id).values(revoked_at=over).returning(*ApiKey.__table__.c)
    )
    caller.changed("key", api_key_id)
    return answer(request, _view(row.one()))


@router.delete("/{api_key_id}", status_code=204, operation_id="delete_key", responses=also(404))
async def remove(api_key_id: UUID, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Revoke it and forget it."""
    gone = delete(ApiKey).where(_mine(caller), ApiKey.id == api_key_id).returning(ApiKey.id)
    if (await caller.execute(gone)).one_or_none() is None:
        raise _absent(api_key_id)
    caller.changed("key", api_key_id)
    return Response(status_code=204)


def _mine(caller: Caller) -> ColumnElement[bool]:
    """Keys of the caller; to a key, of its own project alone: it opens no other, by no detour."""
    who = caller.who
    mine = ApiKey.user_id == who.user_id if who.user_id else ApiKey.service_account_id == who.service_account_id
    return mine if who.key_id is None else mine & (ApiKey.project_id == caller.project_id)


async def _find(caller: Caller, key_id: UUID, *, lock: bool = False) -> Row[Any]:
    query = select(ApiKey.__table__).where(_mine(caller), ApiKey.id == key_id)
    row = (await caller.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise _absent(key_id)
    return row


def _absent(key_id: UUID) -> NotFound:
    return NotFound(f"there is no key {key_id}")


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


async def _make(request: Request, caller: Caller, key_id: UUID, **values: Any) -> Response:
    keyring = _keyring(request)
    key = _derived(keyring, keyring.newest, key_id)
    who = caller.who
    owner = {"user_id": who.user_id} if who.user_id else {"service_account_id": who.service_account_id}
    values |= {"id": key_id, "project_id": caller.project_id, "digest": digest(key), **owner}
    row = (await caller.execute(insert(ApiKey).values(**values).returning(*ApiKey.__table__.c))).one()
    caller.changed("api_key", key_id, after={name: getattr(row, name) for name in ("name", "scopes", "expires_at")})
    return answer(request, _view(row) | {"key": key}, 201)


async def _again(request: Request, caller: Caller, key_id: UUID) -> Response:
    """The same answer: the key is made again from its id and the master key that it was made with."""
    row = await _find(caller, key_id)
    keyring = _keyring(request)
    for master in keyring:
        key = _derived(keyring, master, key_id)
        if digest(key) == row.digest:
            return answer(request, _view(row) | {"key": key}, 201)
    raise IdempotencyMismatch(
        "the key that this Idempotency-Key stands for cannot be shown again: rotate it", id=key_id
    )


def _derived(keyring: Keyring, master: str, key_id: UUID) -> str:
    return api_key_of(key_id, keyring.derive(master, f"api key {key_id}"))


def _keyring(request: Request) -> Keyring:
    settings: Settings = request.app.state.settings
    if settings.master_keys is None:
        raise Unavailable("no keys can be made: this API has no CAIRN_MASTER_KEYS")
    return Keyring(settings.master_keys.get_secret_value())


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in KeyView.model_fields}
