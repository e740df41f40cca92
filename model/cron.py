"""Cron jobs: what runs when, on whose behalf, and what became of each run."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, Literal, Protocol
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyObject, Frozen, Id, Now
from model.workflows import Failure, Outcome

#: Cron jobs of one project.
MOST_JOBS = 100
#: Of what a target answers, bytes that are kept.
MOST_OUTPUT = 64 * 1024
#: Between two attempts of one run, in seconds.
LONGEST_WAIT = 60.0
#: Of one job, runs that are kept, and for how long.
MOST_RUNS, RUNS_KEPT = 1000, dt.timedelta(days=30)
#: Times that one back-fill makes up for.
MOST_BACKFILLED = 500

TargetKind = Literal["http", "exec", "workflow"]


class Overlap(StrEnum):
    """What becomes of a run whose time comes while the one before it still runs."""

    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    BUFFER_ALL = "buffer_all"
    CANCEL_OTHER = "cancel_other"
    TERMINATE_OTHER = "terminate_other"
    ALLOW_ALL = "allow_all"


class RunState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (RunState.PENDING, RunState.RUNNING)


def _one_of(states: type[StrEnum]) -> str:
    return ", ".join(f"'{state}'" for state in states)


class CronJob(Base):
    """What is wanted; what signs its requests is a SealedValue. Temporal has it where ``applied_version`` is the
    version; a row that is deleted goes once Temporal has no schedule of it any more."""

    __tablename__ = "cron_jobs"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    schedule: Mapped[str]
    time_zone: Mapped[str]
    #: ``http``, ``exec`` or ``workflow``, and under it what it says; secrets by their names.
    target: Mapped[dict[str, Any]]
    overlap: Mapped[str]
    catchup_seconds: Mapped[int]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    labels: Mapped[EmptyObject]
    #: On whose behalf: who said last what it does. No foreign keys: where they are gone, its runs say so.
    user_id: Mapped[UUID | None]
    service_account_id: Mapped[UUID | None]
    #: Of the key that they had then; None: no limit.
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(String))
    owner: Mapped[str]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    applied_version: Mapped[int] = mapped_column(server_default=text("0"))
    #: Temporal knows its times about twice as far as this.
    good_until: Mapped[dt.datetime | None]
    #: A worker tells Temporal of it; one that has died is looked for again then.
    in_hand_until: Mapped[dt.datetime | None]
    deleted_at: Mapped[dt.datetime | None]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        CheckConstraint(f"overlap IN ({_one_of(Overlap)})", name="overlap"),
        Index("uq_cron_jobs_live_name", "project_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
        Index("ix_cron_jobs_due", "id", postgresql_where=text("applied_version <> version")),
        Index("ix_cron_jobs_renewed", "good_until", postgresql_where=text("good_until IS NOT NULL")),
    )


class CronRun(Base):
    """One time of a job, or one run that was asked for out of turn (``manual``). What is pending, a worker starts."""

    __tablename__ = "cron_runs"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    job_id: Mapped[UUID]
    scheduled_at: Mapped[dt.datetime]
    manual: Mapped[bool] = mapped_column(server_default=text("false"))
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    #: Which run owns the row: Temporal's ids.
    temporal_id: Mapped[str | None]
    run_id: Mapped[str | None]
    #: Calls whose outcome is known.
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    #: Of HTTP, or a command's exit code.
    status_code: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
    output: Mapped[str | None]
    truncated: Mapped[bool] = mapped_column(server_default=text("false"))
    #: What it started.
    workflow_id: Mapped[UUID | None]
    created_at: Mapped[Now]
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    #: When the row was last compared with Temporal.
    checked_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["cron_jobs.project_id", "cron_jobs.id"], ondelete="CASCADE"),
        CheckConstraint(f"state IN ({_one_of(RunState)})", name="state"),
        CheckConstraint("(state IN ('pending', 'running')) = (finished_at IS NULL)", name="finished"),
        Index("uq_cron_runs_time", "job_id", "scheduled_at", unique=True, postgresql_where=text("NOT manual")),
        Index("ix_cron_runs_list", "project_id", "job_id", "id"),
        Index("ix_cron_runs_open", "checked_at", postgresql_where=text("state IN ('pending', 'running')")),
        Index("ix_cron_runs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )


class CronTime(Frozen):
    """What a run is started with; ``run_id``: of one that Temporal does not start by its schedule."""

    project_id: UUID
    job_id: UUID
    run_id: UUID | None = None


class CronTurn(Frozen):
    """A run that begins now; ``at``: its time, where Temporal started it by its schedule."""

    time: CronTime
    at: dt.datetime | None = None


class CronCall(Frozen):
    """A run that has begun: everything else is in rows. ``seconds``: what its target may take."""

    project_id: UUID
    job_id: UUID
    run_id: UUID
    kind: TargetKind
    seconds: float


class CronEnd(Frozen):
    call: CronCall
    outcome: Outcome
    failure: Failure | None = None


class RunLike(Protocol):
    """A row of the table, or its mapped object."""

    id: Any
    job_id: Any
    scheduled_at: Any
    manual: Any


def prefix(installation: UUID) -> str:
    """Of the ids that Temporal has of ours: a namespace may be another installation's too."""
    return f"cron-{installation}-"


def schedule_id(installation: UUID, job_id: UUID) -> str:
    """Of a job's schedule."""
    return f"{prefix(installation)}{job_id}"


def workflow_id(installation: UUID, run: CronRun) -> str:
    """Of a run that Temporal does not start by its schedule: else as Temporal calls it."""
    last = f"manual-{run.id}" if run.manual else _time(run.scheduled_at)
    return f"{schedule_id(installation, run.job_id)}-{last}"


def idempotency_key(run: RunLike) -> str:
    """The same at every attempt of a run."""
    return f"cron-{run.job_id}-{f'manual-{run.id}' if run.manual else _time(run.scheduled_at)}"


def _time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
