"""The audit log: who did what, or was refused; and the chain of hashes that shows that nobody changed it since.

Rows are written in the transactions of what they tell of, and linked later, in batches and in commit order: so nobody
who writes waits for another. Each project has a chain of its own, and the platform one: that of the nil project.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Now
from model.keyring import Keyring
from model.permissions import ACCOUNT, PLATFORM

#: Of what belongs to no project.
NOWHERE = UUID(int=0)
#: What the keys under which heads are signed are derived for.
PURPOSE = "audit"

Outcome = Literal["allowed", "denied"]


class AuditEntry(Base):
    """One request that changed something, or was refused. No foreign keys: it outlives what it tells of."""

    __tablename__ = "audit"

    #: The nil UUID: the platform's.
    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    #: With the id, where it stands among the others: in commit order, as events.
    epoch: Mapped[int] = mapped_column(server_default=text("current_epoch()"))
    xid: Mapped[int] = mapped_column(BigInteger, server_default=text("pg_current_xact_id()::text::bigint"))
    at: Mapped[Now]
    #: ``key:laptop``, ``user:jo@example.org``, ``service-account:ci``; ``unknown`` of who could not show who it is.
    actor: Mapped[str]
    user_id: Mapped[UUID | None]
    service_account_id: Mapped[UUID | None]
    key_id: Mapped[UUID | None]
    #: The permission that it needs: ``instances:create``.
    action: Mapped[str]
    #: Method and route: ``POST /v1/instances``.
    operation: Mapped[str]
    outcome: Mapped[str]
    #: Of what was denied: the error's code, and its HTTP status.
    code: Mapped[str | None]
    status: Mapped[int | None]
    resource_type: Mapped[str | None]
    #: An id, or the name of what has none (instance types).
    resource_id: Mapped[str | None]
    #: What was changed, without secrets.
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    address: Mapped[str | None]
    agent: Mapped[str | None]
    request_id: Mapped[str]
    workflow_id: Mapped[UUID | None]

    __table_args__ = (
        CheckConstraint("outcome IN ('allowed', 'denied')", name="outcome"),
        Index("ix_audit_order", "epoch", "xid", "id"),
        Index("ix_audit_resource", "project_id", "resource_id", "id"),
    )


class AuditLink(Base):
    """One link of a project's chain."""

    __tablename__ = "audit_links"

    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: From 1, without gaps.
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    audit_id: Mapped[UUID]
    hash: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (UniqueConstraint("project_id", "audit_id"),)


class AuditHead(Base):
    """Where a project's chain ends, signed: who can write to the database alone cannot make another."""

    __tablename__ = "audit_heads"

    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    #: Of the last row that is linked.
    epoch: Mapped[int]
    xid: Mapped[int] = mapped_column(BigInteger)
    audit_id: Mapped[UUID]
    #: The master key that the signing key was derived from.
    key_id: Mapped[str]
    mac: Mapped[bytes] = mapped_column(LargeBinary)
    sealed_at: Mapped[Now]

    __table_args__ = (Index("ix_audit_heads_order", "epoch", "xid", "audit_id"),)


class Head(NamedTuple):
    """Where a chain ends: how many links, the last hash, and the last row's place in commit order."""

    position: int
    hash: bytes
    epoch: int
    xid: int
    audit_id: UUID


class SignedHead(Protocol):
    """A row of ``audit_heads``."""

    project_id: Any
    position: Any
    hash: Any
    epoch: Any
    xid: Any
    audit_id: Any
    key_id: Any
    mac: Any


def chain_of(action: str, project_id: UUID) -> UUID:
    """Where what is done under a permission belongs: in a project, or to the platform (also one's own account)."""
    return NOWHERE if action in PLATFORM or action in ACCOUNT else project_id


#: All that a link vouches for.
COLUMNS = tuple(AuditEntry.__table__.c)
_NAMES = tuple(column.name for column in COLUMNS)


def shown(values: Iterable[Any]) -> dict[str, Any]:
    """The values of ``COLUMNS`` in plain types: UUIDs as text, times in UTC (ISO 8601)."""
    found: dict[str, Any] = {}
    for name, value in zip(_NAMES, values, strict=True):
        if isinstance(value, UUID):
            found[name] = str(value)
        elif isinstance(value, dt.datetime):
            found[name] = value.astimezone(dt.UTC).isoformat()
        else:
            found[name] = value
    return found


def canonical(entry: dict[str, Any]) -> str:
    """The one text of a row: JSON with sorted keys and no spaces, as anybody's JSON library can write it again."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def beginning(project_id: UUID) -> bytes:
    """What stands before a chain's first link."""
    return hashlib.sha256(f"cairn audit {project_id}".encode()).digest()


def linked(previous: bytes, entry: str) -> bytes:
    """The hash of the next link: SHA-256 over the hash before it and the row's canonical text."""
    return hashlib.sha256(previous + entry.encode()).digest()


def signed(keyring: Keyring, key_id: str, project_id: UUID, head: Head) -> bytes:
    """HMAC-SHA256 over where a chain ends. Raises KeyUnknown."""
    said = f"{project_id} {head.position} {head.hash.hex()} {head.epoch} {head.xid} {head.audit_id}"
    return hmac.digest(keyring.derive(key_id, PURPOSE), said.encode(), "sha256")


def head_of(row: SignedHead) -> Head:
    return Head(row.position, bytes(row.hash), row.epoch, row.xid, row.audit_id)


def is_genuine(keyring: Keyring, row: SignedHead) -> bool:
    """Whether the platform signed this head. Raises KeyUnknown."""
    return hmac.compare_digest(signed(keyring, row.key_id, row.project_id, head_of(row)), bytes(row.mac))
