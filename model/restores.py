"""Restores of the database from a backup: since when the installation is restored, and what was found to differ."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ColumnElement, Index, String, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from model.base import Base, EmptyList, Frozen, Id, Now
from model.health import HealthCheck
from model.instances import OwnedMachine, Port
from model.networks import OPEN, Network

#: The runs that an operator asks for while the installation is restored; all others wait.
KINDS = ("AdoptInstance", "DiscardMachine", "ForgetDifference", "FinishRestore")
Kind = Literal[
    "machine_without_row",
    "machine_differs",
    "leftover",
    "row_without_machine",
    "run_without_row",
    "row_without_run",
    "host_not_seen",
    "host_unknown",
    "files_without_row",
]


class FoundMachine(OwnedMachine):
    """A machine, with all that its engine tells of what it was made from."""

    project_id: UUID | None = None
    name: str | None = None
    private_ip: str | None = None
    env: dict[str, str] = {}
    cmd: list[str] | None = None
    labels: dict[str, str] = {}
    restart_policy: str = "no"
    health_check: HealthCheck | None = None
    network: Network = OPEN
    ports: list[Port] | None = None


class Difference(Frozen):
    """One thing that database, Temporal and engines do not agree about."""

    kind: Kind
    #: Of the instance, the workflow or the host.
    id: UUID | None
    name: str
    host: str | None = None
    project_id: UUID | None = None
    generation: int | None = None
    #: For people: what was found, and what was expected.
    what: str
    #: Of a row: how its run has ended, as Temporal says.
    run: str | None = None
    #: Whether the restore can be finished only when it is resolved, or left by name.
    blocks: bool = True


class Restore(Base):
    """One row for each restore, written before the restored database is in its place."""

    __tablename__ = "restores"

    id: Mapped[Id]
    #: When the backup was made that this database comes from.
    backup_at: Mapped[dt.datetime]
    restored_at: Mapped[Now]
    #: That of the event stream from then on.
    epoch: Mapped[int]
    #: When the differences were last written down.
    looked_at: Mapped[dt.datetime | None]
    #: Until then nothing is removed, replaced or placed.
    finished_at: Mapped[dt.datetime | None]
    #: Ids (and names of hosts) that the operator leaves as they are.
    left_alone: Mapped[EmptyList]

    __table_args__ = (
        Index("uq_restores_open", text("(true)"), unique=True, postgresql_where=text("finished_at IS NULL")),
    )

    def may_have_lost(self, id: UUID) -> bool:
        """Whether the row of what has this id may be one that the backup did not have."""
        return made_at(id) < self.restored_at

    def leaves(self, id: UUID) -> bool:
        return str(id) in self.left_alone


class RestoreHost(Base):
    """What a host was found to hold since the restore."""

    __tablename__ = "restore_hosts"

    host_id: Mapped[Id]
    restore_id: Mapped[UUID]
    #: FoundMachines.
    machines: Mapped[EmptyList]
    #: The digest of its inventory.
    digest: Mapped[str]
    surveyed_at: Mapped[Now]


class RestoreTree(Base):
    """Files of a workspace, a session or a cache volume that an agent told of since the restore, and no row knows."""

    __tablename__ = "restore_trees"

    id: Mapped[Id]
    #: The agent's hosts, by name.
    host: Mapped[str] = mapped_column(primary_key=True)
    restore_id: Mapped[UUID]
    #: workspace, session or cache.
    kind: Mapped[str]
    #: It may be one that no row knows either.
    project_id: Mapped[UUID]
    told_at: Mapped[Now]

    __table_args__ = (CheckConstraint("kind IN ('workspace', 'session', 'cache')", name="kind"),)


class RestoreDifference(Base):
    """The differences as they were found last."""

    __tablename__ = "restore_differences"

    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String)
    resource_id: Mapped[UUID | None]
    name: Mapped[str]
    difference: Mapped[dict[str, Any]]

    __table_args__ = (
        CheckConstraint("number > 0", name="number"),
        Index("ix_restore_differences_resource", "resource_id"),
    )


#: SQL: the installation is restored, and nobody has finished that.
is_restored: ColumnElement[bool] = select(Restore.id).where(Restore.finished_at.is_(None)).exists()


def restored(session: Session) -> bool:
    """Whether nothing may be removed, replaced or placed now."""
    return bool(session.execute(select(is_restored)).scalar_one())


def last_restore(session: Session) -> Restore | None:
    return session.scalars(select(Restore).order_by(Restore.restored_at.desc()).limit(1)).one_or_none()


def made_at(id: UUID) -> dt.datetime:
    """When an id was made; the earliest time there is, where it does not say."""
    if id.version != 7:  # noqa: PLR2004 - UUIDv7: the one with a time
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    return dt.datetime.fromtimestamp((id.int >> 80) / 1000, dt.UTC)
