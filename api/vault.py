"""What the API encrypts, and cannot read again: values under a project's data key."""

from __future__ import annotations

import hmac
from typing import Any
from uuid import UUID

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from api.caller import Caller
from model.base import new_id
from model.envelope import encrypt, new_data_key, unwrap, wrap
from model.errors import Unavailable
from model.keyring import Keyring
from model.settings import Settings
from model.vault import DataKey, SealedValue


def keyring(request: Request) -> Keyring:
    """Raises Unavailable where this API has none."""
    settings: Settings = request.app.state.settings
    if settings.master_keys is None:
        raise Unavailable("this API has no CAIRN_MASTER_KEYS: it can keep no secrets and make no keys")
    return Keyring(settings.master_keys.get_secret_value())


async def data_key(caller: Caller, keyring: Keyring) -> tuple[UUID, bytes]:
    """The project's data key under the newest master key, made where there is none."""
    mine = (DataKey.project_id == caller.project_id) & (DataKey.master_key_id == keyring.newest)
    row = (await caller.execute(select(DataKey.__table__).where(mine))).one_or_none()
    if row is None:
        key_id = new_id()
        wrapped = wrap(keyring, keyring.newest, new_data_key(), project_id=caller.project_id, key_id=key_id)
        made = {"id": key_id, "project_id": caller.project_id, "master_key_id": keyring.newest, "wrapped": wrapped}
        # Of two at once the second waits for the first here, and takes that one's.
        await caller.execute(insert(DataKey).values(**made).on_conflict_do_nothing())
        row = (await caller.execute(select(DataKey.__table__).where(mine))).one()
    key = unwrap(keyring, row.master_key_id, row.wrapped, project_id=row.project_id, key_id=row.id)
    return row.id, key


async def keep(
    caller: Caller,
    keyring: Keyring,
    value: str,
    *,
    webhook_id: UUID | None = None,
    instance_id: UUID | None = None,
    cron_job_id: UUID | None = None,
    credential_id: UUID | None = None,
) -> None:
    """What this webhook or cron job signs with, this instance's script, or this credential's value, from now on. Raises
    Unavailable."""
    owners = {"webhook_id": webhook_id, "instance_id": instance_id, "cron_job_id": cron_job_id}
    owners |= {"credential_id": credential_id}
    (owner,) = (name for name, id in owners.items() if id is not None)
    row = {"id": new_id(), "project_id": caller.project_id, **owners}
    encrypted = await _sealed(caller, keyring, value, row)
    writing = insert(SealedValue).values(**row, **encrypted)
    try:
        await caller.execute(writing.on_conflict_do_update(index_elements=[owner], set_=encrypted))
    except IntegrityError as error:
        raise unavailable(error, "sealed_values") from error


async def keep_of_group(caller: Caller, keyring: Keyring, value: str, group_id: UUID) -> UUID:
    """Another script of the group's members, beside those that it has had: its id. Raises Unavailable."""
    id = new_id()
    row = {"id": id, "project_id": caller.project_id, "group_id": group_id}
    try:
        await caller.execute(insert(SealedValue).values(**row, **await _sealed(caller, keyring, value, row)))
    except IntegrityError as error:
        raise unavailable(error, "sealed_values") from error
    return id


async def _sealed(caller: Caller, keyring: Keyring, value: str, row: dict[str, Any]) -> dict[str, Any]:
    key_id, key = await data_key(caller, keyring)
    return {"data_key_id": key_id, **encrypt(key, value.encode(), SealedValue(**row).what)._asdict()}


def unavailable(error: IntegrityError, table: str) -> Exception:
    """This API makes under a master key that is the newest no more, and what lies under that has just been moved; or
    the error itself."""
    if f"fk_{table}_project_id_data_key_id" in str(error.orig):
        return Unavailable("the key that secrets lie under was replaced just now: repeat the request")
    return error


def fingerprinted(keyring: Keyring, caller: Caller, asked: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """What is remembered of a request for its Idempotency-Key: nobody can try guesses at the field's value without the
    master key. The first is as of now; as the others it may have come before, when another key was the newest.

    ``field`` may lie deeper: ``target.http.secret``.
    """
    found = _at(asked, field)
    if found is None:
        return [asked]
    value = caller.project_id.bytes + str(found).encode()
    keys = [keyring.derive(id, "idempotency") for id in keyring]
    return [_with(asked, field, hmac.digest(key, value, "sha256").hex()) for key in keys]


def _at(asked: Any, field: str) -> Any:
    for name in field.split("."):
        asked = asked.get(name) if isinstance(asked, dict) else None
    return asked


def _with(asked: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    name, _, deeper = field.partition(".")
    return asked | {name: _with(asked[name], deeper, value) if deeper else value}
