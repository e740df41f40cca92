"""Webhooks: where events are sent, what becomes of each, and how it is signed."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Id, Now

#: Each wait is so many times the one before.
GROWTH = 2.5
#: A webhook of which so many deliveries died, one after the other, is switched off.
MOST_DEAD = 5
#: Deliveries that have ended are kept so long.
KEPT = dt.timedelta(days=7)
#: What a receiver asks for with Retry-After is granted up to this.
LONGEST_WAIT = 3600.0


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Webhook(Base):
    """Its cursor (epoch, xid, number) is the last event that was looked at: what is wanted of those up to it has a
    delivery."""

    __tablename__ = "webhooks"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str]
    #: Types and prefixes.
    events: Mapped[list[Any]]
    #: In clear, as a release before this wrote it: newer than what is sealed (model.vault.SealedValue), and soon to be
    #: that. Only the workers may read the column.
    secret: Mapped[str | None]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    #: Why the platform has switched it off: gone (its receiver said so), failing.
    disabled_reason: Mapped[str | None]
    #: Deliveries that died, one after the other.
    dead_in_a_row: Mapped[int] = mapped_column(server_default=text("0"))
    epoch: Mapped[int]
    xid: Mapped[int] = mapped_column(BigInteger)
    number: Mapped[int] = mapped_column(BigInteger)
    #: A run is delivering to it; one that has died is looked for again then.
    in_hand_until: Mapped[dt.datetime | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("disabled_reason IS NULL OR NOT active", name="disabled"),
        Index("ix_webhooks_secret", "id", postgresql_where=text("secret IS NOT NULL")),
    )


class WebhookDelivery(Base):
    """One event for one webhook. Its id is the same at every attempt."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    webhook_id: Mapped[UUID]
    #: The event, in the order of events. No foreign key: events are purged by their own age.
    epoch: Mapped[int]
    xid: Mapped[int] = mapped_column(BigInteger)
    event_id: Mapped[int] = mapped_column(BigInteger)
    event_type: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    next_attempt_at: Mapped[Now]
    last_attempt_at: Mapped[dt.datetime | None]
    #: What the receiver answered last; None: it did not.
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "webhook_id"], ["webhooks.project_id", "webhooks.id"], ondelete="CASCADE"),
        UniqueConstraint("webhook_id", "event_id"),
        CheckConstraint("state IN ({})".format(", ".join(f"'{s}'" for s in DeliveryState)), name="state"),
        Index("ix_webhook_deliveries_list", "project_id", "webhook_id", "id"),
        Index(
            "ix_webhook_deliveries_pending",
            *("webhook_id", "epoch", "xid", "event_id"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_webhook_deliveries_ended", "created_at", postgresql_where=text("state <> 'pending'")),
    )


class WebhookRef(Frozen):
    """What a run of deliveries is started with: everything else it reads from rows."""

    project_id: UUID
    webhook_id: UUID


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """``v1=`` and the hexadecimal HMAC-SHA256 of ``timestamp.body``."""
    signed = hmac.new(secret.encode(), str(timestamp).encode() + b"." + body, hashlib.sha256)
    return f"v1={signed.hexdigest()}"


def wait_after(attempt: int, *, attempts: int, spread: float) -> float:
    """Seconds between ``attempt`` (the first is 1) and the next; all waits together are ``spread``."""
    weights = [GROWTH**number for number in range(attempts - 1)]
    return spread * weights[attempt - 1] / sum(weights)
