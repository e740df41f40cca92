"""Groups: instances that are made from one template, as many as are desired. Deployments are groups by other names;
pools are groups whose members leave them when they are claimed (model.pools)."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Id, Now
from model.instances import Port
from model.networks import OPEN, Network
from model.resources import Resource, rules

Kind = Literal["group", "deployment", "pool"]
#: Of one group.
MOST_MEMBERS = 1000
#: Seconds that a run may take, however many members it works on.
RUN_SECONDS = 24 * 3600.0
#: Kinds of runs.
SCALE, DELETE = "ScaleGroup", "DeprovisionGroup"
#: Of one group, the newest configurations, which it may be set back to; beside that which all members had last.
REMEMBERED = 10
#: SQL: a group ``g`` has the configuration ``c``, or may be set back to it.
REACHABLE = f"""(
    c.revision = g.revision
    OR c.revision > (SELECT max(n.revision) FROM group_configurations n WHERE n.group_id = g.id) - {REMEMBERED}
    OR c.revision = (
        SELECT n.revision FROM group_configurations n
        WHERE n.group_id = g.id AND n.revision <> g.revision AND n.rolled_out_at IS NOT NULL
        ORDER BY n.rolled_out_at DESC LIMIT 1
    )
)"""  # noqa: S608 - nothing but text of this program
#: Members are named after their group, with so many random characters and a dash.
SUFFIX = 9


class GroupStatus(StrEnum):
    PENDING = "pending"
    #: It has what it should have, or nothing works on that at the moment: see ``error``, ``backoff_until``.
    ACTIVE = "active"
    SCALING = "scaling"
    #: Members of an older configuration are being replaced.
    UPDATING = "updating"
    #: The last run failed; another follows by itself.
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


#: States in which no workflow owns the group.
RESTING = frozenset({GroupStatus.ACTIVE, GroupStatus.ERROR})


class Template(Frozen):
    """What a launch of a member writes: columns of its row, resolved and checked when that was accepted."""

    image: str
    image_id: UUID | None
    image_reference: str | None
    image_format: str | None
    image_digest: str | None
    registry_secret: dict[str, Any] | None = None
    instance_type: str
    vcpus: float
    memory_mb: int
    env: dict[str, str]
    secrets: dict[str, Any]
    cmd: list[str] | None
    wanted_ports: list[Port]
    labels: dict[str, str]
    tags: list[str]
    metadata: dict[str, str]
    backend: str
    wanted_host: str | None
    wanted_labels: dict[str, str]
    on_host_lost: str
    ttl_seconds: int | None
    restart_policy: str
    health_check: dict[str, Any] | None
    network: Network = OPEN
    #: Under which the script of all members is sealed (model.vault.SealedValue), where there is one.
    user_data_id: UUID | None = None
    user_data_sha256: str | None
    ssh_key_id: UUID | None
    authorized_key: str | None

    def columns(self) -> dict[str, Any]:
        """Of a member's row, beside those that are its own."""
        ports = [port.model_dump() for port in self.wanted_ports]
        return self.model_dump(exclude={"user_data_id"}) | {"ports": ports, "wanted_ports": ports}


class Group(Resource, Base):
    __tablename__ = "scaling_groups"

    kind: Mapped[str]
    min_instances: Mapped[int]
    max_instances: Mapped[int]
    desired_count: Mapped[int]
    #: The configuration that its members should have.
    revision: Mapped[int] = mapped_column(server_default=text("1"))
    #: Members of other configurations are left as they are.
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Whole numbers, or "25%".
    max_surge: Mapped[Any] = mapped_column(JSONB, server_default=text("'1'::jsonb"))
    max_unavailable: Mapped[Any] = mapped_column(JSONB, server_default=text("'0'::jsonb"))
    min_ready_seconds: Mapped[int] = mapped_column(server_default=text("0"))
    #: Runs that failed in a row, and until when the group is left alone for that.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    backoff_until: Mapped[dt.datetime | None]
    #: Who sends its members their requests.
    load_balancer_id: Mapped[UUID | None]
    #: The workflow that works on the group, or did last. Only that launches and deletes members.
    workflow_id: Mapped[UUID]

    __table_args__ = (
        *rules("scaling_groups", GroupStatus),
        # Balancers name instances, and those groups: tables are made in an order without this.
        ForeignKeyConstraint(
            ["project_id", "load_balancer_id"], ["load_balancers.project_id", "load_balancers.id"], use_alter=True
        ),
        CheckConstraint("kind IN ('group', 'deployment', 'pool')", name="kind"),
        CheckConstraint("0 <= min_instances AND min_instances <= max_instances", name="bounds"),
        CheckConstraint("desired_count BETWEEN min_instances AND max_instances", name="desired"),
        Index("ix_scaling_groups_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_scaling_groups_workflow", "project_id", "workflow_id"),
        Index("ix_scaling_groups_balancer", "load_balancer_id", postgresql_where=text("load_balancer_id IS NOT NULL")),
        Index("ix_scaling_groups_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
    )


class Configuration(Base):
    """One of the templates that a group has had."""

    __tablename__ = "group_configurations"

    group_id: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    #: The fields of the request that it was made from, and what became of them: a Template.
    asked: Mapped[dict[str, Any]]
    template: Mapped[dict[str, Any]]
    created_at: Mapped[Now]
    #: When all members had it. One that never was so is not gone back to.
    rolled_out_at: Mapped[dt.datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "group_id"], ["scaling_groups.project_id", "scaling_groups.id"], ondelete="CASCADE"
        ),
    )


class Activity(Base):
    """One run that worked on a group: what was wished, why, and what became of it."""

    __tablename__ = "group_activities"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    group_id: Mapped[UUID]
    #: Of the run.
    workflow_id: Mapped[UUID]
    #: create, scale, update, rollback, replace or delete.
    action: Mapped[str]
    #: Why: who asked for it, or what was found.
    cause: Mapped[str]
    #: What was measured, where a policy asked for it.
    metric: Mapped[dict[str, Any] | None]
    desired_before: Mapped[int]
    desired_after: Mapped[int]
    revision_before: Mapped[int]
    revision_after: Mapped[int]
    launched: Mapped[int] = mapped_column(server_default=text("0"))
    removed: Mapped[int] = mapped_column(server_default=text("0"))
    #: Members of the configuration at hand that failed while it ran.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    state: Mapped[str] = mapped_column(server_default=text("'running'"))
    #: Why it failed, or what failed last.
    error: Mapped[dict[str, Any] | None]
    #: It has gone back to an earlier configuration.
    rolled_back: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[Now]
    finished_at: Mapped[dt.datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "group_id"], ["scaling_groups.project_id", "scaling_groups.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("project_id", "workflow_id"),
        CheckConstraint("state IN ('running', 'completed', 'failed', 'cancelled')", name="state"),
        Index("ix_group_activities_group", "group_id", "id"),
        Index("ix_group_activities_created_at", "created_at"),
    )
