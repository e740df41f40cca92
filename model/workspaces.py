"""Workspaces: a repository or a folder, brought to one host; and credentials with which repositories are fetched."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Id, Now
from model.resources import Resource, rules

#: The workflows of workspaces.
INIT, SYNC, DEPROVISION = "InitWorkspace", "SyncWorkspace", "DeprovisionWorkspace"
#: What agents that can hold workspaces say among their versions.
CAPABILITY = "workspaces"
#: Bytes of a token or of a private key, and of known hosts.
LONGEST_TOKEN, LONGEST_KEY, LONGEST_KNOWN_HOSTS = 4096, 16384, 16384
#: Commits of a shallow clone, and workspaces of one host that one look of its agent may name.
MOST_DEPTH, MOST_TREES = 1_000_000, 5000

CredentialType = Literal["https", "ssh"]


class WorkspaceStatus(StrEnum):
    INITIALIZING = "initializing"
    READY = "ready"
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


class WorkspaceSpec(Frozen):
    """What a host is told to bring, or to remove."""

    id: UUID
    project_id: UUID
    name: str
    git_url: str | None = None
    #: A branch, a tag or a whole commit id; None: the one that the repository itself calls its own.
    ref: str | None = None
    depth: int | None = None
    submodules: bool = False
    #: A folder of the host, instead of a repository.
    path: str | None = None
    #: Whether a credential lies ready for the host.
    login: bool = False
    #: Commits whose files stay, beside those of the one that is brought: sessions are made of them.
    keep: list[str] = []


class WorkspaceFacts(Frozen):
    """What a host has brought."""

    commit: str
    #: The branch or tag that it is of; None: of neither.
    ref: str | None = None
    size_bytes: int


class GitLogin(Frozen):
    """The values of a credential, for the host that fetches with it; in no history."""

    type: CredentialType
    #: The only host that it may be sent to.
    host: str
    username: str
    #: A token, or a private key.
    secret: str
    known_hosts: str | None = None


class Credential(Base):
    """With what repositories of one Git server are fetched. Its value is a SealedValue."""

    __tablename__ = "credentials"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    type: Mapped[str]
    host: Mapped[str]
    username: Mapped[str]
    #: Public keys of the server, as ssh has them; null: of type https.
    known_hosts: Mapped[str | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]
    #: When its value was last another.
    rotated_at: Mapped[Now]

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("type IN ('https', 'ssh')", name="type"),
        CheckConstraint("(type = 'ssh') = (known_hosts IS NOT NULL)", name="known_hosts"),
    )


class Workspace(Resource, Base):
    __tablename__ = "workspaces"

    #: One of both.
    git_url: Mapped[str | None]
    path: Mapped[str | None]
    #: What was asked for; ``ref`` is what that was found to be.
    wanted_ref: Mapped[str | None]
    depth: Mapped[int | None]
    submodules: Mapped[bool] = mapped_column(server_default=text("false"))
    credential_id: Mapped[UUID | None]
    wanted_host: Mapped[str | None]
    #: Where it is, from its placement until nothing of it is left there.
    host_id: Mapped[UUID | None] = mapped_column(ForeignKey("hosts.id"))
    commit: Mapped[str | None]
    ref: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: The workflow that owns the workspace, or owned it last.
    workflow_id: Mapped[UUID]

    __table_args__ = (
        *rules("workspaces", WorkspaceStatus),
        ForeignKeyConstraint(["project_id", "credential_id"], ["credentials.project_id", "credentials.id"]),
        CheckConstraint("num_nonnulls(git_url, path) = 1", name="source"),
        Index("ix_workspaces_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_workspaces_host", "host_id", postgresql_where=text("host_id IS NOT NULL")),
        Index("ix_workspaces_credential", "credential_id", postgresql_where=text("credential_id IS NOT NULL")),
        Index("ix_workspaces_workflow", "project_id", "workflow_id"),
        Index("ix_workspaces_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
    )


class WorkspaceLogin(Base):
    """A GitLogin, sealed for the key of the host that is about to fetch a workspace."""

    __tablename__ = "workspace_logins"

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    host_id: Mapped[UUID] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    sealed: Mapped[str]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "workspace_id"], ["workspaces.project_id", "workspaces.id"], ondelete="CASCADE"
        ),
    )
