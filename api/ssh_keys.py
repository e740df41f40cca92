"""``/v1/ssh-keys``: public keys that instances are launched with."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Row, delete, insert, select

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Name
from api.paging import OfName, Paging, page_of
from api.resources import named, unique_name
from model.base import new_id
from model.errors import NotFound
from model.ssh_keys import LONGEST, SshKey, parse

router = APIRouter(prefix="/v1/ssh-keys", tags=["ssh-keys"], responses=RESPONSES)


def _public_key(value: str) -> str:
    return parse(value).text


class SshKeyCreate(BaseModel):
    """``POST /v1/ssh-keys``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "laptop",
                    "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGaFhSc6ItQH3xwaDgbhtUlMXPT1+OwW5GxIdSo1bjLa me",
                }
            ]
        },
    )

    name: Name
    #: As in a .pub file: ed25519, ecdsa, or rsa of at least 2048 bits.
    public_key: Annotated[str, Field(max_length=LONGEST), AfterValidator(_public_key)]


class SshKeyView(BaseModel):
    id: str
    project_id: str
    name: str
    type: str
    public_key: str
    #: As `ssh-keygen -l` shows it.
    fingerprint: str
    created_at: dt.datetime


@router.post("", status_code=201, response_model=Envelope[SshKeyView])
async def add(request: Request, body: SshKeyCreate, caller: Annotated[Caller, may("ssh_keys:write")]) -> Response:
    """Keep a public key under a name. A private key is refused, and not repeated."""
    key_id, key = new_id(), parse(body.public_key)
    asked = {"name": body.name, "public_key": body.public_key}
    if answered := await Acceptance(request, caller).answered_before(key_id, asked):
        return answer(request, _view(await _find(caller, answered.resource_id)), 201)
    values = {"id": key_id, "project_id": caller.project_id, "name": body.name, "type": key.type}
    kept = {"public_key": key.text, "fingerprint": key.fingerprint}
    with unique_name("a key", body.name):
        row = (await caller.execute(insert(SshKey).values(**values, **kept).returning(*SshKey.__table__.c))).one()
    caller.changed("ssh_key", key_id, after=_told(row))
    return answer(request, _view(row), 201)


@router.get("", response_model=Envelope[list[SshKeyView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("ssh_keys:read")],
    page: Paging,
    name: OfName = None,
) -> Response:
    """The project's keys, newest first."""
    query = select(SshKey.__table__).where(*named(SshKey, caller, name))
    return await page_of(request, caller, query, SshKey.__table__.c.id, page, _view)


@router.get("/{key_id}", response_model=Envelope[SshKeyView])
async def show(request: Request, key_id: UUID, caller: Annotated[Caller, may("ssh_keys:read")]) -> Response:
    """One key."""
    return answer(request, _view(await _find(caller, key_id)))


@router.delete("/{key_id}", status_code=204)
async def remove(key_id: UUID, caller: Annotated[Caller, may("ssh_keys:write")]) -> Response:
    """Forget a key. Instances that were launched with it keep it, also where they are made anew."""
    mine = (SshKey.project_id == caller.project_id) & (SshKey.id == key_id)
    gone = (await caller.execute(delete(SshKey).where(mine).returning(*SshKey.__table__.c))).one_or_none()
    if gone is None:
        raise NotFound(f"there is no key {key_id}")
    caller.changed("ssh_key", key_id, before=_told(gone))
    return Response(status_code=204)


async def _find(caller: Caller, key_id: UUID) -> Row[Any]:
    mine = (SshKey.project_id == caller.project_id) & (SshKey.id == key_id)
    row = (await caller.execute(select(SshKey.__table__).where(mine))).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id}")
    return row


def _told(row: Row[Any]) -> dict[str, Any]:
    """What the audit log shows of it."""
    return {"name": row.name, "fingerprint": row.fingerprint}


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SshKeyView.model_fields}
