"""What host agents ask for: to join, and to renew the leases of their hosts.

An agent has a credential of its own, which opens nothing else: it reads and writes its own hosts.
"""

from __future__ import annotations

import binascii
import datetime as dt
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Row, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api import audit_rows, limits
from api.authentication import check_body, key_of
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.former_hosts import former
from api.instance_schemas import LabelName, LabelValue, Name, Text
from model import versions
from model.errors import NameTaken, Unauthenticated, Unavailable, ValidationFailed
from model.hosts import RENEW_SECONDS, Backend, Host, HostToken, is_simulated_name
from model.projects import Installation
from model.secrets import digest
from model.settings import Settings
from model.tickets import verifying_key


class JoiningRoute(APIRoute):
    """Who joins has no API key: what is wrong with its body is said without looking for one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_joining(request: Request) -> Response:
            request.state.authenticated = True
            return await handle(request)

        return handle_joining


class MemberRoute(APIRoute):
    """For agents that have joined. A body that is no JSON is found before its sender was asked who it is: what is
    wrong with it is said to those only who show a host's credential."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_member(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, HTTPException):
                if not getattr(request.state, "authenticated", False):
                    async with request.app.state.engine.connect() as connection:
                        await _credential(request, connection)
                    request.state.authenticated = True
                raise

        return handle_member


router = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES)
joining, members = APIRouter(route_class=JoiningRoute), APIRouter(route_class=MemberRoute)
log = structlog.get_logger()
MOST_HOSTS = 500
MOST_FENCE_SECONDS = 10_000_000
HOST_ID = "0199b3f0-0000-7000-8000-000000000001"  # in examples
X25519_BYTES = 32
#: What makes a machine that asks again the one that asked before.
WHO = ("credential", "public_key", "fingerprint")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def _key(value: str) -> str:
    try:
        if len(b64decode(value, validate=True)) == X25519_BYTES:
            return value
    except (ValueError, binascii.Error):
        pass
    raise ValueError("expected 32 bytes in base64")


def _url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError:
        port = 0
    rebuilt = f"https://{parts.netloc}"
    if value.rstrip("/") != rebuilt or not parts.hostname or "@" in parts.netloc or port == 0 or not _is_plain(value):
        raise ValueError("expected https://address:port")
    return rebuilt


def _is_plain(value: str) -> bool:
    """Visible ASCII, as addresses are on the wire."""
    return all("!" <= character <= "~" for character in value) and not set(value) & set('\\"<>^`{|}')


AgentUrl = Annotated[str, Field(max_length=255), AfterValidator(_url)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[Text, Field(max_length=100)]


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


class HostLease(BaseModel):
    """One host of the agent, and the digest of what its engine holds (null: the engine is away)."""

    model_config = ConfigDict(extra="forbid")

    id: UUID
    inventory: Sha256 | None = None


class Renew(BaseModel):
    """``POST /v1/hosts/lease``. Of an agent that is not ``working`` (Temporal does not answer it) nothing is renewed:
    it hears where all is now."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"hosts": [{"id": HOST_ID}]}]})

    hosts: Annotated[list[HostLease], Field(min_length=1, max_length=MOST_HOSTS)]
    agent_url: AgentUrl | None = None
    versions: dict[LabelName, Version] | None = Field(default=None, max_length=16)
    #: What the agent was granted last, and goes by until it hears the answer.
    fence_after_seconds: Annotated[float, Field(ge=0, le=MOST_FENCE_SECONDS)] | None = None
    working: bool = True


class Renewed(BaseModel):
    renew_seconds: float
    fence_after_seconds: float
    temporal_address: str
    ticket_keys: list[str]
    hosts: list[dict[str, str]]


class Agent:
    """An authenticated agent, and its open transaction."""

    def __init__(self, connection: AsyncConnection, credential: bytes) -> None:
        self.connection = connection
        self.credential = credential


async def _connected(request: Request) -> AsyncIterator[AsyncConnection]:
    """A transaction that belongs to no project."""
    engine: AsyncEngine = request.app.state.engine
    request.state.authenticated = True  # by what the agent shows, not by an API key
    await check_body(request)
    async with engine.begin() as connection:
        yield connection


_documented = HTTPBearer(auto_error=False, scheme_name="HostCredential")


async def _agent(
    request: Request,
    connection: Annotated[AsyncConnection, Depends(_connected, scope="function")],
    _documented_as: Annotated[Any, Security(_documented)],
) -> Agent:
    return Agent(connection, await _credential(request, connection))


async def _credential(request: Request, connection: AsyncConnection) -> bytes:
    """The digest of what the agent shows of itself. Raises Unauthenticated where no host has it."""
    credential = digest(key_of(request))
    known = await connection.execute(select(Host.id).where(Host.credential == credential).limit(1))
    if known.one_or_none() is None:
        await limits.count_stranger(request)
        raise Unauthenticated("the host's credential is not valid: has the host been removed, or joined anew?")
    return credential


Connected = Annotated[AsyncConnection, Depends(_connected, scope="function")]
Authenticated = Annotated[Agent, Depends(_agent, scope="function")]

_RENEW = text(
    """
    UPDATE hosts h SET last_seen_at = now(), inventory = coalesce(w.inventory, h.inventory),
        -- What it goes by may be longer than what it is granted here, until it has heard of that.
        fence_after = greatest(
            cast(:granted AS double precision), coalesce(cast(:goes_by AS double precision), h.fence_after)
        ),
        agent_url = coalesce(:agent_url, h.agent_url), versions = h.versions || coalesce(cast(:versions AS jsonb), '{}')
    FROM (SELECT id, inventory FROM unnest(cast(:ids AS uuid[]), cast(:inventories AS text[])) AS u(id, inventory)) w
    JOIN hosts before ON before.id = w.id
    WHERE h.id = w.id AND h.credential = :credential
    RETURNING h.id, h.name, h.state, w.inventory IS DISTINCT FROM before.inventory AND w.inventory IS NOT NULL AS news
    """
)
_KNOWN = text(
    "SELECT id, name, state, false AS news FROM hosts WHERE id = ANY(cast(:ids AS uuid[])) AND credential = :credential"
)
_CALL_SWEEPER = text("SELECT pg_notify('cairn_sweep', '')")


@joining.post("/register", status_code=201, responses=also(409), response_model=Envelope[Registered])
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
        "temporal_address": _as_seen_by(request, settings.temporal_address),
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


def _as_seen_by(request: Request, address: str) -> str:
    """Where the agent finds what is on our loopback: at the address at which it found us."""
    host, _, port = address.rpartition(":")
    met = request.url.hostname or host
    if host not in LOOPBACK or met in LOOPBACK:
        return address
    return f"[{met}]:{port}" if ":" in met else f"{met}:{port}"


@members.post("/lease", operation_id="renew_leases", response_model=Envelope[Renewed])
async def renew(request: Request, body: Renew, agent: Authenticated) -> Response:
    """Renew the leases of the agent's hosts, and say what their engines hold."""
    settings: Settings = request.app.state.settings
    asked = {"ids": [str(host.id) for host in body.hosts], "credential": agent.credential}
    if body.working:
        told = {
            "inventories": [host.inventory for host in body.hosts],
            "agent_url": body.agent_url,
            "versions": None if body.versions is None else orjson.dumps(body.versions).decode(),
            "granted": settings.fence_after,
            "goes_by": body.fence_after_seconds,
        }
        rows = (await agent.connection.execute(_RENEW, asked | told)).all()
    else:
        rows = (await agent.connection.execute(_KNOWN, asked)).all()
    if any(row.news for row in rows):
        await agent.connection.execute(_CALL_SWEEPER)
    data = {
        "renew_seconds": RENEW_SECONDS,
        "fence_after_seconds": settings.fence_after,
        "temporal_address": _as_seen_by(request, settings.temporal_address),
        "ticket_keys": ticket_keys(settings),
        "hosts": [{"id": row.id, "name": row.name, "state": row.state} for row in rows],
    }
    return answer(request, data)


def ticket_keys(settings: Settings) -> list[str]:
    """What agents check tickets with: that of the key in use first."""
    keys = (settings.ticket_key, settings.ticket_key_other)
    return [verifying_key(key.get_secret_value()) for key in keys if key]


for _routes in (joining, members):
    router.include_router(_routes)
