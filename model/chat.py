"""Agents that work in sessions, and what is said to them: the tables, and what travels to whoever delivers it."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, EmptyList, EmptyObject, Frozen, Id, Now
from model.workflows import Order

#: The workflow of one prompt and its answer.
CHAT = "ChatTurn"
#: What an agent's program is run by: it is started again where it ends, and its sandbox stays.
SUPERVISED = ["/bin/sh", "-c", 'while :; do "$@"; sleep 1; done', "agent"]
#: Where the reference agent listens, in its sandbox's own network; others may listen elsewhere.
PORT = 8480
#: Bytes of what an agent says: one event, and all of an answer. Events of an answer.
MOST_EVENT, MOST_ANSWER, MOST_EVENTS = 64 << 10, 4 << 20, 50_000
#: The event with which the platform ends each answer.
END = "end"


class AgentType(StrEnum):
    #: The one that comes with the platform, which has no model: it repeats, and runs commands.
    REFERENCE = "reference"
    #: Any program that keeps to docs/agents.md.
    CUSTOM = "custom"


class Role(StrEnum):
    USER = "user"
    AGENT = "agent"


class MessageStatus(StrEnum):
    #: Its prompt is stored, and not delivered yet.
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: An answer that is still to come.
OPEN = (MessageStatus.PENDING, MessageStatus.RUNNING)


class Turn(Frozen):
    """One prompt and its answer, by name: what was said is in no history."""

    order: Order
    #: The answer's message; under this the agent knows the turn.
    message_id: UUID


class WorkAgent(Base):
    """A kind of agent that sessions of the project may have; each session has a program of its own."""

    __tablename__ = "agents"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    type: Mapped[str]
    mode: Mapped[str | None]
    model: Mapped[str | None]
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    mcp_servers: Mapped[EmptyList]
    #: None: of a custom one, that of its session; of the reference agent, the platform's.
    image: Mapped[str | None]
    cmd: Mapped[list[Any] | None]
    port: Mapped[int]
    #: As it was asked for: values, and names of secrets.
    env: Mapped[EmptyObject]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("type IN ({})".format(", ".join(f"'{one}'" for one in AgentType)), name="type"),
        CheckConstraint("(type = 'custom') = (cmd IS NOT NULL)", name="cmd"),
        CheckConstraint("port BETWEEN 1024 AND 65535", name="port"),
        Index("uq_agents_default", "project_id", unique=True, postgresql_where=text("is_default")),
    )


class Message(Base):
    """A prompt, or the answer to one. They are numbered in their session; an answer follows its prompt."""

    __tablename__ = "messages"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    session_id: Mapped[UUID]
    number: Mapped[int]
    role: Mapped[str]
    #: Of a prompt; what an answer says is in its chunks.
    content: Mapped[str | None]
    status: Mapped[str]
    error: Mapped[dict[str, Any] | None]
    #: Of what an answer says, as its agent sent it.
    bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    #: Its turn's. No foreign key: a session outlives the rows of workflows.
    workflow_id: Mapped[UUID]
    created_at: Mapped[Now]
    finished_at: Mapped[dt.datetime | None]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("session_id", "number"),
        ForeignKeyConstraint(
            ["project_id", "session_id"], ["work_sessions.project_id", "work_sessions.id"], ondelete="CASCADE"
        ),
        CheckConstraint("role IN ('user', 'agent')", name="role"),
        CheckConstraint("(role = 'user') = (content IS NOT NULL)", name="content"),
        CheckConstraint("status IN ({})".format(", ".join(f"'{one}'" for one in MessageStatus)), name="status"),
        CheckConstraint("(status IN ('pending', 'running')) = (finished_at IS NULL)", name="finished"),
        Index("ix_messages_workflow", "workflow_id"),
        # One answer at a time.
        Index("uq_messages_open", "session_id", unique=True, postgresql_where=text("status IN ('pending', 'running')")),
    )


class Chunk(Base):
    """One event of an answer, as its agent numbered it; the last is the platform's."""

    __tablename__ = "message_chunks"

    message_id: Mapped[Id]
    number: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "message_id"], ["messages.project_id", "messages.id"], ondelete="CASCADE"),
        CheckConstraint("number >= 1", name="number"),
    )
