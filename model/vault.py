"""Secrets of projects: names, versions, and the keys that they lie under, other things too; and what of them is on its
way to a host."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Id, Now
from model.envelope import of_value

#: Bytes of a value.
LONGEST = 64 * 1024
#: Bytes of all values of one instance together.
MOST_OF_INSTANCE = 512 * 1024
#: Where an instance finds its files; ``K_FILE`` names each.
FOLDER = "/run/secrets"

#: What the login of a registry is called among the values of an instance. No variable has a space.
REGISTRY = "registry login"

#: How a secret comes into an instance: as a file in memory, or as a variable of its environment.
Delivery = Literal["file", "env"]


class SecretUse(Frozen):
    """What a variable of an instance stands for, as its row says it."""

    secret: str
    secret_id: UUID
    #: None: the current one at each start.
    version: int | None = None
    delivery: Delivery = "file"


class RegistryLogin(Frozen):
    """With whose login an image is pulled, as rows say it: the secret's current version then."""

    secret: str
    secret_id: UUID


class Secret(Base):
    """A name for values that come one after the other. The name never changes: it is part of what is authenticated."""

    __tablename__ = "secrets"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    current_version: Mapped[int] = mapped_column(server_default=text("1"))
    #: Of the row: it grows with each change.
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("project_id", "id"), UniqueConstraint("project_id", "name"))


class DataKey(Base):
    """A key of one project, wrapped under a master key; see model.envelope."""

    __tablename__ = "data_keys"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    master_key_id: Mapped[str]
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("project_id", "id"), UniqueConstraint("project_id", "master_key_id"))


class SecretVersion(Base):
    """One value. The API writes what is encrypted, and cannot read it; of one that was destroyed the row is left."""

    __tablename__ = "secret_versions"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    secret_id: Mapped[UUID]
    version: Mapped[int]
    data_key_id: Mapped[UUID | None]
    nonce: Mapped[bytes | None] = mapped_column(LargeBinary)
    ciphertext: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[Now]
    destroyed_at: Mapped[dt.datetime | None]

    __table_args__ = (
        UniqueConstraint("secret_id", "version"),
        ForeignKeyConstraint(["project_id", "secret_id"], ["secrets.project_id", "secrets.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "data_key_id"], ["data_keys.project_id", "data_keys.id"]),
        CheckConstraint(
            "num_nonnulls(data_key_id, nonce, ciphertext) = CASE WHEN destroyed_at IS NULL THEN 3 ELSE 0 END",
            name="destroyed",
        ),
        Index("ix_secret_versions_data_key", "project_id", "data_key_id"),
    )


class SealedValue(Base):
    """What a webhook or a cron job signs with, the script of an instance or of a group's members, or the value of a
    credential; encrypted as secrets are. The API cannot read it."""

    __tablename__ = "sealed_values"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    webhook_id: Mapped[UUID | None]
    instance_id: Mapped[UUID | None]
    #: A group has one for each configuration that says another; those name theirs.
    group_id: Mapped[UUID | None]
    cron_job_id: Mapped[UUID | None]
    credential_id: Mapped[UUID | None]
    data_key_id: Mapped[UUID]
    nonce: Mapped[bytes] = mapped_column(LargeBinary)
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("webhook_id"),
        UniqueConstraint("instance_id"),
        UniqueConstraint("cron_job_id"),
        UniqueConstraint("credential_id"),
        ForeignKeyConstraint(["project_id", "webhook_id"], ["webhooks.project_id", "webhooks.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["project_id", "instance_id"], ["instances.project_id", "instances.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["project_id", "group_id"], ["scaling_groups.project_id", "scaling_groups.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["project_id", "cron_job_id"], ["cron_jobs.project_id", "cron_jobs.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["project_id", "credential_id"], ["credentials.project_id", "credentials.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(["project_id", "data_key_id"], ["data_keys.project_id", "data_keys.id"]),
        CheckConstraint(
            "num_nonnulls(webhook_id, instance_id, cron_job_id, group_id, credential_id) = 1", name="owner"
        ),
        Index("ix_sealed_values_data_key", "project_id", "data_key_id"),
        Index("ix_sealed_values_group", "group_id", postgresql_where=text("group_id IS NOT NULL")),
    )

    @property
    def what(self) -> bytes:
        """As what it is authenticated."""
        if self.group_id is not None:
            return of_value(self.project_id, "user_data_of_group", self.id)
        if self.cron_job_id is not None:
            return of_value(self.project_id, "cron_job", self.cron_job_id)
        if self.credential_id is not None:
            return of_value(self.project_id, "credential", self.credential_id)
        kind, owner = ("webhook", self.webhook_id) if self.webhook_id else ("user_data", self.instance_id)
        return of_value(self.project_id, kind, owner)


class InstanceSecrets(Base):
    """The values that one placement of an instance was given, sealed for the key of its host: see model.sealing."""

    __tablename__ = "instance_secrets"

    instance_id: Mapped[UUID] = mapped_column(primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    sealed: Mapped[str]
    #: Its script, likewise, where it has one.
    user_data: Mapped[str | None]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "instance_id"], ["instances.project_id", "instances.id"], ondelete="CASCADE"
        ),
    )


class ImageLogin(Base):
    """The login with which a host pulls an image that is being imported, sealed for its key."""

    __tablename__ = "image_logins"

    image_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    host_id: Mapped[UUID] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    sealed: Mapped[str]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "image_id"], ["images.project_id", "images.id"], ondelete="CASCADE"),
    )


def uses_of(secrets: dict[str, Any]) -> dict[str, SecretUse]:
    """What a row of an instance says of its secrets, by variable."""
    return {name: SecretUse.model_validate(use) for name, use in secrets.items()}
