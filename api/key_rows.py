"""API keys as rows: making one, showing it again, rotating and revoking it, whoever's it is."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, func, insert, select, update

from api import vault
from api.caller import Caller
from api.envelope import answer
from api.instance_schemas import Text
from model.errors import IdempotencyMismatch, InvalidState, NotFound
from model.keyring import Keyring
from model.permissions import ALL
from model.projects import ApiKey
from model.secrets import api_key_of, digest

MOST_OVERLAP = 7 * 24 * 3600
_NOUNS = frozenset(name.partition(":")[0] for name in ALL)


def _scope(value: str) -> str:
    noun, _, verb = value.partition(":")
    if value not in ALL and not (verb == "*" and noun in _NOUNS):
        raise ValueError("expected a permission, such as instances:read, or all of a noun: instances:*")
    return value


Scope = Annotated[Text, Field(max_length=100), AfterValidator(_scope)]


class Rotate(BaseModel):
    """``POST …/keys/{id}/rotate``: for how long the old one goes on beside the new one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=MOST_OVERLAP)] = 3600


class KeyView(BaseModel):
    id: str
    project_id: str
    name: str
    #: Permissions, or `noun:*`; null: all that its owner may do.
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


async def find(caller: Caller, mine: ColumnElement[bool], key_id: UUID, *, lock: bool = False) -> Row[Any]:
    """Raises NotFound where it is none of those that ``mine`` names."""
    query = select(ApiKey.__table__).where(mine, ApiKey.id == key_id)
    row = (await caller.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise absent(key_id)
    return row


def absent(key_id: UUID) -> NotFound:
    return NotFound(f"there is no key {key_id}")


async def make(
    request: Request, caller: Caller, key_id: UUID, owner: dict[str, UUID | None], **values: Any
) -> Response:
    """A key of the caller's project for this owner, ``user_id`` or ``service_account_id``: 201, with the key."""
    keyring = vault.keyring(request)
    key = _derived(keyring, keyring.newest, key_id)
    values |= {"id": key_id, "project_id": caller.project_id, "digest": digest(key), **owner}
    row = (await caller.execute(insert(ApiKey).values(**values).returning(*ApiKey.__table__.c))).one()
    told = {name: getattr(row, name) for name in ("name", "scopes", "expires_at")}
    caller.changed("api_key", key_id, after=told | {name: str(value) for name, value in owner.items()})
    return answer(request, view(row) | {"key": key}, 201)


async def again(request: Request, caller: Caller, mine: ColumnElement[bool], key_id: UUID) -> Response:
    """The same answer: the key is made again from its id and the master key that it was made with."""
    row = await find(caller, mine, key_id)
    keyring = vault.keyring(request)
    for master in keyring:
        key = _derived(keyring, master, key_id)
        if digest(key) == row.digest:
            return answer(request, view(row) | {"key": key}, 201)
    raise IdempotencyMismatch(
        "the key that this Idempotency-Key stands for cannot be shown again: rotate it", id=key_id
    )


async def end_after(caller: Caller, mine: ColumnElement[bool], key_id: UUID, body: Rotate) -> Row[Any]:
    """The key in whose place another comes, which ends after the overlap. Raises NotFound, InvalidState."""
    old = await find(caller, mine, key_id, lock=True)
    now = dt.datetime.now(dt.UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise InvalidState("the key was revoked or rotated before, or has expired: make another", state="void")
    over = func.now() + dt.timedelta(seconds=body.overlap_seconds)
    await caller.execute(update(ApiKey).where(mine, ApiKey.id == key_id).values(revoked_at=over))
    caller.changed("api_key", key_id, before={"id": str(key_id), "name": old.name})
    return old


async def revoke(caller: Caller, mine: ColumnElement[bool], key_id: UUID) -> Row[Any]:
    """It opens nothing from the next request on. Raises NotFound."""
    row = await find(caller, mine, key_id, lock=True)
    caller.changed("api_key", key_id, before={"name": row.name})
    over = func.least(func.coalesce(ApiKey.revoked_at, func.now()), func.now())
    ended = update(ApiKey).where(mine, ApiKey.id == key_id).values(revoked_at=over)
    return (await caller.execute(ended.returning(*ApiKey.__table__.c))).one()


def _derived(keyring: Keyring, master: str, key_id: UUID) -> str:
    return api_key_of(key_id, keyring.derive(master, f"api key {key_id}"))


def view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in KeyView.model_fields}
