"""The installation, its projects, their quotas and API keys."""

from __future__ import annotations

import datetime as dt
from typing import Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Id, Now

#: What quotas count, in the order in which they are checked.
QUOTAS = ("instances", "vcpus", "memory_mb")
Quota = Literal["none", "reserved", "used"]
DriftPolicy = Literal["report", "heal"]


class Installation(Base):
    """One row: which Cairn this database belongs to."""

    __tablename__ = "installation"

    id: Mapped[Id]
    #: Grows when the database is restored into a new cluster, whose transaction ids start over.
    epoch: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]

    __table_args__ = (Index("uq_installation_one", text("(true)"), unique=True),)


class Pulse(Base):
    """When a kind of process was last known to work, and since when without a longer pause.

    Hosts renew their leases through the API, and are judged by the tick: after either was away, silence says
    nothing of a host.
    """

    __tablename__ = "pulses"

    process: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[Now]
    since: Mapped[Now]


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    #: What is done about instances that differ from what they should be: report or heal.
    drift_policy: Mapped[str] = mapped_column(server_default=text("'report'"))
    created_at: Mapped[Now]

    __table_args__ = (CheckConstraint("drift_policy IN ('report', 'heal')", name="drift_policy"),)


class ProjectQuota(Base):
    """One row per project, so that one conditional update reserves everything a request needs."""

    __tablename__ = "quotas"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    instances_limit: Mapped[int | None]
    instances_used: Mapped[int] = mapped_column(server_default=text("0"))
    instances_reserved: Mapped[int] = mapped_column(server_default=text("0"))
    vcpus_limit: Mapped[float | None]
    vcpus_used: Mapped[float] = mapped_column(server_default=text("0"))
    vcpus_reserved: Mapped[float] = mapped_column(server_default=text("0"))
    memory_mb_limit: Mapped[int | None]
    memory_mb_used: Mapped[int] = mapped_column(server_default=text("0"))
    memory_mb_reserved: Mapped[int] = mapped_column(server_default=text("0"))
    #: What is used of these the images' own rows say: they are few, and change seldom.
    images_limit: Mapped[int | None]
    image_bytes_limit: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint(
            " AND ".join(f"{what}_used >= 0 AND {what}_reserved >= 0" for what in QUOTAS), name="never_negative"
        ),
        # Almost every update of this one hot row leaves the index alone; room for HOT keeps it short.
        {"postgresql_with": {"fillfactor": 50}},
    )


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    #: SHA-256 of the key. A key has 256 random bits, so a fast hash gives nothing away.
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    created_at: Mapped[Now]
    revoked_at: Mapped[dt.datetime | None]
