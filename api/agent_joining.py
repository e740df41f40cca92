"""``/v1/hosts/register``: a machine joins, with a one-time token."""

from __future__ import annotations

import binascii
import datetime as dt
from base64 import b64decode
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from api import audit_rows
from api.agent_credentials import Connected, JoiningRoute
from api.agent_leases import AgentUrl, Sha256, Version, as_seen_by, ticket_keys
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.former_hosts import former
from api.instance_schemas import LabelName, LabelValue, Name, Text
from model import versions
from model.errors import NameTaken, Unauthenticated, Unavailable, ValidationFailed
from model.hosts import Backend, Host, HostToken, is_simulated_name
from model.projects import Installation
from model.secrets import digest
from model.settings import Settings

router = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES, route_class=JoiningRoute)
log = structlog.get_logger()
X25519_BYTES = 32
#: What makes a machine that asks again the one that asked before.
WHO = ("credential", "public_key", "fingerprint")


def _key(value: str) -> str:
    try:
        if len(b64decode(value, validate=True)) == X25519_BYTES:
            return value
    except (ValueError, binascii.Error):
        pass
    raise ValueError("expected 32 bytes in base64")


class Capacity(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cpus: Annotated[float, Field(strict=True, gt=0, le=100_000)]
    memory_mb: Annotated[int, Field(strict=True, gt=0, le=2**31 - 1)]


class Register(BaseModel):
    """``POST /v1/hosts/register``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "token": "as-cairn-host-token-printed-it",
                    "name": "rack-1",
                    "engines": ["docker"],
                    "capacity": {"cpus": 16, "memory_mb": 65536},
                    "public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                    "fingerprint": "0" * 64,
                    "credential_digest": "0" * 64,
                }
            ]
        },
    )

    token: Annotated[Text, Field(max_length=200)]
    name: Name
    engines: Annotated[list[Backend], Field(min_length=1, max_length=1)]
    capacity: Capacity
    labels: dict[LabelName, LabelValue] = Field(default={}, max_length=64)
    versions: dict[LabelName, Version] = Field(default={}, max_length=16)
    #: X25519, base64: secrets reach the host sealed for it.
    public_key: Annotated[str, AfterValidator(_key)]
    #: SHA-256 of the certificate of its agent, in hexadecimal digits.
    fingerprint: Sha256
    #: SHA-256 of the credential that the agent has made for itself. Asking again changes nothing, so, and the
    #: credential itself is on no wire before it is used.
    credential_digest: Sha256
    agent_url: AgentUrl | None = None
    #: The id that it had before, of a host that joined after the backup that was restored was made: what it holds
    #: carries that id. Taken where no host has it.
    host_id: UUID | None = None


class Registered(BaseModel):
    id: str
    name: str
    installation: str
    temporal_address: str
    temporal_namespace: str
    ticket_keys: list[str]


@router.post("/register", status_code=201, responses=also(409), response_model=Envelope[Registered])
async def register(request: Request, body: Register, connection: Connected) -> Response:
    """Join with a one-time token: what the agent must know of its platform.

    The same again, where the answer was lost: the same answer, and nothing is changed.
    """
    token = (
        await connection.execute(
            select(HostToken.__table__).where(HostToken.digest == digest(body.token)).with_for_update()
        )
    ).one_or_none()
    if token is None or token.expires_at < dt.datetime.now(dt.UTC):
        raise _void()
    if token.name is not None and token.name != body.name:
        raise Unauthenticated(f"the token is for a host named '{token.name}'")
    settings: Settings = request.app.state.settings
    check_free_name(body.name, settings)
    versions.check(body.versions.get("agent"))
    values: dict[str, Any] = {
        "backend": body.engines[0],
        "cpus": body.capacity.cpus,
        "memory_mb": body.capacity.memory_mb,
        "labels": body.labels | token.labels,
        "versions": body.versions,
        "credential": bytes.fromhex(body.credential_digest),
        "public_key": b64decode(body.public_key),
        "fingerprint": bytes.fromhex(body.fingerprint),
        "agent_url": body.agent_url,
    }
    host_id = await _join(connection, token, body.name, values, await former(connection, body.host_id))
    installation = (await connection.execute(select(Installation.id))).scalar_one()
    await audit_rows.write(connection, request, "hosts:manage", f"host:{body.name}", ("host", host_id))
    log.info("host.joined", host=body.name, host_id=str(host_id))
    data = {
        "id": host_id,
        "name": body.name,
        "installation": installation,
        "temporal_address": as_seen_by(request, settings.temporal_address),
        "temporal_namespace": settings.temporal_namespace,
        "ticket_keys": ticket_keys(settings),
    }
    return answer(request, data, 201)


def check_free_name(name: str, settings: Settings) -> None:
    """Raises ValidationFailed where no machine can join under the name."""
    if is_simulated_name(name) or name == settings.host_name:
        said = f"'{name}' is kept for a host of the platform itself: join under another name (--name)"
        raise ValidationFailed(said, fields=[{"field": "name", "message": said}])


async def _join(connection: AsyncConnection, token: Row[Any], name: str, values: dict[str, Any], fresh: UUID) -> UUID:
    """The host's id. A host that is there already is joined anew by a token made for its name alone: its keys are
    no secret, so knowing them proves nothing."""
    known = (await connection.execute(select(Host.__table__).where(Host.name == name).with_for_update())).one_or_none()
    same = known is not None and all(getattr(known, secret) == values[secret] for secret in WHO)
    if token.host_id is not None and not (known is not None and same and known.id == token.host_id):
        raise _void()
    if known is None:
        host_id = fresh
        made = await connection.execute(
            insert(Host)
            .values(id=host_id, name=name, **values)
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(Host.id)
        )
        if made.one_or_none() is None:
            raise Unavailable(f"another machine is joining as '{name}' at this moment; nothing was done, try again")
    else:
        host_id = UUID(str(known.id))
        if not same:
            _check_may_replace(known, token, values)
            # Labels steer what is placed there: what it has, only a token changes.
            labels = known.labels | token.labels
            await connection.execute(update(Host).where(Host.id == host_id).values(**values | {"labels": labels}))
    await connection.execute(update(HostToken).where(HostToken.id == token.id).values(host_id=host_id))
    return host_id


def _check_may_replace(known: Row[Any], token: Row[Any], values: dict[str, Any]) -> None:
    if token.name is None:
        raise NameTaken(
            f"there is a host named '{known.name}' already: join under another name (--name), or make a token "
            f"for it: cairn host token --name {known.name}",
            name=known.name,
        )
    if known.backend != values["backend"]:
        raise NameTaken(f"host '{known.name}' has the engine {known.backend}: remove it first, or take another name")


def _void() -> Unauthenticated:
    return Unauthenticated("the token is not valid (any more): make another with 'cairn host token'")
