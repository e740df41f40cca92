"""Instances: states and moves, what engines are told about them, and their table."""

from __future__ import annotations

import datetime as dt
import hashlib
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID

import orjson
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
    """What one kind of workflow does to an instance's state. ``done`` None: it is as it was before."""

    allowed: frozenset[Status]
    during: Status
    done: Status | None


_LIVE = frozenset(Status) - {Status.DELETED}
_AT_REST = frozenset({Status.RUNNING, Status.STOPPED})

#: The moves. Accepting puts the instance in ``during``; completing in ``done``. A launch or delete that
#: fails leaves ``error``, any other verb the state from before (kept in ``workflows.prior_status``).
VERBS: dict[str, Verb] = {
    "ProvisionInstance": Verb(frozenset(), Status.PENDING, Status.RUNNING),
    "StartInstance": Verb(frozenset({Status.STOPPED}), Status.STARTING, Status.RUNNING),
    "StopInstance": Verb(frozenset({Status.RUNNING}), Status.STOPPING, Status.STOPPED),
    "DeprovisionInstance": Verb(_LIVE, Status.DELETING, Status.DELETED),
    "HealInstance": Verb(_AT_REST, Status.STARTING, None),
    "MoveInstance": Verb(_AT_REST, Status.PROVISIONING, None),
}

#: States in which no workflow owns the instance.
STABLE = frozenset({Status.RUNNING, Status.STOPPED, Status.ERROR})


OnHostLost = Literal["keep", "replace", "fence"]


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
    #: It is stopped where its host may count as lost.
    fenced: bool = False


class MachineState(Frozen):
    """What an engine says of a machine that is ready."""

    engine_id: str
    private_ip: str | None


class OwnedMachine(Frozen):
    """One line of an inventory: an engine object that carries our labels. What a driver cannot tell is None."""

    engine_id: str
    id: UUID
    generation: int
    running: bool
    image: str | None = None
    vcpus: float | None = None
    memory_mb: int | None = None
    ports: list[Port] | None = None
    fenced: bool = False


def digest_of(machines: list[OwnedMachine]) -> str:
    """The same for the same inventory, in whatever order: SHA-256, hexadecimal digits."""
    lines = sorted(orjson.dumps(machine.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS) for machine in machines)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


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
    #: Labels that its host must have.
    wanted_labels: Mapped[EmptyObject]
    #: What is done when its host is lost: keep, replace or fence.
    on_host_lost: Mapped[str] = mapped_column(server_default=text("'keep'"))
    #: Where it is placed, and holds capacity and ports. None: it holds none.
    host_id: Mapped[UUID | None] = mapped_column(ForeignKey("hosts.id"))
    #: Grows with every placement; engine objects of another generation are leftovers.
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    #: The newest generation that any placement has had.
    last_generation: Mapped[int] = mapped_column(server_default=text("0"))
    #: Where it is moving to, and holds capacity and ports too, until it is ready there.
    next_host_id: Mapped[UUID | None] = mapped_column(ForeignKey("hosts.id"))
    next_generation: Mapped[int | None]
    next_ports: Mapped[list[Any] | None]
    #: How its machine was found to differ from what it should be.
    drift: Mapped[dict[str, Any] | None]
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
        CheckConstraint("on_host_lost IN ('keep', 'replace', 'fence')", name="on_host_lost"),
        CheckConstraint("(next_host_id IS NULL) = (next_generation IS NULL)", name="next"),
        Index(
            "uq_instances_live_name", "project_id", "name", unique=True, postgresql_where=text("status <> 'deleted'")
        ),
        Index("ix_instances_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_instances_status", "project_id", "status", "id"),
        Index("ix_instances_counted", "project_id", "status", postgresql_where=text("status <> 'deleted'")),
        Index("ix_instances_host", "host_id", postgresql_where=text("host_id IS NOT NULL")),
        Index("ix_instances_next_host", "next_host_id", postgresql_where=text("next_host_id IS NOT NULL")),
        Index("ix_instances_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    )
