"""``/v1/audit``: who did what, or was refused."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, select

from api import signing
from api.audit_checks import Remembered, Verdict, export, verify
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.openapi_parts import download
from api.paging import Paging, page_of
from api.samples import Time
from api.streamed import Bounded
from model.audit import NOWHERE, AuditEntry, Outcome
from model.errors import TooManyStreams

router = APIRouter(prefix="/v1/audit", tags=["audit"], responses=RESPONSES)

#: Verifications and exports at once in one process.
AT_ONCE = 4
Word = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]
OfPlatform = Annotated[bool, Query(description="What belongs to no project; for platform administrators")]


class AuditView(BaseModel):
    id: str
    #: null: the platform's.
    project_id: str | None
    at: dt.datetime
    #: `unknown`: who could not show who it is.
    actor: str
    user_id: str | None
    service_account_id: str | None
    key_id: str | None
    #: The permission that it needs.
    action: str
    #: Method and route.
    operation: str
    outcome: Outcome
    #: Of what was denied. `repeated`: more of the same, `after.more` times.
    code: str | None
    status: int | None
    resource_type: str | None
    resource_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    address: str | None
    agent: str | None
    request_id: str
    workflow_id: str | None


class Known(Remembered):
    model_config = ConfigDict(extra="forbid")

    position: Annotated[int, Field(ge=1, lt=2**63)]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Verify(BaseModel):
    """``POST /v1/audit/verify``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    #: The `head` of an earlier answer: a chain that was cut off there, or made anew, is found by it.
    remembered: Known | None = None


_columns = [AuditEntry.__table__.c[name] for name in AuditView.model_fields]


@router.get("", response_model=Envelope[list[AuditView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("audit:read")],
    page: Paging,
    actor: Word = None,
    action: Word = None,
    resource_type: Word = None,
    resource_id: Word = None,
    outcome: Annotated[Outcome | None, Query()] = None,
    since: Annotated[Time | None, Query()] = None,
    until: Annotated[Time | None, Query()] = None,
    platform: OfPlatform = False,
) -> Response:
    """What was done in the project, and what was refused, newest first: `since` inclusive, `until` exclusive."""
    chain = await _chain(caller, platform)
    query = select(*_columns).where(AuditEntry.project_id == chain)
    wanted = {
        "actor": actor,
        "action": action,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "outcome": outcome,
    }
    for name, value in wanted.items():
        if value is not None:
            query = query.where(AuditEntry.__table__.c[name] == value)
    if since is not None:
        query = query.where(AuditEntry.at >= since)
    if until is not None:
        query = query.where(AuditEntry.at < until)
    return await page_of(request, caller, query, AuditEntry.__table__.c.id, page, _view)


@router.get(
    "/export",
    response_class=Response,
    summary="Export the audit log",
    operation_id="stream_audit_export",
    responses=also(429) | {200: download("application/x-ndjson")},
)
async def export_(
    request: Request, caller: Annotated[Caller, may("audit:read")], platform: OfPlatform = False
) -> Response:
    """All of the log as lines of JSON (NDJSON), in commit order: `{"entry", "hash", "position"}`, where what is not
    linked yet has no hash; and last `{"end": {"entries", "head"}}`, without which it is not whole."""
    chain = await _chain(caller, platform)
    await caller.release()
    release = _place(request, chain)
    # Who takes nothing of it for a while is cut off.
    return Bounded(export(caller, chain), "application/x-ndjson", release)


@router.post("/verify", summary="Verify the audit log", response_model=Envelope[Verdict], responses=also(429))
async def verify_(
    request: Request,
    caller: Annotated[Caller, may("audit:read")],
    body: Verify | None = None,
    platform: OfPlatform = False,
) -> Response:
    """Go through the whole chain of the project's log. `broken` names the first place where it is not what it was."""
    chain = await _chain(caller, platform)
    await caller.release()  # it changes nothing: it is no row of the log
    release = _place(request, chain)
    try:
        remembered = (body or Verify()).remembered
        verdict = await verify(caller, chain, signing.keyring(request.app.state.settings), remembered)
    finally:
        release()
    return answer(request, verdict.model_dump())


async def _chain(caller: Caller, platform: bool) -> UUID:
    if not platform:
        return caller.project_id
    caller.require("platform_audit:read")
    await caller.enter_platform()
    return NOWHERE


def _place(request: Request, chain: UUID) -> Callable[[], None]:
    """What gives it back. One project has one, however slowly it reads. Raises TooManyStreams."""
    places: set[UUID] = request.app.state.audit_places
    if len(places) >= AT_ONCE or chain in places:
        raise TooManyStreams(f"{AT_ONCE} audit logs are gone through already, or this one: try again in a moment")
    places.add(chain)
    return partial(places.discard, chain)


def _view(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping) | {"project_id": None if row.project_id == NOWHERE else row.project_id}
