"""Agents as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.instance_schemas import Env, ImageName, Name, SecretRef, Text, Words
from model.chat import PORT, AgentType

#: Of all MCP servers of an agent, as JSON: it gets them in a variable.
MOST_SERVERS_BYTES = 16384


class McpServer(BaseModel):
    """A server of tools (Model Context Protocol), which the agent starts (`command`) or asks (`url`)."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    command: Words | None = None
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s\x00]{1,2000}$")] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> McpServer:
        if (self.command is None) == (self.url is None):
            raise ValueError("expected either command or url")
        return self


def _fitting(servers: list[McpServer]) -> list[McpServer]:
    if len({server.name for server in servers}) < len(servers):
        raise ValueError("two servers have the same name")
    if len(orjson.dumps([server.model_dump() for server in servers])) > MOST_SERVERS_BYTES:
        raise ValueError(f"more than {MOST_SERVERS_BYTES} bytes as JSON")
    return servers


McpServers = Annotated[list[McpServer], Field(max_length=50), AfterValidator(_fitting)]
Port = Annotated[int, Field(strict=True, ge=1024, le=65535)]
Word = Annotated[Text, Field(min_length=1, max_length=255)]
_KEPT = "the reference agent has its own command: leave cmd out, or take the type custom"


class AgentCreate(BaseModel):
    """``POST /v1/agents``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "coder", "type": "custom", "cmd": ["python3", "/opt/agent.py"], "model": "large-1"}]
        },
    )

    name: Name
    #: `reference`: the one that comes with the platform, without a model. `custom`: any program that keeps to the
    #: contract of agents.
    type: AgentType = AgentType.REFERENCE
    #: What these say is between you and the agent, which gets them as variables.
    mode: Word | None = None
    model: Word | None = None
    #: New sessions that ask for the default agent get this one. The first agent of a project is its default.
    is_default: Annotated[bool, Field(strict=True)] = False
    mcp_servers: McpServers = []
    #: Of sessions with this agent that name no image themselves.
    image: ImageName | None = None
    #: Of a custom one: its program, which its sandbox runs, and runs again where it ends.
    cmd: Annotated[Words, Field(min_length=1)] | None = None
    #: Where it listens, on its sandbox's loopback.
    port: Port = PORT
    #: What a session has by itself goes before this.
    env: Env = {}

    @model_validator(mode="after")
    def _runs(self) -> AgentCreate:
        if self.type == AgentType.CUSTOM and self.cmd is None:
            raise ValueError("cmd: a custom agent has a command")
        if self.type == AgentType.REFERENCE and self.cmd is not None:
            raise ValueError(f"cmd: {_KEPT}")
        return self


class AgentPatch(BaseModel):
    """``PATCH /v1/agents/{id}``: what is not named stays; null removes. Sessions that there are stay as they are."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"model": "large-2", "is_default": True}]}
    )

    name: Name = ""
    mode: Word | None = None
    model: Word | None = None
    #: Only true: the default is another where another is made it.
    is_default: Literal[True] = True
    mcp_servers: McpServers = []
    image: ImageName | None = None
    cmd: Annotated[Words, Field(min_length=1)] = []
    port: Port = PORT
    env: Env = {}


class AgentView(BaseModel):
    id: str
    project_id: str
    name: str
    type: str
    mode: str | None
    model: str | None
    is_default: bool
    mcp_servers: list[dict[str, Any]]
    image: str | None
    cmd: list[str] | None
    port: int
    env: dict[str, str | SecretRef]
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
