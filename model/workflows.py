"""Workflow rows: what was asked for, how far it is known to be, how it ended."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyObject, Frozen, Id, Now


class State(StrEnum):
    ACCEPTED = "accepted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
Outcome = Literal["completed", "failed", "cancelled"]


#: All that rows are of; a row of an older version may be of others.
Kind = Literal[
    "ProvisionInstance",
    "StartInstance",
    "StopInstance",
    "RestartInstance",
    "PauseInstance",
    "ResumeInstance",
    "ResizeInstance",
    "MoveInstance",
    "HealInstance",
    "DeprovisionInstance",
    "ImportImage",
    "DeleteImage",
    "DrainHost",
    "DeprovisionProject",
    "DeprovisionUser",
    "ProvisionLoadBalancer",
    "UpdateLoadBalancer",
    "DeprovisionLoadBalancer",
    "InitWorkspace",
    "SyncWorkspace",
    "DeprovisionWorkspace",
    "ClearCacheVolume",
    "DeprovisionCacheVolume",
    "InitSession",
    "StopSession",
    "StartSession",
    "CommitSession",
    "DeprovisionSession",
    "ChatTurn",
    "ScaleGroup",
    "DeprovisionGroup",
    "AdoptInstance",
    "DiscardMachine",
    "ForgetDifference",
    "FinishRestore",
]
ResourceType = Literal[
    "instance",
    "image",
    "host",
    "project",
    "restore",
    "user",
    "group",
    "deployment",
    "pool",
    "load_balancer",
    "workspace",
    "session",
    "cache_volume",
]


class Order(Frozen):
    """What a workflow is started with. The rest it reads, in its first step, from its row."""

    workflow_id: UUID
    project_id: UUID
    kind: str
    resource_type: str
    resource_id: UUID
    #: The resource's name, for people who read the Temporal UI.
    name: str
    request_id: str
    #: Time from the start of the run until its plan is given up and undone.
    deadline_seconds: float
    force: bool = False
    #: Time between asking an instance to end and ending it.
    grace_seconds: float = 10
    #: Of a move: its old host is silent, and is not to be touched.
    host_lost: bool = False
    #: Of a heal: the machine cannot be changed into what it should be, and is made anew. Of a resize: it may be.
    recreate: bool = False
    #: Of a resize: what it is to become.
    instance_type: str | None = None
    #: Host ports that the user named: these are never replaced by others.
    fixed_ports: list[int] = []
    #: Of a commit of a session; the author as ``NAME <MAIL>``.
    message: str = ""
    author: str | None = None
    #: Of a run that goes on where another has ended (its history was long): the first of them, which claimed the row.
    first_run_id: str | None = None
    #: Of the request that asked for it, as W3C Trace Context writes it: whoever starts the run continues its trace.
    traceparent: str | None = None

    def written(self) -> dict[str, Any]:
        """For its row: without what is at its default, so that the release before can read what does not concern it."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Failure(Frozen):
    """Why a run did not complete: code, message, and the step that failed."""

    code: str
    message: str
    step: str | None = None
    attempt: int | None = None


#: Of a run that was called off while it was only a row.
NEVER_STARTED = Failure(code="cancelled", message="cancelled before it had started")


class Step(Frozen):
    """One line of a run's summary."""

    name: str
    host: str | None
    state: Literal["scheduled", "running", "completed", "failed", "cancelled"]
    attempts: int
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    error: str | None
    undo: bool
    #: How far a long step is, as it said last: "12.5 of 120.0 MiB".
    progress: str | None = None


class Workflow(Base):
    __tablename__ = "workflows"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'accepted'"))
    resource_type: Mapped[str]
    resource_id: Mapped[UUID]
    actor: Mapped[str]
    #: The Order, as it is handed to Temporal.
    order: Mapped[dict[str, Any]]
    #: The resource's state before, to which a change that did not complete returns.
    prior_status: Mapped[str | None]
    #: Which run owns the row: Temporal's first execution run id.
    run_id: Mapped[str | None]
    cancel_requested_at: Mapped[dt.datetime | None]
    error: Mapped[dict[str, Any] | None]
    steps: Mapped[list[Any] | None]
    parent_id: Mapped[UUID | None]
    retry_of: Mapped[UUID | None]
    created_at: Mapped[Now]
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    #: When the sweeper last compared the row with Temporal.
    checked_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        CheckConstraint("state IN ({})".format(", ".join(f"'{s}'" for s in State)), name="state"),
        CheckConstraint("(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
        Index("ix_workflows_state", "project_id", "state", "id"),
        Index("ix_workflows_resource", "project_id", "resource_id", "id"),
        Index("ix_workflows_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("uq_workflows_retry_of", "retry_of", unique=True, postgresql_where=text("retry_of IS NOT NULL")),
        Index("ix_workflows_failed", "project_id", "finished_at", postgresql_where=text("state = 'failed'")),
        Index("ix_workflows_open", "checked_at", postgresql_where=text("state IN ('accepted', 'running')")),
    )


class IdempotencyKey(Base):
    """The answer to a request that must happen once. Lives 24 h."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    #: SHA-256 over method, path and body.
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    resource_id: Mapped[UUID]
    workflow_id: Mapped[UUID]
    created_at: Mapped[Now]

    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)


class EventHorizon(Base):
    """Up to where a project's stream of events has been purged."""

    __tablename__ = "event_horizons"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    epoch: Mapped[int]
    xid: Mapped[int] = mapped_column(BigInteger)
    event_id: Mapped[int] = mapped_column(BigInteger)


class Event(Base):
    """What happened, to be read in commit order.

    Ids are given at insertion, commits come in another order: a reader that goes by id alone would
    miss a row that commits late. So each row keeps its transaction's id, and readers stop below the
    oldest transaction that still runs.
    """

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    epoch: Mapped[int] = mapped_column(server_default=text("current_epoch()"))
    xid: Mapped[int] = mapped_column(BigInteger, server_default=text("pg_current_xact_id()::text::bigint"))
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    resource_type: Mapped[str]
    resource_id: Mapped[UUID]
    workflow_id: Mapped[UUID | None]
    data: Mapped[EmptyObject]
    created_at: Mapped[Now]

    __table_args__ = (
        Index("ix_events_order", "project_id", "epoch", "xid", "id"),
        Index("ix_events_workflow", "workflow_id", "epoch", "xid", "id"),
        Index("ix_events_resource", "project_id", "resource_id", "epoch", "xid", "id"),
    )
