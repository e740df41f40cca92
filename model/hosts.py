"""Hosts, what they hold, and the sizes that instances come in."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Id, Now

Backend = Literal["docker", "simulated"]


class HostState(StrEnum):
    READY = "ready"
    CORDONED = "cordoned"


#: A host that was not seen for so long counts as unreachable: three inventories.
UNSEEN = dt.timedelta(seconds=90)


def is_reachable(last_seen_at: dt.datetime | None) -> bool:
    return last_seen_at is not None and dt.datetime.now(dt.UTC) - last_seen_at < UNSEEN


class AgentHost(Frozen):
    """A host as its agent knows it; one agent process may serve several."""

    id: UUID
    name: str
    backend: Backend


class Host(Base):
    __tablename__ = "hosts"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    backend: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'ready'"))
    cpus: Mapped[float]
    memory_mb: Mapped[int]
    #: Held by placed instances, before any over-commit.
    allocated_vcpus: Mapped[float] = mapped_column(server_default=text("0"))
    allocated_memory_mb: Mapped[int] = mapped_column(server_default=text("0"))
    #: Where the search for an automatic port goes on: ports are used again as late as possible.
    next_port: Mapped[int] = mapped_column(server_default=text("0"))
    last_seen_at: Mapped[dt.datetime | None]
    created_at: Mapped[Now]

    __table_args__ = (
        CheckConstraint("state IN ({})".format(", ".join(f"'{s}'" for s in HostState)), name="state"),
        CheckConstraint("allocated_vcpus >= 0 AND allocated_memory_mb >= 0", name="never_negative"),
    )


class HostPort(Base):
    """A port of a host that an instance holds, from its placement until nothing of it is left."""

    __tablename__ = "host_ports"

    host_id: Mapped[UUID] = mapped_column(ForeignKey("hosts.id"), primary_key=True)
    protocol: Mapped[str] = mapped_column(primary_key=True)
    port: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    instance_id: Mapped[UUID]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "instance_id"], ["instances.project_id", "instances.id"]),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        CheckConstraint("protocol IN ('tcp', 'udp')", name="protocol"),
        Index("ix_host_ports_instance", "instance_id"),
    )


class InstanceType(Base):
    __tablename__ = "instance_types"

    name: Mapped[str] = mapped_column(primary_key=True)
    vcpus: Mapped[float]
    memory_mb: Mapped[int]
    disk_gb: Mapped[int]


#: name → vCPUs, memory (MiB), disk (GiB).
SEEDED_TYPES: dict[str, tuple[int, int, int]] = {
    "basic-1": (1, 512, 8),
    "basic-2": (1, 1024, 10),
    "standard-1": (2, 2048, 20),
    "standard-2": (2, 4096, 40),
    "standard-4": (4, 8192, 80),
    "performance-1": (4, 16384, 160),
    "performance-2": (8, 32768, 320),
}
