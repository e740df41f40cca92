"""Work sessions: sandboxes, each on files of its own that begin as a workspace's. States, orders, the table."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen
from model.resources import Resource, rules

#: The workflows of sessions.
INIT, STOP, START, DEPROVISION = "InitSession", "StopSession", "StartSession", "DeprovisionSession"
COMMIT = "CommitSession"
#: Where a session's files are in its sandbox.
PLACE = "/workspace"
#: The program of a sandbox, which does nothing.
IDLE = ["/bin/sh", "-c", "while :; do sleep 3600; done"]


class SessionStatus(StrEnum):
    INITIALIZING = "initializing"
    #: Its files are made.
    CLONING = "cloning"
    PULLING_IMAGE = "pulling_image"
    CREATING_SANDBOX = "creating_sandbox"
    #: It has an agent, which has nothing to do.
    READY = "ready"
    #: It has no agent, or one that works.
    RUNNING = "running"
    STOPPED = "stopped"
    ERROR = "error"
    REMOVING = "removing"
    REMOVED = "removed"


#: In these its sandbox runs.
UP = frozenset({SessionStatus.READY, SessionStatus.RUNNING})


class SessionTree(Frozen):
    """What a host is told to make of a session's files."""

    session: UUID
    #: None: told by a release that did not say it.
    project: UUID | None = None
    workspace: UUID
    #: Of the workspace: what they are before the session changes anything.
    commit: str


class CommitSpec(Frozen):
    """What a host is told to make of a session's files: a commit of its workspace."""

    #: Of the run: repeated, it is the same commit.
    id: UUID
    project_id: UUID
    tree: SessionTree
    parent: str
    message: str
    #: ``NAME <MAIL>``; None: the platform.
    author: str | None = None
    #: Seconds since 1970.
    at: int


class FileChange(Frozen):
    """What a session has made of one file. Lines are those of texts; None: it is none."""

    path: str
    status: Literal["added", "modified", "deleted", "renamed"]
    #: Of a renamed one: what it was called.
    old_path: str | None = None
    additions: int | None = None
    deletions: int | None = None


#: What a difference is written out of: what can be read, or all of it, as ``git apply`` takes it.
TextOf = Literal["text", "binary"]


class Difference(Frozen):
    """What a session has changed since a commit."""

    base: str
    files: list[FileChange]
    #: As git writes it; None: it was not asked for.
    diff: str | None = None
    #: There is more of one of both than is shown.
    truncated: bool = False


class WorkSession(Resource, Base):
    __tablename__ = "work_sessions"

    workspace_id: Mapped[UUID]
    commit: Mapped[str]
    #: What was last committed of it; null: nothing.
    head: Mapped[str | None]
    #: Its sandbox.
    instance_id: Mapped[UUID]
    #: The agent that it was made with, and where that listens: of then, whatever became of the agent's row.
    agent_id: Mapped[UUID | None]
    agent_port: Mapped[int | None]
    #: The pool that had, or should have had, a sandbox for it. No foreign key: a claim would wait for whatever has the
    #: pool's row, which its runs lock for as long as they order launches.
    pool_id: Mapped[UUID | None]
    #: ``warm``: in a sandbox that ran already. ``cold``: in one of its own, and why.
    start: Mapped[str] = mapped_column(server_default=text("'cold'"))
    start_reason: Mapped[str | None]
    #: The workflow that owns the session, or owned it last.
    workflow_id: Mapped[UUID]

    __table_args__ = (
        *rules("work_sessions", SessionStatus, gone="removed"),
        CheckConstraint("(agent_id IS NULL) = (agent_port IS NULL)", name="agent"),
        ForeignKeyConstraint(["project_id", "workspace_id"], ["workspaces.project_id", "workspaces.id"]),
        ForeignKeyConstraint(["project_id", "instance_id"], ["instances.project_id", "instances.id"]),
        CheckConstraint("start IN ('warm', 'cold')", name="start"),
        Index("ix_work_sessions_list", "project_id", "id", postgresql_where=text("status <> 'removed'")),
        Index("ix_work_sessions_workspace", "workspace_id"),
        Index("ix_work_sessions_instance", "instance_id"),
        Index("ix_work_sessions_workflow", "project_id", "workflow_id"),
        Index("ix_work_sessions_pool", "pool_id", "created_at", postgresql_where=text("pool_id IS NOT NULL")),
        Index("ix_work_sessions_removed", "deleted_at", postgresql_where=text("status = 'removed'")),
    )
