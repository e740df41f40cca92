"""``/v1/hosts/lease``: agents renew the leases of their hosts."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import text

from api.agent_credentials import Authenticated, MemberRoute
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import LabelName, Text
from model.hosts import RENEW_SECONDS
from model.settings import Settings
from model.tickets import verifying_key

router = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES, route_class=MemberRoute)
MOST_HOSTS = 500
MOST_FENCE_SECONDS = 10_000_000
HOST_ID = "0199b3f0-0000-7000-8000-000000000001"  # in examples
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


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


class HostLease(BaseModel):
    """One host of the agent, and the digest of what its engine holds (null: the engine is away).

    What a newer agent says besides is passed over: its lease goes on where the platform is rolled back."""

    model_config = ConfigDict(extra="ignore")

    id: UUID
    inventory: Sha256 | None = None
    #: What the agent can do there beyond what every agent can. One that does not say can do none of that.
    capabilities: Annotated[list[LabelName], Field(max_length=64)] = []


class Renew(BaseModel):
    """``POST /v1/hosts/lease``. Of an agent that is not ``working`` (Temporal does not answer it) nothing is renewed:
    it hears where all is now. What a newer agent says besides is passed over."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"hosts": [{"id": HOST_ID}]}]})

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


_RENEW = text(
    """
    UPDATE hosts h SET last_seen_at = now(), inventory = coalesce(w.inventory, h.inventory),
        capabilities = cast(w.capabilities AS jsonb),
        -- What it goes by may be longer than what it is granted here, until it has heard of that.
        fence_after = greatest(
            cast(:granted AS double precision), coalesce(cast(:goes_by AS double precision), h.fence_after)
        ),
        agent_url = coalesce(:agent_url, h.agent_url), versions = h.versions || coalesce(cast(:versions AS jsonb), '{}')
    FROM (
        SELECT id, inventory, capabilities
        FROM unnest(cast(:ids AS uuid[]), cast(:inventories AS text[]), cast(:capabilities AS text[]))
            AS u(id, inventory, capabilities)
    ) w
    JOIN hosts before ON before.id = w.id
    WHERE h.id = w.id AND h.credential = :credential
    RETURNING h.id, h.name, h.state, w.inventory IS DISTINCT FROM before.inventory AND w.inventory IS NOT NULL AS news
    """
)
_KNOWN = text(
    "SELECT id, name, state, false AS news FROM hosts WHERE id = ANY(cast(:ids AS uuid[])) AND credential = :credential"
)
_CALL_SWEEPER = text("SELECT pg_notify('cairn_sweep', '')")


@router.post("/lease", operation_id="renew_leases", response_model=Envelope[Renewed])
async def renew(request: Request, body: Renew, agent: Authenticated) -> Response:
    """Renew the leases of the agent's hosts, and say what their engines hold."""
    settings: Settings = request.app.state.settings
    asked = {"ids": [str(host.id) for host in body.hosts], "credential": agent.credential}
    if body.working:
        told = {
            "inventories": [host.inventory for host in body.hosts],
            "capabilities": [orjson.dumps(host.capabilities).decode() for host in body.hosts],
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
        "temporal_address": as_seen_by(request, settings.temporal_address),
        "ticket_keys": ticket_keys(settings),
        "hosts": [{"id": row.id, "name": row.name, "state": row.state} for row in rows],
    }
    return answer(request, data)


def as_seen_by(request: Request, address: str) -> str:
    """Where the agent finds what is on our loopback: at the address at which it found us."""
    host, _, port = address.rpartition(":")
    met = request.url.hostname or host
    if host not in LOOPBACK or met in LOOPBACK:
        return address
    return f"[{met}]:{port}" if ":" in met else f"{met}:{port}"


def ticket_keys(settings: Settings) -> list[str]:
    """What agents check tickets with: that of the key in use first."""
    keys = (settings.ticket_key, settings.ticket_key_other)
    return [verifying_key(key.get_secret_value()) for key in keys if key]
