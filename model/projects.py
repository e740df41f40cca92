"""The installation, its projects, their quotas and API keys."""

from __future__ import annotations

import datetime as dt
from typing import Literal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Id, Now
from model.settings import Settings

#: What quotas count, in the order in which they are checked.
QUOTAS = ("instances", "vcpus", "memory_mb")
#: Of the platform's first project.
FIRST_UNIX_NAME = "default"
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
    name: Mapped[str]
    #: What other systems know it by; unique among those that are not deleted.
    unix_name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    #: Of a user who has always one; it goes with the user.
    personal_of: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", use_alter=True))
    #: What is done about instances that differ from what they should be: report or heal.
    drift_policy: Mapped[str] = mapped_column(server_default=text("'report'"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    #: Nobody works in it before a platform administrator makes it active again; what runs goes on running.
    deactivated_at: Mapped[dt.datetime | None]
    #: A workflow deletes what is in it: nothing new is made in it.
    deleting_at: Mapped[dt.datetime | None]
    deleted_at: Mapped[dt.datetime | None]

    __table_args__ = (
        CheckConstraint("drift_policy IN ('report', 'heal')", name="drift_policy"),
        CheckConstraint("unix_name ~ '^[a-z][a-z0-9-]{1,30}[a-z0-9]$'", name="unix_name"),
        Index("uq_projects_live_unix_name", "unix_name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    )


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
    #: Likewise.
    load_balancers_limit: Mapped[int | None]

    __table_args__ = (
        CheckConstraint(
            " AND ".join(f"{what}_used >= 0 AND {what}_reserved >= 0" for what in QUOTAS), name="never_negative"
        ),
        # Almost every update of this one hot row leaves the index alone; room for HOT keeps it short.
        {"postgresql_with": {"fillfactor": 50}},
    )


def limits_of(settings: Settings, *, given: bool = False) -> dict[str, float | None]:
    """The limits that the settings name, as columns of a quota; with ``given`` those alone that somebody set."""
    names = (*QUOTAS, "images", "image_bytes", "load_balancers")
    return {
        f"{name}_limit": getattr(settings, f"quota_{name}")
        for name in names
        if not given or f"quota_{name}" in settings.model_fields_set
    }


class ApiKey(Base):
    """Opens one project, for a user or a service account, and no more of it than its scopes say."""

    __tablename__ = "api_keys"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    #: Whose it is; both null: it was made before there were users, and is nobody's until ``seed`` gives it to one.
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    service_account_id: Mapped[UUID | None]
    name: Mapped[str]
    #: SHA-256 of the key. A key has 256 random bits, so a fast hash gives nothing away.
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    #: Permissions, or ``noun:*``; null: no limit.
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(String))
    created_at: Mapped[Now]
    expires_at: Mapped[dt.datetime | None]
    #: To the half minute.
    last_used_at: Mapped[dt.datetime | None]
    #: From then on it opens nothing; of one that was rotated that may be a while ahead.
    revoked_at: Mapped[dt.datetime | None]

    __table_args__ = (
        CheckConstraint("num_nonnulls(user_id, service_account_id) < 2", name="one_owner"),
        ForeignKeyConstraint(
            ["project_id", "service_account_id"],
            ["service_accounts.project_id", "service_accounts.id"],
            ondelete="CASCADE",
        ),
        Index("ix_api_keys_user", "user_id"),
        Index("ix_api_keys_project", "project_id"),
    )
