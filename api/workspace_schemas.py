"""Workspaces and credentials as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api.instance_schemas import ErrorView, Name, Text
from model import git_urls
from model.errors import UrlRefused
from model.workspaces import LONGEST_KEY, LONGEST_KNOWN_HOSTS, LONGEST_TOKEN, MOST_DEPTH, CredentialType

#: In examples.
CREDENTIAL_ID = "0199b3f0-0000-7000-8000-000000000003"


def _host(value: str) -> str:
    try:
        return git_urls.check_host(value)
    except UrlRefused as error:
        raise ValueError(error.message) from None


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it is one line, without control characters")
    return value


def _path(value: str) -> str:
    if not value.startswith("/") or not value.isprintable() or ".." in value.split("/"):
        raise ValueError("expected a folder of the host, from its root on and without '..'")
    return value


def _private_key(value: str) -> str:
    if not value.startswith("-----BEGIN ") or "PRIVATE KEY-----" not in value:
        raise ValueError("expected a private key as ssh-keygen writes it, without a passphrase")
    return value if value.endswith("\n") else f"{value}\n"


Host = Annotated[Text, Field(min_length=1, max_length=253), AfterValidator(_host)]
Ref = Annotated[Text, Field(min_length=1, max_length=git_urls.MOST_REF), AfterValidator(git_urls.check_ref)]
Token = Annotated[Text, Field(min_length=1, max_length=LONGEST_TOKEN), AfterValidator(_one_line)]
PrivateKey = Annotated[Text, Field(min_length=1, max_length=LONGEST_KEY), AfterValidator(_private_key)]
KnownHosts = Annotated[Text, Field(min_length=1, max_length=LONGEST_KNOWN_HOSTS)]
Username = Annotated[Text, Field(min_length=1, max_length=255, pattern=r"^[^:\s]+$"), AfterValidator(_one_line)]


class WorkspaceSource(BaseModel):
    """A repository, or a folder of a host whose operator allows that."""

    model_config = ConfigDict(extra="forbid")

    #: https or ssh, without name or password.
    git_url: Annotated[Text, Field(min_length=1, max_length=git_urls.MOST_URL)] | None = None
    #: A branch, a tag, or a commit's whole id; null: what the repository itself calls its own.
    ref: Ref | None = None
    #: So many commits of it alone; null: all of the repository, which later workspaces of it are quicker by.
    depth: Annotated[int, Field(strict=True, ge=1, le=MOST_DEPTH)] | None = None
    #: With its submodules, of the same host.
    submodules: bool = False
    credential_id: str | None = Field(default=None, json_schema_extra={"format": "uuid"})
    #: Copied as it is then.
    path: Annotated[Text, Field(min_length=1, max_length=1024), AfterValidator(_path)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> WorkspaceSource:
        if (self.git_url is None) == (self.path is None):
            raise ValueError("expected a git_url or a path, and not both")
        if self.path is not None and (self.ref or self.depth or self.submodules or self.credential_id):
            raise ValueError("ref, depth, submodules and credential_id are of repositories")
        return self


class WorkspaceCreate(BaseModel):
    """``POST /v1/workspaces``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "shop", "source": {"git_url": "https://git.example.org/team/shop.git", "ref": "main"}}
            ]
        },
    )

    name: Name
    source: WorkspaceSource
    #: Where it is to be; null: where there is room.
    host: Annotated[Text, Field(min_length=1, max_length=63)] | None = None


class WorkspacePatch(BaseModel):
    """``PATCH /v1/workspaces/{id}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "shop-2"}]})

    name: Name


class WorkspaceSourceView(BaseModel):
    git_url: str | None
    ref: str | None
    depth: int | None
    submodules: bool
    credential_id: str | None
    path: str | None


class WorkspaceView(BaseModel):
    id: str
    project_id: str
    name: str
    status: str
    source: WorkspaceSourceView
    #: Whose files new sessions get, and the branch or tag that it is of.
    commit: str | None
    ref: str | None
    size_bytes: int | None
    host: str | None
    #: How far a run is that works on it now, in words; of a list always null.
    progress: str | None
    version: int
    #: Why its first fetch failed, or the last sync.
    error: ErrorView | None
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None


class CredentialValue(BaseModel):
    """``PUT /v1/credentials/{id}``: another value of the same credential."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"token": "glpat-another"}]})

    #: Of type https: with which one logs in.
    token: Token | None = None
    #: Of type ssh: without a passphrase.
    private_key: PrivateKey | None = None
    #: Of type ssh: the server's public keys, as ssh-keyscan prints them.
    known_hosts: KnownHosts | None = None


class CredentialCreate(CredentialValue):
    """``POST /v1/credentials``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "gitlab", "type": "https", "host": "git.example.org", "token": "glpat-secret"}]
        },
    )

    name: Name
    type: CredentialType
    #: The only one that it is sent to.
    host: Host
    #: Of type https; servers that look at the token alone take any.
    username: Username | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> CredentialCreate:
        check_value(self.type, self)
        if self.type == "ssh" and (self.known_hosts is None or self.username is not None):
            raise ValueError("of type ssh it needs known_hosts, and its user is in the URL")
        return self


def check_value(kind: str, value: CredentialValue) -> None:
    """Raises ValueError where it is not one of this kind."""
    if kind == "https" and (value.token is None or value.private_key is not None or value.known_hosts is not None):
        raise ValueError("of type https it needs a token, and nothing of ssh")
    if kind == "ssh" and (value.private_key is None or value.token is not None):
        raise ValueError("of type ssh it needs a private_key, and no token")


class CredentialView(BaseModel):
    id: str
    project_id: str
    name: str
    type: str
    host: str
    username: str
    known_hosts: str | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: When its value was last another.
    rotated_at: dt.datetime
