"""Hosts, what they hold, and the sizes that instances come in."""

from __future__ import annotations

import datetime as dt
import re
from enum import StrEnum
from typing import Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyList, EmptyObject, Frozen, Id, Now

Backend = Literal["docker", "simulated"]


class HostState(StrEnum):
    READY = "ready"
    #: Takes no more placements; what is on it stays.
    CORDONED = "cordoned"
    #: The same, while what is on it moves elsewhere.
    DRAINING = "draining"


#: Agents renew their hosts' lease this often; a host whose lease lapsed takes no placement.
RENEW_SECONDS = 5
LEASE = dt.timedelta(seconds=15)
#: How much later than its own clock a lost host's instances are taken from it.
MARGIN = dt.timedelta(seconds=15)


def is_reachable(last_seen_at: dt.datetime | None) -> bool:
    """Computed where it is read, never stored: whether the host's lease holds."""
    return last_seen_at is not None and dt.datetime.now(dt.UTC) - last_seen_at < LEASE


def is_simulated_name(name: str) -> bool:
    """Whether the embedded platform names a simulated host so; it makes them as they are asked for."""
    return re.fullmatch(r"sim-[0-9]+", name) is not None


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
    labels: Mapped[EmptyObject]
    #: What runs there: {"agent": "0.2.0", "engine": "20.10.24", …}.
    versions: Mapped[EmptyObject]
    #: What its agent can do beyond what every agent can, as that last said: model.networks.capability.
    capabilities: Mapped[EmptyList]
    #: SHA-256 of the credential of its agent. Hosts that one agent serves share it.
    credential: Mapped[bytes | None] = mapped_column(LargeBinary)
    #: X25519: values are sealed for it.
    public_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    #: Where its agent serves streams, https://…, and the SHA-256 of the certificate that it must show there.
    agent_url: Mapped[str | None]
    fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary)
    #: When its lease was renewed last.
    last_seen_at: Mapped[dt.datetime | None]
    #: Seconds without a renewal after which its agent stops what is fenced: the longest of all that it may go by,
    #: as the answer that said a shorter one may have been lost. None: it has had no lease yet.
    fence_after: Mapped[float | None]
    #: What its agent last said it holds, and what of that was found right when, as digests of inventories.
    inventory: Mapped[str | None]
    reconciled: Mapped[str | None]
    reconciled_at: Mapped[dt.datetime | None]
    #: When its cached images were last looked through.
    images_at: Mapped[dt.datetime | None]
    #: What an operator should look at; None: nothing.
    warning: Mapped[str | None]
    created_at: Mapped[Now]

    __table_args__ = (
        CheckConstraint("state IN ({})".format(", ".join(f"'{s}'" for s in HostState)), name="state"),
        CheckConstraint("allocated_vcpus >= 0 AND allocated_memory_mb >= 0", name="never_negative"),
        Index("ix_hosts_credential", "credential"),
    )


def fenced_after(host: Host, default: float) -> dt.timedelta:
    """Silence of a host after which what is fenced must have been stopped there. ``default``: CAIRN_FENCE_AFTER."""
    return dt.timedelta(seconds=default if host.fence_after is None else host.fence_after) + MARGIN


class HostToken(Base):
    """A one-time token with which a host joins."""

    __tablename__ = "host_tokens"

    id: Mapped[Id]
    #: SHA-256 of the token, which has 256 random bits.
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    #: The only name that may join with it. It may take the place of the host that has the name.
    name: Mapped[str | None]
    labels: Mapped[EmptyObject]
    actor: Mapped[str]
    created_at: Mapped[Now]
    expires_at: Mapped[dt.datetime]
    #: The host that joined with it, which alone may ask again, where the answer was lost. No foreign key: a token
    #: whose host is removed stays used.
    host_id: Mapped[UUID | None]


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
    #: Removed: for new launches it is not there.
    retired_at: Mapped[dt.datetime | None]


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
