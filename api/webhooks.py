"""``/v1/webhooks``: where the project's events are sent, and what became of them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Row, delete, func, insert, literal, select, text, update
from sqlalchemy.engine import CursorResult

from api import user_urls, vault
from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.instance_schemas import Name
from api.paging import OfName, Paging, page_of
from api.resources import named, unique_name
from drivers import outbound
from model.base import new_id
from model.errors import InvalidState, NotFound, QuotaExceeded
from model.events import LAST, NEWEST_SETTLED, TypePattern, id_of
from model.secrets import new_webhook_secret
from model.webhooks import DeliveryState, Webhook, WebhookDelivery

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=RESPONSES)

#: Webhooks of one project.
MOST = 100
#: All but the secret in clear, which the API cannot read, and what only the workers need.
_shown = [column for column in Webhook.__table__.columns if column.name not in ("secret", "in_hand_until")]
_CALL = text("SELECT pg_notify('cairn', 'webhook')")


def _without_credentials(url: str) -> str:
    if user_urls.has_credentials(url):
        raise ValueError("a URL is shown to the whole project: leave the name and password out")
    return url


Url = Annotated[
    str, Field(min_length=1, max_length=outbound.MOST_URL, pattern=r"^[!-~]+$"), AfterValidator(_without_credentials)
]
Secret = Annotated[str, Field(min_length=16, max_length=200, pattern=r"^[!-~]+$")]
Events = Annotated[list[TypePattern], Field(min_length=1, max_length=50)]


class WebhookCreate(BaseModel):
    """``POST /v1/webhooks``. ``events``: types, prefixes such as ``instance.``, or ``*``; without a ``secret`` one is
    made, and shown in the answer, once."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "chat", "url": "https://example.com/hook", "events": ["instance.error", "host."]}]
        },
    )

    name: Name
    url: Url
    events: Events = ["*"]
    secret: Secret | None = None
    active: bool = True


class WebhookPatch(BaseModel):
    """``PATCH /v1/webhooks/{id}``: what is not named stays. One that is switched on again begins with what comes."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"active": True}]})

    name: Name | None = None
    url: Url | None = None
    events: Events | None = None
    secret: Secret | None = None
    active: bool | None = None


class WebhookView(BaseModel):
    id: str
    project_id: str
    name: str
    url: str
    events: list[str]
    active: bool
    #: Why the platform switched it off: ``gone`` (its receiver answered 410), ``failing``.
    disabled_reason: str | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: Only in the answer that made it, where it was not given.
    secret: str | None = None


class DeliveryView(BaseModel):
    #: What the receiver sees as ``X-Cairn-Delivery``, at every attempt.
    id: str
    webhook_id: str
    event_id: str
    event_type: str
    state: DeliveryState
    attempts: int
    next_attempt_at: dt.datetime | None
    last_attempt_at: dt.datetime | None
    #: What the receiver answered last.
    status_code: int | None
    error: str | None
    created_at: dt.datetime


@router.post("", status_code=201, responses=also(429), response_model=Envelope[WebhookView])
async def create(request: Request, caller: Annotated[Caller, may("webhooks:write")], body: WebhookCreate) -> Response:
    """Send the project's events to a URL, from now on. 422 `url_refused` where it leads to no public address."""
    async with user_urls.looked_up(request, caller, body.url) as again:
        webhook_id, keyring = new_id(), vault.keyring(request)
        asked = vault.fingerprinted(keyring, again, body.model_dump(mode="json", exclude_unset=True), "secret")
        if answered := await Acceptance(request, again).answered_before(webhook_id, *asked):
            row = await _find(again, answered.resource_id)
            return answer(request, _view(row), 201, headers={"ETag": etag(row.version)})
        secret = body.secret or new_webhook_secret()
        mine = select(func.count()).select_from(Webhook).where(Webhook.project_id == again.project_id)
        if (await again.execute(mine)).scalar_one() >= MOST:
            raise QuotaExceeded(f"a project has at most {MOST} webhooks", webhooks=MOST)
        values = {"name": body.name, "url": body.url, "events": body.events, "active": body.active}
        row = await _write(
            again,
            body.name,
            insert(Webhook)
            .values(id=webhook_id, project_id=again.project_id, **values, **await _now(again))
            .returning(*_shown),
        )
        await vault.keep(again, keyring, secret, webhook_id=webhook_id)
        again.changed("webhook", webhook_id, after=_told(row))
        data = _view(row) | ({} if body.secret else {"secret": secret})
        return answer(request, data, 201, headers={"ETag": etag(row.version)})


@router.get("", response_model=Envelope[list[WebhookView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("webhooks:read")],
    page: Paging,
    name: OfName = None,
    active: bool | None = None,
) -> Response:
    """The project's webhooks, newest first."""
    query = select(*_shown).where(*named(Webhook, caller, name))
    if active is not None:
        query = query.where(Webhook.active == active)
    return await page_of(request, caller, query, Webhook.__table__.c.id, page, _view)


@router.get("/{webhook_id}", response_model=Envelope[WebhookView])
async def show(request: Request, webhook_id: UUID, caller: Annotated[Caller, may("webhooks:read")]) -> Response:
    """One webhook, without its secret."""
    row = await _find(caller, webhook_id)
    return answer(request, _view(row), headers={"ETag": etag(row.version)})


@router.patch("/{webhook_id}", response_model=Envelope[WebhookView])
async def patch(
    request: Request, webhook_id: UUID, caller: Annotated[Caller, may("webhooks:write")], body: WebhookPatch
) -> Response:
    """Change a webhook. With `active: true` one that was switched off begins again, with the events from then on;
    with `active: false` what is pending dies."""
    async with user_urls.looked_up(request, caller, body.url) as again:
        row = await _find(again, webhook_id, lock=True)
        check_if_match(request, row.version)
        again.changed("webhook", webhook_id, before=_told(row))
        values = body.model_dump(exclude_none=True)
        if body.secret is not None:
            await vault.keep(again, vault.keyring(request), body.secret, webhook_id=webhook_id)
            values["secret"] = None  # what was in clear is older
        if values:
            pending = _deliveries(again, webhook_id, state=DeliveryState.PENDING)
            if body.active is True and not row.active:
                values |= {"disabled_reason": None, "dead_in_a_row": 0, **await _now(again)}
            elif body.active is False:
                values["disabled_reason"] = None
                off = {"state": DeliveryState.DEAD, "error": "the webhook was switched off"}
                await again.execute(update(WebhookDelivery).where(*pending).values(**off))
            elif body.url is not None and body.url != row.url:
                # Whatever was wrong with the other one: this is tried at once.
                await again.execute(update(WebhookDelivery).where(*pending).values(next_attempt_at=func.now()))
            values |= {"version": Webhook.version + 1, "updated_at": func.now()}
            changing = update(Webhook).where(Webhook.id == webhook_id).values(**values).returning(*_shown)
            row = await _write(again, body.name, changing)
            await again.execute(_CALL)
        again.changed("webhook", webhook_id, after=_told(row) | ({"secret": "another"} if body.secret else {}))
        return answer(request, _view(row), headers={"ETag": etag(row.version)})


@router.delete("/{webhook_id}", status_code=204)
async def remove(request: Request, webhook_id: UUID, caller: Annotated[Caller, may("webhooks:write")]) -> Response:
    """Forget a webhook and its deliveries. What is on its way at this moment may still arrive."""
    row = await _find(caller, webhook_id, lock=True)
    check_if_match(request, row.version)
    await caller.execute(delete(Webhook).where(Webhook.id == webhook_id))
    caller.changed("webhook", webhook_id, before=_told(row))
    return Response(status_code=204)


@router.get("/{webhook_id}/deliveries", response_model=Envelope[list[DeliveryView]])
async def deliveries(
    request: Request,
    webhook_id: UUID,
    caller: Annotated[Caller, may("webhooks:read")],
    page: Paging,
    state: Annotated[DeliveryState | None, Query()] = None,
) -> Response:
    """What became of events, newest first; those that ended are kept for 7 days."""
    await _find(caller, webhook_id)
    query = select(WebhookDelivery.__table__).where(*_deliveries(caller, webhook_id, state=state))
    return await page_of(request, caller, query, WebhookDelivery.__table__.c.id, page, _delivery)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", response_model=Envelope[DeliveryView])
async def redeliver(
    request: Request,
    webhook_id: UUID,
    delivery_id: UUID,
    caller: Annotated[Caller, may("webhooks:write")],
    body: Nothing | None = None,
) -> Response:
    """Send an event once more, under the same delivery id and with all its attempts; one that waits, at once."""
    webhook = await _find(caller, webhook_id, lock=True)
    this = (*_deliveries(caller, webhook_id), WebhookDelivery.id == delivery_id)
    row = (await caller.execute(select(WebhookDelivery.__table__).where(*this))).one_or_none()
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id} of webhook {webhook.name}")
    if await Acceptance(request, caller).answered_before(delivery_id, None):
        return answer(request, _delivery(row))
    if not webhook.active:
        raise InvalidState(f"webhook {webhook.name} is switched off: switch it on first", state="inactive")
    anew = {"state": DeliveryState.PENDING, "attempts": 0, "next_attempt_at": func.now(), "error": None}
    changing = update(WebhookDelivery).where(*this).values(**anew).returning(WebhookDelivery.__table__)
    row = (await caller.execute(changing)).one()
    await caller.execute(_CALL)
    caller.changed("webhook", webhook_id, after={"name": webhook.name, "redelivered": str(delivery_id)})
    return answer(request, _delivery(row))


async def _now(caller: Caller) -> dict[str, Any]:
    """A cursor that is before what comes, and after all that was."""
    found: CursorResult[int, int] = await caller.execute(NEWEST_SETTLED)
    epoch, settled = found.one()
    return {"epoch": epoch, "xid": settled, "number": LAST}


async def _find(caller: Caller, webhook_id: UUID, *, lock: bool = False) -> Row[Any]:
    query = select(*_shown).where(Webhook.project_id == caller.project_id, Webhook.id == webhook_id)
    row = (await caller.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id}")
    return row


async def _write(caller: Caller, name: str | None, statement: Any) -> Row[Any]:
    with unique_name("a webhook", name):
        return (await caller.execute(statement)).one()


def _deliveries(caller: Caller, webhook_id: UUID, *, state: DeliveryState | None = None) -> list[Any]:
    row = WebhookDelivery
    return [
        row.project_id == caller.project_id,
        row.webhook_id == webhook_id,
        row.state == state if state is not None else literal(True),
    ]


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in WebhookView.model_fields if name != "secret"}


def _told(row: Row[Any]) -> dict[str, Any]:
    """What the audit log shows of it."""
    return {name: getattr(row, name) for name in ("name", "url", "events", "active")}


def _delivery(row: Row[Any]) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in DeliveryView.model_fields},
        "event_id": id_of((row.epoch, row.xid, row.event_id)),
        "next_attempt_at": row.next_attempt_at if row.state == DeliveryState.PENDING else None,
    }
