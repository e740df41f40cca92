"""Work sessions as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from api.cache_volume_schemas import CacheNames
from api.instance_schemas import Env, ErrorView, ImageName, Name, Ports, SecretRef, Text, TypeName
from api.lifetimes import IdleStop, Ttl
from model.instances import Port
from model.networks import Network
from model.pools import Start

#: Characters of a commit's message.
LONGEST_MESSAGE = 16_384


class SessionCreate(BaseModel):
    """``POST /v1/workspaces/{id}/sessions``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "fix-login", "image": "python:3.13-slim", "network": {"mode": "none"}}]
        },
    )

    #: Null: one after the workspace's.
    name: Name | None = None
    #: An agent of the project, whose program its sandbox runs; `default`: the project's default.
    agent_id: UUID | Literal["default"] | None = None
    #: With /bin/sh; null: the agent's, else the platform's (CAIRN_SESSION_IMAGE).
    image: ImageName | None = None
    instance_type: TypeName = "basic-1"
    env: Env = {}
    #: As of an instance.
    network: Network | None = None
    #: It is stopped when it has done nothing for so long; its files stay.
    idle_stop_seconds: IdleStop | None = None
    #: It is deleted, with its files, so many seconds after it was accepted.
    ttl_seconds: Ttl | None = None
    ports: Ports = []
    #: Names of cache volumes of the project, which it shares with other sessions on its host.
    caches: CacheNames = []

    @model_validator(mode="after")
    def _is_reached(self) -> SessionCreate:
        if self.ports and self.network is not None and self.network.mode != "open":
            raise ValueError(f"ports: nothing reaches a session with the network {self.network.mode}; publish none")
        return self


class SessionView(BaseModel):
    id: str
    project_id: str
    name: str
    status: str
    workspace_id: str
    #: Of the workspace: what its files were at first.
    commit: str
    #: What was last committed of it; null: nothing.
    head: str | None
    #: Its sandbox, an instance that is changed through it alone, and what that was made of.
    instance_id: str
    agent_id: str | None
    #: `warm`: it got one that ran already, of a pool; `cold`: one was launched for it, and why.
    start: Start
    start_reason: str | None
    #: The pool that had one for it, or should have had.
    pool_id: str | None
    image: str
    instance_type: str
    env: dict[str, str | SecretRef]
    network: Network
    ports: list[Port]
    #: Names of the cache volumes that it has.
    caches: list[str]
    host: str | None
    reachable: bool | None
    private_ip: str | None
    ttl_seconds: int | None
    expires_at: dt.datetime | None
    idle_stop_seconds: int | None
    version: int
    error: ErrorView | None
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None


class Author(BaseModel):
    """Who a commit is by."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=200, pattern=r"^[^<>]*[^<>\s.,;:'\"][^<>]*$")]
    email: Annotated[Text, Field(min_length=3, max_length=254, pattern=r"^[^<>@\s]+@[^<>@\s]+$")]

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("it is one line, without control characters")
        return name


class CommitCreate(BaseModel):
    """``POST /v1/sessions/{id}/commit``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"message": "Mend the login", "author": {"name": "Ada", "email": "ada@example.org"}}]
        },
    )

    #: Its first line is the title.
    message: Annotated[Text, Field(min_length=1, max_length=LONGEST_MESSAGE)]
    #: Null: the platform.
    author: Author | None = None

    @field_validator("message")
    @classmethod
    def _says_something(cls, message: str) -> str:
        if not message.strip():
            raise ValueError("it says nothing")
        return message


class ChangeView(BaseModel):
    """What became of one file."""

    path: str
    #: `added`, `modified`, `deleted` or `renamed`.
    status: str
    #: Of a renamed one: what it was called.
    old_path: str | None
    #: Lines; null: it is no text.
    additions: int | None
    deletions: int | None


class DiffView(BaseModel):
    """What a session has changed, files that nobody has added included."""

    #: The commit that it is compared with: what was last committed of it, else what it began with.
    base: str
    files: list[ChangeView]
    #: As git writes it; null: with `stat=true`.
    diff: str | None
    #: There is more than the 1 MiB of text, or the 10,000 files, that are shown.
    truncated: bool


class FileView(BaseModel):
    """A file, folder or link of a session."""

    name: str
    #: From the session's folder on.
    path: str
    #: `file`, `folder`, `link`, or `other`, which can only be moved and deleted.
    type: str
    size: int
    #: Permissions, octal digits.
    mode: str
    modified_at: dt.datetime
    #: Of a link: what it says.
    target: str | None


class FileList(BaseModel):
    entries: list[FileView]
    #: There are more than the 10,000 that are named.
    truncated: bool


class FileMove(BaseModel):
    """``POST /v1/sessions/{id}/files/move``."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, json_schema_extra={"examples": [{"from": "old.py", "to": "src/new.py"}]}
    )

    source: Annotated[str, Field(alias="from", min_length=1, max_length=4095)]
    to: Annotated[str, Field(min_length=1, max_length=4095)]
    #: Of what is there; else 409.
    replace: Annotated[bool, Field(strict=True)] = False


class FolderCreate(BaseModel):
    """``POST /v1/sessions/{id}/files/mkdir``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"path": "src/new"}]})

    path: Annotated[str, Field(min_length=1, max_length=4095)]


class Unpacked(BaseModel):
    """``PUT /v1/sessions/{id}/archive``: how many entries there were."""

    entries: int
