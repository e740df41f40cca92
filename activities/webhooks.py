"""Webhooks: which events are to be delivered, and delivering them.

All that a run of deliveries has to know is in rows: the cursor of its webhook, and a delivery for each event up to
it that the webhook wants. A run may die anywhere; another one finds what is pending, and goes on there.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from uuid import UUID

import aiohttp
import structlog
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import transaction, use_project
from activities.secrets import Opened
from activities.shares import Shares
from drivers import outbound
from model.base import Frozen, new_id
from model.errors import UrlRefused
from model.events import LAST, NEWEST_SETTLED, as_json, event_order, is_covered, is_settled
from model.keyring import Keyring
from model.vault import SealedValue
from model.webhooks import (
    LONGEST_WAIT,
    MOST_DEAD,
    DeliveryState,
    Webhook,
    WebhookDelivery,
    WebhookRef,
    signature,
    wait_after,
)
from model.workflows import Event

#: The queue of deliveries: a receiver that is slow keeps nothing else waiting.
WEBHOOKS = "webhooks"
#: Deliveries that one round takes, and how long it goes on beginning others, seconds.
BATCH, ROUND_SECONDS = 20, 20.0
#: For one request, seconds.
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=5)
#: A run that has taken a batch is not looked for before this: its round, and once more where a worker died.
IN_HAND = dt.timedelta(minutes=3)
#: Rounds of one project that a process makes at once; another waits so many seconds, and takes no place meanwhile.
ROUNDS_OF_PROJECT, TURN_SECONDS = 10, 3.0
GONE = 410
log = structlog.get_logger()

_NOTIFY = text("SELECT pg_notify('cairn', '')")


class Batch(Frozen):
    """Pending deliveries of one webhook, oldest first; ``wait``: seconds until the first may be tried."""

    webhook: WebhookRef
    deliveries: list[UUID] = []
    wait: float = 0


class Job(NamedTuple):
    """One attempt."""

    url: str
    secret: str
    type: str
    body: bytes


class Answer(NamedTuple):
    """What came of it: the receiver's status, or why there is none; seconds that it asks to be left alone."""

    status: int | None
    error: str | None
    retry_after: float = 0

    @property
    def outcome(self) -> Literal["delivered", "gone", "failed"]:
        if self.status is not None and 200 <= self.status < 300:  # noqa: PLR2004 - 2xx
            return "delivered"
        return "gone" if self.status == GONE else "failed"


class Limits(NamedTuple):
    """``attempts`` of a delivery, spread over so many seconds; networks that may be reached all the same."""

    attempts: int
    spread: float
    allow: outbound.Networks


def switch_off(session: Session, webhook: Webhook, reason: str) -> None:
    """Deliver nothing more to it, and say so."""
    webhook.active, webhook.disabled_reason = False, reason
    webhook.version += 1
    webhook.updated_at = func.now()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook.id, WebhookDelivery.state == DeliveryState.PENDING)
        .values(state=DeliveryState.DEAD, error="the webhook was switched off")
    )
    session.execute(
        insert(Event).values(
            project_id=webhook.project_id,
            type="webhook.disabled",
            resource_type="webhook",
            resource_id=webhook.id,
            data={"name": webhook.name, "reason": reason},
        )
    )
    session.execute(_NOTIFY)


class WebhookRecords:
    """Webhooks in the database. Runs on the control queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="webhook.take")
    def take(self, ref: WebhookRef) -> Batch:
        """What is pending; nothing: the next events that are wanted become pending, and the cursor moves on."""
        with transaction(self._engine, ref.project_id) as session:
            webhook = session.get(Webhook, ref.webhook_id, with_for_update=True)
            if webhook is None or not webhook.active:
                return Batch(webhook=ref)
            pending = self._pending(session, webhook)
            if not pending:
                self._advance(session, webhook)
                pending = self._pending(session, webhook)
            wait = pending[0][1] if pending else 0
            webhook.in_hand_until = func.now() + IN_HAND if pending and wait <= 0 else None
            return Batch(webhook=ref, deliveries=[id for id, _ in pending], wait=max(wait, 0))

    def _pending(self, session: Session, webhook: Webhook) -> list[tuple[UUID, float]]:
        """Ids, and seconds until each may be tried."""
        row = WebhookDelivery
        wait = func.extract("epoch", row.next_attempt_at - func.clock_timestamp())
        query = select(row.id, wait).where(row.webhook_id == webhook.id, row.state == DeliveryState.PENDING)
        found = session.execute(query.order_by(row.epoch, row.xid, row.event_id).limit(BATCH))
        return [(id, float(seconds)) for id, seconds in found]

    def _advance(self, session: Session, webhook: Webhook) -> None:
        epoch, settled = session.execute(NEWEST_SETTLED).one()
        found = session.execute(
            select(Event.epoch, Event.xid, Event.id, Event.type)
            .where(
                Event.project_id == webhook.project_id,
                is_settled,
                event_order > (webhook.epoch, webhook.xid, webhook.number),
                is_covered(webhook.events),
            )
            .order_by(*event_order)
            .limit(BATCH)
        ).all()
        if found:
            common = {"project_id": webhook.project_id, "webhook_id": webhook.id}
            rows = [
                {"id": new_id(), "epoch": row.epoch, "xid": row.xid, "event_id": row.id, "event_type": row.type}
                for row in found
            ]
            session.execute(insert(WebhookDelivery), [common | row for row in rows])
            webhook.epoch, webhook.xid, webhook.number = found[-1][:3]
        if len(found) < BATCH and (epoch, settled, LAST) > (webhook.epoch, webhook.xid, webhook.number):
            webhook.epoch, webhook.xid, webhook.number = epoch, settled, LAST


class WebhookCalls:
    """The requests. Runs on a queue of its own, and, as it waits for strangers, without threads of its own."""

    def __init__(self, engine: Engine, limits: Limits, keyring: Keyring | None) -> None:
        self._engine = engine
        self._limits = limits
        self._keyring = keyring
        said = "its project's other webhooks are being delivered to"
        self._rounds = Shares(ROUNDS_OF_PROJECT, TURN_SECONDS, said)

    @activity.defn(name="webhook.deliver")
    async def deliver(self, batch: Batch) -> float:
        """Deliver them, in order; seconds to wait where one failed, 0 where there may be more. Raises OthersFirst.

        What was sent, and not written down, is sent again, under the same id.
        """
        with self._rounds.one(batch.webhook.project_id):
            return await self._round(batch)

    async def _round(self, batch: Batch) -> float:
        began = time.monotonic()
        owner = batch.webhook.project_id
        async with outbound.session(self._limits.allow, timeout=TIMEOUT, owner=owner) as client:
            for id in batch.deliveries:
                job = await asyncio.to_thread(self._load, batch.webhook, id)
                if isinstance(job, float):
                    return job
                if job is None:
                    continue
                answer = await self._post(client, id, job)
                if wait := await asyncio.to_thread(self._record, batch.webhook, id, answer):
                    return wait
                if time.monotonic() - began > ROUND_SECONDS:
                    break
        return 0.0

    def _load(self, ref: WebhookRef, id: UUID) -> Job | float | None:
        """What is to be sent; when, where that is later; None where it is not to be sent."""
        with Session(self._engine) as session, session.begin():
            use_project(session, ref.project_id)
            row = session.execute(
                select(WebhookDelivery, Webhook, Event)
                .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
                .outerjoin(Event, (Event.project_id == ref.project_id) & (Event.id == WebhookDelivery.event_id))
                .where(WebhookDelivery.id == id, WebhookDelivery.state == DeliveryState.PENDING, Webhook.active)
            ).one_or_none()
            if row is None:
                return None
            delivery, webhook, event = row
            if event is not None:
                wait: float = (delivery.next_attempt_at - dt.datetime.now(dt.UTC)).total_seconds()
                # A clock that differs a little from the database's does not make it wait again.
                return (
                    wait if wait > 1 else Job(webhook.url, self._secret(session, webhook), event.type, as_json(event))
                )
        with transaction(self._engine, ref.project_id) as session:
            session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.id == id, WebhookDelivery.state == DeliveryState.PENDING)
                .values(state=DeliveryState.DEAD, error="the event is no longer kept")
            )
        return None

    def _secret(self, session: Session, webhook: Webhook) -> str:
        """Raises KeyUnknown, EnvelopeBroken: its run fails, and another one is begun a while later."""
        if webhook.secret is not None:
            return webhook.secret
        row = session.scalars(select(SealedValue).where(SealedValue.webhook_id == webhook.id)).one()
        return Opened(session, self._keyring, webhook.project_id).sealed(row).decode()

    async def _post(self, client: aiohttp.ClientSession, id: UUID, job: Job) -> Answer:
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Cairn",
            "X-Cairn-Event": job.type,
            "X-Cairn-Delivery": str(id),
            "X-Cairn-Timestamp": str(now),
            "X-Cairn-Signature": signature(job.secret, now, job.body),
        }
        try:
            async with client.post(job.url, data=job.body, headers=headers, allow_redirects=False) as response:
                # Its body is not read: it is nobody's answer to the user who named the URL.
                return _answer(response.status, response.headers.get("Retry-After"))
        except UrlRefused as refused:
            return Answer(None, refused.message)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            return Answer(None, f"no answer within {TIMEOUT.total:g} s" if late else _said(error))

    def _record(self, ref: WebhookRef, id: UUID, answer: Answer) -> float:
        """Write down what came of it; seconds until it is tried again, 0: not."""
        with transaction(self._engine, ref.project_id) as session:
            webhook = session.get(Webhook, ref.webhook_id, with_for_update=True)
            delivery = session.get(WebhookDelivery, id)
            if webhook is None or delivery is None or delivery.state != DeliveryState.PENDING:
                return 0.0
            webhook.in_hand_until = func.now() + IN_HAND
            delivery.attempts += 1
            delivery.last_attempt_at = func.now()
            delivery.status_code, delivery.error = answer.status, answer.error
            if answer.outcome == "delivered":
                delivery.state = DeliveryState.DELIVERED
                webhook.dead_in_a_row = 0
                return 0.0
            log.info("webhook.failed", webhook_id=str(webhook.id), attempt=delivery.attempts, error=answer.error)
            if answer.outcome == "gone":
                delivery.state = DeliveryState.DEAD
                switch_off(session, webhook, "gone")
            elif delivery.attempts >= self._limits.attempts:
                delivery.state = DeliveryState.DEAD
                webhook.dead_in_a_row += 1
                if webhook.dead_in_a_row >= MOST_DEAD:
                    switch_off(session, webhook, "failing")
            else:
                usual = wait_after(delivery.attempts, attempts=self._limits.attempts, spread=self._limits.spread)
                wait = max(usual, min(answer.retry_after, LONGEST_WAIT))
                delivery.next_attempt_at = func.now() + dt.timedelta(seconds=wait)
                webhook.in_hand_until = None
                return wait
            return 0.0


def _answer(status: int, retry_after: str | None) -> Answer:
    if 200 <= status < 300:  # noqa: PLR2004 - 2xx
        return Answer(status, None)
    redirects = 300 <= status < 400  # noqa: PLR2004 - 3xx
    said = "it redirects, which is not followed" if redirects else f"it answered {status}"
    return Answer(status, said, _seconds(retry_after))


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header: seconds, or a date. Whatever it says, what came of the request is written down."""
    if not retry_after:
        return 0
    if retry_after.isascii() and retry_after.isdecimal():
        return min(float(retry_after), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(retry_after) - dt.datetime.now(dt.UTC)
    except (ValueError, TypeError, OverflowError):
        return 0
    return max(0.0, min(until.total_seconds(), LONGEST_WAIT))


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
