"""Instances: states and moves, what engines are told about them, and their table."""

from __future__ import annotations

import datetime as dt
import hashlib
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import UUID

import orjson
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator
from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyList, EmptyObject, Frozen
from model.cache_volumes import CacheMount
from model.health import HealthCheck
from model.images import Format, ImageWanted
from model.networks import OPEN, Network
from model.resources import Resource, rules


class Status(StrEnum):
    PENDING = "pending"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    RESTARTING = "restarting"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    RESIZING = "resizing"
    DELETING = "deleting"
    DELETED = "deleted"
    ERROR = "error"


class Verb(NamedTuple):
    """What one kind of workflow does to an instance's state. ``done`` None: it is as it was before."""

    allowed: frozenset[Status]
    during: Status
    done: Status | None
    #: Where a change leads that was brought to an end because it could be neither done nor taken back. One of which
    #: that is not known (its host is silent) leads back to the state before, and drift says how the machine differs.
    stranded: Status | None = None


_LIVE = frozenset(Status) - {Status.DELETED}
_AT_REST = frozenset({Status.RUNNING, Status.STOPPED, Status.PAUSED})

#: The moves. Accepting puts the instance in ``during``; completing in ``done``. A launch or delete that
#: fails leaves ``error``, any other verb the state from before (kept in ``workflows.prior_status``).
VERBS: dict[str, Verb] = {
    "ProvisionInstance": Verb(frozenset(), Status.PENDING, Status.RUNNING),
    "StartInstance": Verb(frozenset({Status.STOPPED}), Status.STARTING, Status.RUNNING),
    "StopInstance": Verb(frozenset({Status.RUNNING, Status.PAUSED}), Status.STOPPING, Status.STOPPED),
    # One that does not come up again is stopped: it can be started, when its cause is mended.
    "RestartInstance": Verb(frozenset({Status.RUNNING}), Status.RESTARTING, Status.RUNNING, Status.STOPPED),
    "PauseInstance": Verb(frozenset({Status.RUNNING}), Status.PAUSING, Status.PAUSED),
    "ResumeInstance": Verb(frozenset({Status.PAUSED}), Status.RESUMING, Status.RUNNING),
    "ResizeInstance": Verb(_AT_REST, Status.RESIZING, None),
    "DeprovisionInstance": Verb(_LIVE, Status.DELETING, Status.DELETED),
    "HealInstance": Verb(_AT_REST, Status.STARTING, None),
    # What is paused cannot take its memory along: it is stopped where it moved to.
    "MoveInstance": Verb(_AT_REST, Status.PROVISIONING, None),
}

#: States in which no workflow owns the instance.
STABLE = frozenset({Status.RUNNING, Status.STOPPED, Status.PAUSED, Status.ERROR})


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
    #: What ``image`` is exactly, where that is known already; see ImageWanted.
    image_digest: str | None = None
    image_format: Format | None = None

    #: What its engine does when its program ends: no, on-failure, on-failure:N or always.
    restart_policy: str = "no"
    health_check: HealthCheck | None = None
    #: SHA-256 of a script that runs in it once, hexadecimal digits. The script itself is fetched by who needs it.
    user_data: str | None = None
    #: A line for the authorized_keys of its root.
    authorized_key: str | None = None

    #: Variables that stand for secrets, and how each comes in. The values are fetched by who needs them.
    secrets: dict[str, Literal["file", "env"]] = {}

    #: Whether a login of its registry is among what its host is given.
    registry_login: bool = False

    #: Of a change of its limits: it ran before, and is to run after it.
    lives: bool = False
    #: It is the proxy of this load balancer.
    balancer: UUID | None = None

    #: What it reaches.
    network: Network = OPEN

    #: The work session whose files it has, where model.sessions.PLACE says.
    tree: UUID | None = None
    #: It is, or was, of a pool: these files come in while it runs, and so does what its session has in ``env``.
    warm: bool = False
    #: Cache volumes that it shares with others of its project on its host.
    caches: list[CacheMount] = []

    #: What agents of 0.2 do not know: it goes out only where it says something.
    LATER: ClassVar[tuple[str, ...]] = (
        *("image_digest", "image_format"),
        *("restart_policy", "health_check", "user_data", "authorized_key"),
        *("lives", "secrets", "registry_login", "balancer", "network", "tree", "warm", "caches"),
    )

    @property
    def wanted_image(self) -> ImageWanted:
        return ImageWanted(
            reference=self.image, digest=self.image_digest, format=self.image_format, project_id=self.project_id
        )

    @model_serializer(mode="wrap")
    def _known_to_all(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = serialize(self)
        unsaid = [name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default]
        return {name: value for name, value in told.items() if name not in unsaid}


class MachineState(Frozen):
    """What an engine says of a machine that is ready."""

    engine_id: str
    private_ip: str | None


class Ready(MachineState):
    """The same, and what its image turned out to be."""

    image_digest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_less(cls, value: Any) -> Any:
        """Where the image was not looked at."""
        return value.model_dump() if isinstance(value, MachineState) else value


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
    #: It has its memory and its processes, and none of them runs. It is not ``running`` then.
    paused: bool = False


def digest_of(machines: list[OwnedMachine]) -> str:
    """The same for the same inventory, in whatever order: SHA-256, hexadecimal digits."""
    # An agent of an older version, which knows of no paused machine, has the same digest for the same.
    lines = sorted(
        orjson.dumps(
            machine.model_dump(mode="json", exclude=None if machine.paused else {"paused"}),
            option=orjson.OPT_SORT_KEYS,
        )
        for machine in machines
    )
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


class Instance(Resource, Base):
    __tablename__ = "instances"

    image: Mapped[str]
    #: The project's image that ``image`` names; none: that is a reference of a registry.
    image_id: Mapped[UUID | None]
    #: What engines are told instead of ``image``, where that names one of the project's.
    image_reference: Mapped[str | None]
    image_format: Mapped[str | None]
    #: What its first host found it to be: every later machine of the instance is made of just that.
    image_digest: Mapped[str | None]
    instance_type: Mapped[str] = mapped_column(ForeignKey("instance_types.name"))
    vcpus: Mapped[float]
    memory_mb: Mapped[int]
    env: Mapped[EmptyObject]
    #: Variables that stand for secrets: model.vault.SecretUse by name. The values are in no row of it.
    secrets: Mapped[EmptyObject]
    cmd: Mapped[list[Any] | None]
    ports: Mapped[EmptyList]
    wanted_ports: Mapped[EmptyList]
    labels: Mapped[EmptyObject]
    #: Short words of users' own, each once.
    tags: Mapped[EmptyList]
    #: Users' own; the attribute ``metadata`` is SQLAlchemy's.
    annotations: Mapped[EmptyObject] = mapped_column("metadata")
    backend: Mapped[str]
    wanted_host: Mapped[str | None]
    #: Labels that its host must have.
    wanted_labels: Mapped[EmptyObject]
    #: What is done when its host is lost: keep, replace or fence.
    on_host_lost: Mapped[str] = mapped_column(server_default=text("'keep'"))
    #: What it reaches: model.networks.Network.
    network: Mapped[dict[str, Any]] = mapped_column(server_default=text('\'{"mode": "open", "allow": []}\'::jsonb'))
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
    #: The size that it is to get. What that is more than its own is reserved in the project's quota, and, with
    #: ``next_held``, on its host too, until the size is its own or is given up.
    next_type: Mapped[str | None] = mapped_column(ForeignKey("instance_types.name"))
    next_vcpus: Mapped[float | None]
    next_memory_mb: Mapped[int | None]
    next_held: Mapped[bool] = mapped_column(server_default=text("false"))
    #: How its machine was found to differ from what it should be.
    drift: Mapped[dict[str, Any] | None]
    #: It is deleted at ``expires_at``, which is ``ttl_seconds`` after that was asked for.
    ttl_seconds: Mapped[int | None]
    expires_at: Mapped[dt.datetime | None]
    #: It is stopped when it has done nothing for so long. ``active_at``: until when it is known to have done
    #: something; only kept where that is asked for.
    idle_stop_seconds: Mapped[int | None]
    active_at: Mapped[dt.datetime | None]
    restart_policy: Mapped[str] = mapped_column(server_default=text("'no'"))
    health_check: Mapped[dict[str, Any] | None]
    #: As its agent last told it, and when that was another than before.
    health: Mapped[str | None]
    health_at: Mapped[dt.datetime | None]
    #: Its login at the registry, where its image is of one that asks for it: model.vault.RegistryLogin.
    registry_secret: Mapped[dict[str, Any] | None]
    #: The script in clear, as a release before this wrote it, about to be sealed (model.vault.SealedValue). It is for
    #: its agent alone; everybody else goes by its SHA-256.
    user_data: Mapped[str | None] = mapped_column(deferred=True)
    user_data_sha256: Mapped[str | None]
    #: The key that it was launched with, which may be gone; and what of that is in the machine, each new one too.
    ssh_key_id: Mapped[UUID | None]
    authorized_key: Mapped[str | None]
    #: The group that it is a member of, and which of its configurations it was made from.
    group_id: Mapped[UUID | None]
    group_revision: Mapped[int | None]
    #: The load balancer whose proxy it is: users change that, and not this.
    balancer_id: Mapped[UUID | None]
    #: The work session whose sandbox it is, likewise.
    session_id: Mapped[UUID | None]
    #: It was launched for a pool, whether a session has claimed it by now or not.
    warm: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Cache volumes that it has: model.cache_volumes.CacheMount of each.
    caches: Mapped[EmptyList]
    #: Which column of the quotas it is counted in.
    quota: Mapped[str] = mapped_column(server_default=text("'reserved'"))
    container_id: Mapped[str | None]
    private_ip: Mapped[str | None]
    #: The workflow that owns the instance, or owned it last. Only the owner moves its state.
    workflow_id: Mapped[UUID]

    __table_args__ = (
        *rules("instances", Status),
        ForeignKeyConstraint(["project_id", "image_id"], ["images.project_id", "images.id"]),
        ForeignKeyConstraint(["project_id", "group_id"], ["scaling_groups.project_id", "scaling_groups.id"]),
        CheckConstraint("quota IN ('none', 'reserved', 'used')", name="quota"),
        CheckConstraint("(group_id IS NULL) = (group_revision IS NULL)", name="member"),
        CheckConstraint("vcpus > 0 AND memory_mb > 0", name="size"),
        CheckConstraint("network ->> 'mode' IN ('open', 'none', 'allow-list')", name="network"),
        CheckConstraint("on_host_lost IN ('keep', 'replace', 'fence')", name="on_host_lost"),
        CheckConstraint("(next_host_id IS NULL) = (next_generation IS NULL)", name="next"),
        CheckConstraint("num_nonnulls(next_type, next_vcpus, next_memory_mb) IN (0, 3)", name="next_size"),
        CheckConstraint("(ttl_seconds IS NULL) = (expires_at IS NULL)", name="ttl"),
        CheckConstraint("ttl_seconds > 0 AND idle_stop_seconds > 0", name="lifetimes"),
        CheckConstraint("health IN ('starting', 'healthy', 'unhealthy')", name="health"),
        Index("ix_instances_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_instances_status", "project_id", "status", "id"),
        Index("ix_instances_host", "host_id", "updated_at", postgresql_where=text("host_id IS NOT NULL")),
        Index("ix_instances_workflow", "project_id", "workflow_id"),
        Index("ix_instances_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
        Index("ix_instances_image", "image_id", postgresql_where=text("image_id IS NOT NULL")),
        Index("ix_instances_counted", "project_id", "status", postgresql_where=text("status <> 'deleted'")),
        Index("ix_instances_next_host", "next_host_id", postgresql_where=text("next_host_id IS NOT NULL")),
        Index(
            "ix_instances_expires",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND status <> 'deleted'"),
        ),
        # Not over active_at, which changes often.
        Index(
            "ix_instances_idle",
            "id",
            postgresql_where=text("idle_stop_seconds IS NOT NULL AND status = 'running'"),
        ),
        Index(
            "ix_instances_secrets",
            "project_id",
            postgresql_where=text("secrets <> '{}'::jsonb AND status <> 'deleted'"),
        ),
        Index(
            "ix_instances_registry_secret",
            "project_id",
            postgresql_where=text("registry_secret IS NOT NULL AND status <> 'deleted'"),
        ),
        Index("ix_instances_user_data", "id", postgresql_where=text("user_data IS NOT NULL")),
        # Those that were deleted too: their group stays as long as they do.
        Index("ix_instances_group", "group_id", "status", postgresql_where=text("group_id IS NOT NULL")),
        Index("ix_instances_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
        Index("ix_instances_tags", "tags", postgresql_using="gin", postgresql_ops={"tags": "jsonb_path_ops"}),
    )

    @property
    def growth(self) -> tuple[float, int]:
        """vCPUs and MiB that it is to get beyond its own size; never negative."""
        if self.next_vcpus is None or self.next_memory_mb is None:
            return 0, 0
        return max(0, self.next_vcpus - self.vcpus), max(0, self.next_memory_mb - self.memory_mb)
