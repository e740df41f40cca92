"""Load balancers: states, what users set, what their proxies are told, and their tables."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, model_validator
from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyList, Frozen, Now
from model.instances import MachineSpec, Status
from model.resources import Resource, rules
from model.vault import SecretUse

#: Targets of one balancer.
MOST_TARGETS = 200
#: Of HAProxy; a weight of 0 takes no new users, and those that a cookie binds.
MOST_WEIGHT = 256
#: The variable, hence the file, in which a balancer finds its certificate and key.
TLS = "TLS"
#: Agents read their balancers' statistics this often, and samples of that resolution are kept so long.
READ_SECONDS = 5
SAMPLE_SECONDS, SAMPLES_KEPT = 10, dt.timedelta(hours=3)

Mode = Literal["http", "tcp"]
Algorithm = Literal["round-robin", "least-conn", "source", "random"]
TargetHealth = Literal["up", "down", "draining", "maint"]


class BalancerStatus(StrEnum):
    CREATING = "creating"
    ACTIVE = "active"
    UPDATING = "updating"
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


class TargetState(StrEnum):
    """``adding`` and ``draining`` belong to the run that is at it: where that fails, it was never so."""

    ADDING = "adding"
    IN = "in"
    DRAINING = "draining"
    #: It has drained, and is out of the configuration; its row goes when the run ends.
    DRAINED = "drained"


#: States in which users and the platform may change a balancer.
OPEN = frozenset({BalancerStatus.ACTIVE, BalancerStatus.UPDATING})
#: The workflows of balancers, and how long more than its drain each may take is the launch's deadline.
PROVISION, UPDATE, DEPROVISION = "ProvisionLoadBalancer", "UpdateLoadBalancer", "DeprovisionLoadBalancer"
#: Of a target's instance: it takes requests, or is about to.
TAKES = (Status.RUNNING, Status.PAUSING, Status.PAUSED, Status.RESUMING, Status.RESIZING, Status.RESTARTING)


class TargetCheck(Frozen):
    """How the proxy itself asks whether a target is well. Times in seconds."""

    type: Literal["http", "tcp"] = "tcp"
    #: Of type http; an answer of 200 to 399 is well.
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/._~%?&=+,:@-]*$", max_length=255)] | None = None
    interval_seconds: Annotated[float, Field(strict=True, ge=0.2, le=300, allow_inf_nan=False)] = 2
    timeout_seconds: Annotated[float, Field(strict=True, ge=0.1, le=60, allow_inf_nan=False)] = 2
    #: Failures in a row that take it out, and successes that bring it back.
    fall: Annotated[int, Field(strict=True, ge=1, le=50)] = 2
    rise: Annotated[int, Field(strict=True, ge=1, le=50)] = 2

    @model_validator(mode="after")
    def _is_whole(self) -> TargetCheck:
        if self.type == "tcp" and self.path is not None:
            raise ValueError("a check of type tcp takes no path")
        return self


class BalancerSettings(Frozen):
    """What a user may change of a balancer that there is."""

    algorithm: Algorithm = "round-robin"
    check: TargetCheck = TargetCheck()
    #: Name of a cookie that binds a user to a target.
    cookie: str | None = None
    #: The secret that holds certificate chain and key, as PEM; it may be another, but not go or come.
    tls: SecretUse | None = None
    #: How long a target that leaves may take to end what it has begun.
    drain_seconds: int = 30


class Server(Frozen):
    """One target, as the proxy is told of it. ``name``: another for each machine that the instance ever had."""

    name: str
    instance_id: UUID
    address: str
    port: int
    weight: int


class BalancerConfig(Frozen):
    """All that a configuration is made of."""

    mode: Mode
    port: int
    algorithm: Algorithm
    check: TargetCheck
    cookie: str | None = None
    #: Which version of the secret; None: no TLS.
    tls_version: int | None = None
    threads: int = 1
    servers: list[Server] = []


class BalancerSpec(Frozen):
    """What a host is told to make of a balancer's proxy."""

    machine: MachineSpec
    #: Grows with every configuration that is made for the balancer: an older one never takes the place of a newer.
    revision: int
    text: str
    #: Of what only a reload changes: the running proxy says which one it has loaded.
    structure: str
    #: By server: what can be changed as it runs.
    weights: dict[str, int]
    #: How long a new server may take until it is known whether it is up.
    settle_seconds: float


class AppliedSpec(Frozen):
    """What a host's proxy runs with now."""

    #: The engine's id of the machine.
    engine_id: str
    revision: int
    #: Of its servers, by name, where their checks have told it by now.
    health: dict[str, TargetHealth] = {}


class DrainRequest(Frozen):
    """Wait until these servers have no sessions any more, at most until then."""

    machine: MachineSpec
    servers: list[str]
    until: dt.datetime


class ServerReading(Frozen):
    """What a proxy says of one server. Counters since the proxy loaded its configuration."""

    name: str
    health: TargetHealth
    #: What its last check said, for people.
    check: str | None
    sessions: int
    requests: int
    bytes_in: int
    bytes_out: int
    #: Connections and answers that failed, and answers of 500 and above.
    errors: int


class BalancerReading(Frozen):
    """What the proxy of one balancer has done since it loaded its configuration, as a whole and by server."""

    id: UUID
    project_id: UUID
    generation: int
    #: Of the proxy's process: counters of another begin anew.
    pid: int
    sessions: int
    requests: int
    bytes_in: int
    bytes_out: int
    errors: int
    servers: list[ServerReading] = []


class LoadBalancer(Resource, Base):
    __tablename__ = "load_balancers"

    mode: Mapped[str]
    #: Where it listens, inside its instance.
    port: Mapped[int]
    #: A BalancerSettings. ``settings_by``: the run that is making it so.
    settings: Mapped[dict[str, Any]]
    settings_by: Mapped[UUID | None]
    #: Its proxy.
    instance_id: Mapped[UUID]
    #: Of the newest configuration that was made for it.
    revision: Mapped[int] = mapped_column(server_default=text("0"))
    #: Of what its proxy is known to run with: which settings, which configuration, in which machine. Where it is not
    #: known, the digest is null.
    applied_settings: Mapped[dict[str, Any] | None]
    applied_revision: Mapped[int] = mapped_column(server_default=text("0"))
    applied_digest: Mapped[str | None]
    applied_engine_id: Mapped[str | None]
    #: When it was last seen that nothing is to be changed, or ordered that it be.
    looked_at: Mapped[dt.datetime | None]
    #: Changes in a row that failed; the platform tries the next one at ``retry_at``.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    retry_at: Mapped[dt.datetime | None]
    #: The workflow that owns the balancer, or owned it last.
    workflow_id: Mapped[UUID]

    __table_args__ = (
        *rules("load_balancers", BalancerStatus),
        ForeignKeyConstraint(["project_id", "instance_id"], ["instances.project_id", "instances.id"]),
        CheckConstraint("mode IN ('http', 'tcp')", name="mode"),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        Index("ix_load_balancers_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_load_balancers_instance", "instance_id"),
        Index("ix_load_balancers_workflow", "project_id", "workflow_id"),
        Index("ix_load_balancers_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
        Index("ix_load_balancers_active", "id", postgresql_where=text("status = 'active'")),
    )


class BalancerTarget(Base):
    """An instance that a balancer sends requests to."""

    __tablename__ = "lb_targets"

    balancer_id: Mapped[UUID] = mapped_column(primary_key=True)
    instance_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    #: Inside the instance.
    port: Mapped[int]
    weight: Mapped[int] = mapped_column(server_default=text("100"))
    #: The weight before the one that a run is about to give it.
    prior_weight: Mapped[int | None]
    state: Mapped[str]
    #: The run that adds it, takes it out, or gives it another weight; null: none does.
    workflow_id: Mapped[UUID | None]
    #: As its agent last told it, since when, and what the last check said.
    health: Mapped[str | None]
    health_at: Mapped[dt.datetime | None]
    check: Mapped[str | None]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "balancer_id"], ["load_balancers.project_id", "load_balancers.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["project_id", "instance_id"], ["instances.project_id", "instances.id"], ondelete="CASCADE"
        ),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        CheckConstraint(f"weight BETWEEN 0 AND {MOST_WEIGHT}", name="weight"),
        CheckConstraint("state IN ({})".format(", ".join(f"'{s}'" for s in TargetState)), name="state"),
        CheckConstraint("health IN ('up', 'down', 'draining', 'maint')", name="health"),
        Index("ix_lb_targets_instance", "instance_id"),
    )


class BalancerSample(Base):
    """What a balancer did in the ten seconds from ``at`` on; ``sessions`` are those that were open at their end.

    ``targets``: the same by instance. No foreign key, as of other samples: what outlives its balancer ends by its age.
    """

    __tablename__ = "lb_samples"

    balancer_id: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    sessions: Mapped[int]
    requests: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    targets: Mapped[EmptyList]

    __table_args__ = (Index("ix_lb_samples_age", "at"),)
