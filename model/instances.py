"""Instances: states and moves, what engines are told about them, and their table."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyList, EmptyObject, Frozen, Id, Now


class Status(StrEnum):
    PENDING = "pending"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    DELETING = "deleting"
    DELETED = "deleted"
    ERROR = "error"


class Verb(NamedTuple):
    """What one kind of workflow does to an instance's state."""

    allowed: frozenset[Status]
    during: Status
    done: Status


_LIVE = frozenset(Status) - {Status.DELETED}

#: The moves. Accepting puts the instance in ``during``; completing in ``done``. A launch or delete that
#: fails leaves ``error``, any other verb the state from before (kept in ``workflows.prior_status``).
VERBS: dict[str, Verb] = {
    "ProvisionInstance": Verb(frozenset(), Status.PENDING, Status.RUNNING),
    "StartInstance": Verb(frozenset({Status.STOPPED}), Status.STARTING, Status.RUNNING),
    "StopInstance": Verb(frozenset({Status.RUNNING}), Status.STOPPING, Status.STOPPED),
    "DeprovisionInstance": Verb(_LIVE, Status.DELETING, Status.DELETED),
}

#: States in which no workflow owns the instance.
STABLE = frozenset({Status.RUNNING, Status.STOPPED, Status.ERROR})


class Port(Frozen):
    """A published port; ``host_port`` is None until one was chosen."""

    host_port: int | None
    container_port: int
    protocol: Literal["tcp", "udp"] = "tcp"


class MachineSpec(Frozen):
    """Everything an engine is told about one machine."""

    id: UUID
    project_id: UUID
    generation: int
    name: str
    image: str
    vcpus: float
    memory_mb: int
    pids: int = 1024
    env: dict[str, str] = {}
    cmd: list[str] | None = None
    ports: list[Port] = []
    labels: dict[str, str] = {}


class MachineState(Frozen):
    """What an engine says of a machine that is ready."""

    engine_id: str
    private_ip: str | None


class OwnedMachine(Frozen):
    """One line of an inventory: an engine object that carries our labels."""

    engine_id: str
    id: UUID
    generation: int
    running: bool


class Instance(Base):
    __tablename__ = "instances"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    status: Mapped[str]
    image: Mapped[str]
    instance_type: Mapped[str] = mapped_column(ForeignKey("instance_types.name"))
    vcpus: Mapped[float]
    memory_mb: Mapped[int]
    env: Mapped[EmptyObject]
    cmd: Mapped[list[Any] | None]
    ports: Mapped[EmptyList]
    wanted_ports: Mapped[EmptyList]
    labels: Mapped[EmptyObject]
    #: Users' own; the attribute ``metadata`` is SQLAlchemy's.
    annotations: Mapped[EmptyObject] = mapped_column("metadata")
    backend: Mapped[str]
    wanted_host: Mapped[str | None]
    #: Where it is placed, and holds capacity and ports. None: it holds none.
    host_id: Mapped[UUID | None] = mapped_column(ForeignKey("hosts.id"))
    #: Grows with every placement; engine objects of another generation are leftovers.
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    #: Which column of the quotas it is counted in.
    quota: Mapped[str] = mapped_column(server_default=text("'reserved'"))
    container_id: Mapped[str | None]
    private_ip: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    #: The workflow that owns the instance, or owned it last. Only the owner moves its state.
    workflow_id: Mapped[UUID]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]
    deleted_at: Mapped[dt.datetime | None]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            deferrable=True,
            initially="DEFERRED",
        ),
        CheckConstraint("status IN ({})".format(", ".join(f"'{s}'" for s in Status)), name="status"),
        CheckConstraint("quota IN ('none', 'reserved', 'used')", name="quota"),
        CheckConstraint("vcpus > 0 AND memory_mb > 0", name="size"),
        Index(
            "uq_instances_live_name", "project_id", "name", unique=True, postgresql_where=text("status <> 'deleted'")
        ),
        Index("ix_instances_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_instances_status", "project_id", "status", "id"),
        Index("ix_instances_host", "host_id", postgresql_where=text("host_id IS NOT NULL")),
        Index("ix_instances_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    )
