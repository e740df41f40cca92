"""``/v1/agents``: which agents a project's sessions may have. What one is asked, and answers, is in ``api.chats``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response
from sqlalchemy import Row, delete, func, insert, select, text, update

from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Env, SecretRef
from api.paging import OfName, Paging, page_of
from api.resources import named, one, unique_name
from api.work_agent_schemas import AgentCreate, AgentPatch, AgentView
from model.base import new_id
from model.chat import SUPERVISED, AgentType, WorkAgent
from model.errors import InUse, NotFound, ValidationFailed
from model.settings import Settings

router = APIRouter(prefix="/v1/agents", tags=["sessions"], responses=RESPONSES)

#: Of a project.
MOST_AGENTS = 100
#: Where the image of the reference agent has it.
REFERENCE = ["python3", "/usr/lib/cairn/agent.py"]
_TABLE = WorkAgent.__table__
#: One default at a time is of one change at a time.
_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended('agents ' || :project, 0))")


@router.post("", status_code=201, response_model=Envelope[AgentView])
async def create(request: Request, body: AgentCreate, caller: Annotated[Caller, may("agents:write")]) -> Response:
    """Add an agent, for sessions that are made from now on."""
    _check_secrets(caller, body.env)
    agent_id = new_id()
    asked = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if answered := await Acceptance(request, caller).answered_before(agent_id, asked):
        return _answer(request, await _find(caller, answered.resource_id), 201)
    await _alone(caller)
    mine = select(func.count()).where(WorkAgent.project_id == caller.project_id)
    count = (await caller.execute(mine)).scalar_one()
    if count >= MOST_AGENTS:
        raise InUse(f"the project has {MOST_AGENTS} agents, as many as it may: delete one")
    values = body.model_dump(mode="json", by_alias=True) | {"id": agent_id, "project_id": caller.project_id}
    values["is_default"] = body.is_default or not count
    if values["is_default"]:
        await _no_default(caller)
    row = await _written(caller, insert(WorkAgent).values(**values).returning(*_TABLE.c), body.name)
    caller.changed("agent", agent_id, after=_told(row))
    return _answer(request, row, 201)


@router.get("", response_model=Envelope[list[AgentView]])
async def index(
    request: Request, caller: Annotated[Caller, may("agents:read")], page: Paging, name: OfName = None
) -> Response:
    """The project's agents, newest first."""
    query = select(_TABLE).where(*named(WorkAgent, caller, name))
    return await page_of(request, caller, query, _TABLE.c.id, page, _view)


@router.get("/{agent_id}", response_model=Envelope[AgentView])
async def show(request: Request, agent_id: UUID, caller: Annotated[Caller, may("agents:read")]) -> Response:
    """One agent."""
    return _answer(request, await _find(caller, agent_id))


@router.patch("/{agent_id}", response_model=Envelope[AgentView])
async def patch(
    request: Request, agent_id: UUID, body: AgentPatch, caller: Annotated[Caller, may("agents:write")]
) -> Response:
    """Change an agent, for sessions that are made from now on."""
    await _alone(caller)
    before = await _find(caller, agent_id, lock=True)
    check_if_match(request, before.version)
    values = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if {"env", "cmd", "image", "mcp_servers"} & values.keys():  # what is given its secrets, or is to be
        _check_secrets(caller, body.env if "env" in values else before.env)
    if "cmd" in values and before.type == AgentType.REFERENCE:
        problem = "the reference agent has its own command"
        raise ValidationFailed(f"cmd: {problem}", fields=[{"field": "cmd", "message": problem}])
    if not values:
        return _answer(request, before)
    if values.get("is_default"):
        await _no_default(caller)
    values |= {"updated_at": func.now(), "version": WorkAgent.version + 1}
    changing = update(WorkAgent).where(WorkAgent.id == agent_id).values(**values).returning(*_TABLE.c)
    after = await _written(caller, changing, body.name)
    caller.changed("agent", agent_id, _told(before), _told(after))
    return _answer(request, after)


@router.delete("/{agent_id}", status_code=204)
async def remove(request: Request, agent_id: UUID, caller: Annotated[Caller, may("agents:write")]) -> Response:
    """Delete an agent; sessions keep theirs. Of the others the oldest is the default then, where this one was it."""
    await _alone(caller)
    row = await _find(caller, agent_id, lock=True)
    check_if_match(request, row.version)
    await caller.execute(delete(WorkAgent).where(WorkAgent.id == agent_id))
    if row.is_default:
        oldest = select(WorkAgent.id).where(WorkAgent.project_id == caller.project_id).order_by(WorkAgent.id).limit(1)
        following = {"is_default": True, "version": WorkAgent.version + 1, "updated_at": func.now()}
        await caller.execute(update(WorkAgent).where(WorkAgent.id == oldest.scalar_subquery()).values(**following))
    caller.changed("agent", agent_id, before=_told(row))
    return Response(status_code=204)


async def chosen(caller: Caller, agent_id: UUID | str | None) -> Row[Any] | None:
    """The agent of a new session: this one, or the project's ``default``. Raises NotFound."""
    if agent_id is None:
        return None
    if isinstance(agent_id, UUID):
        return await _find(caller, agent_id)
    mine = (WorkAgent.project_id == caller.project_id) & WorkAgent.is_default
    row = (await caller.execute(select(_TABLE).where(mine))).one_or_none()
    if row is None:
        raise NotFound("the project has no agent: add one (POST /v1/agents)")
    return row


def image_of(agent: Row[Any], settings: Settings) -> str:
    """What its sandboxes are made of, where nobody says otherwise."""
    own = settings.agent_image if agent.type == AgentType.REFERENCE else settings.session_image
    return str(agent.image or own)


def command_of(agent: Row[Any]) -> list[str]:
    """What its sandboxes run."""
    return [*SUPERVISED, *(REFERENCE if agent.cmd is None else agent.cmd)]


def environment_of(agent: Row[Any]) -> Env:
    """What it finds in its sandbox."""
    told: Env = {"CAIRN_AGENT_PORT": str(agent.port)}
    for name in ("mode", "model"):
        if (value := getattr(agent, name)) is not None:
            told[f"CAIRN_AGENT_{name.upper()}"] = value
    if agent.mcp_servers:
        told["CAIRN_AGENT_MCP_SERVERS"] = orjson.dumps(agent.mcp_servers).decode()
    return told | {
        name: value if isinstance(value, str) else SecretRef.model_validate(value) for name, value in agent.env.items()
    }


def _check_secrets(caller: Caller, env: Mapping[str, Any]) -> None:
    """Whoever names secrets, or changes the program that is given them, may use them. Raises Forbidden."""
    if any(not isinstance(value, str) for value in env.values()):
        caller.require("secrets:use")


async def _alone(caller: Caller) -> None:
    await caller.execute(_ALONE, {"project": str(caller.project_id)})


async def _no_default(caller: Caller) -> None:
    mine = (WorkAgent.project_id == caller.project_id) & WorkAgent.is_default
    was = {"is_default": False, "version": WorkAgent.version + 1, "updated_at": func.now()}
    await caller.execute(update(WorkAgent).where(mine).values(**was))


async def _written(caller: Caller, statement: Any, name: str) -> Row[Any]:
    with unique_name("an agent", name):
        return (await caller.execute(statement)).one()


async def _find(caller: Caller, agent_id: UUID, *, lock: bool = False) -> Row[Any]:
    query = select(_TABLE).where(WorkAgent.project_id == caller.project_id, WorkAgent.id == agent_id)
    return await one(caller, query.with_for_update() if lock else query, "agent", agent_id)


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _told(row: Row[Any]) -> dict[str, Any]:
    """What the audit log shows of it: nothing that may hold a secret."""
    return {name: getattr(row, name) for name in ("name", "type", "mode", "model", "is_default", "image", "port")}


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in AgentView.model_fields}
