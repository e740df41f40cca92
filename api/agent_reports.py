"""What agents tell of the health of their machines, and what they ask for on their behalf."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import TextClause, select, text

from api.agent_credentials import Agent, Authenticated, MemberRoute
from api.caller import ENTER
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import Text
from model.cache_volumes import CacheVolume
from model.errors import NotFound
from model.health import MOST, Health
from model.resources import Resource
from model.restores import Restore
from model.sealing import of_user_data, seal
from model.sessions import WorkSession
from model.workspaces import MOST_TREES, Workspace

router = APIRouter(prefix="/v1/hosts", tags=["agents"], responses=RESPONSES, route_class=MemberRoute)


#: Files of more workspaces than these, or than a tenth, that no row names are left alone: was an older backup restored?
MOST_STRANGE = 5
#: What a row says of which nothing is left on any host.
ENDED = ("deleted", "removed")
log = structlog.get_logger()


class MachineHealth(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    project_id: UUID
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)]
    health: Health
    #: What the last look that failed said.
    failure: Annotated[Text, Field(max_length=1000)] | None = None


class ToldHealth(BaseModel):
    """``POST /v1/hosts/health``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "machines": [
                        {
                            "id": "0199b3f0-0000-7000-8000-000000000001",
                            "project_id": "0199b3f0-0000-7000-8000-000000000002",
                            "generation": 1,
                            "health": "healthy",
                        }
                    ]
                }
            ]
        },
    )

    machines: Annotated[list[MachineHealth], Field(min_length=1, max_length=MOST)]


class HealthKept(BaseModel):
    #: Of how many it was another than before.
    changed: int


class HeldTree(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    project_id: UUID


class HeldWorkspaces(BaseModel):
    """``POST /v1/hosts/workspaces``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "workspaces": [
                        {
                            "id": "0199b3f0-0000-7000-8000-000000000001",
                            "project_id": "0199b3f0-0000-7000-8000-000000000002",
                        }
                    ],
                    "sessions": [],
                    "caches": [],
                }
            ]
        },
    )

    workspaces: Annotated[list[HeldTree], Field(max_length=MOST_TREES)] = []
    sessions: Annotated[list[HeldTree], Field(max_length=MOST_TREES)] = []
    caches: Annotated[list[HeldTree], Field(max_length=MOST_TREES)] = []


class WorkspacesKept(BaseModel):
    #: Workspaces of which nothing is to be left.
    gone: list[UUID]
    #: The same of sessions.
    gone_sessions: list[UUID]
    #: The same of cache volumes.
    gone_caches: list[UUID]


class UserData(BaseModel):
    #: The script, which only the agent can read: see model.sealing. Base64.
    sealed: str


class SealedLogin(BaseModel):
    #: Username and password, as JSON, which only the agent can read: see model.sealing. Base64.
    sealed: str


class SealedSecrets(BaseModel):
    #: Values by variable, and the login of its registry, as JSON, which only the agent can read: see model.sealing.
    #: Base64.
    sealed: str


# Only what runs, in this generation, on a host of the agent; a start that is under way decides for itself. What a step
# holds is passed over, and told again.
_CHANGE = text(
    """
    WITH told AS (
        SELECT * FROM jsonb_to_recordset(cast(:machines AS jsonb)) AS t(
            id uuid, generation int, health text, failure text
        )
    ), changed AS (
        SELECT i.id, i.health AS before, t.health, t.failure FROM told t
        JOIN instances i ON i.id = t.id AND i.generation = t.generation AND i.project_id = :project
        JOIN hosts h ON h.id = i.host_id AND h.credential = :credential
        WHERE i.status = 'running' AND i.health_check IS NOT NULL AND i.health IS DISTINCT FROM t.health
        ORDER BY i.id FOR UPDATE OF i SKIP LOCKED
    )
    UPDATE instances i SET health = changed.health, health_at = now() FROM changed WHERE i.id = changed.id
    RETURNING i.id, i.name, changed.before, changed.health, changed.failure
    """
)
_RECORD = text(
    """
    INSERT INTO events (project_id, type, resource_type, resource_id, data)
    VALUES (:project, :type, 'instance', :id, cast(:data AS jsonb))
    """
)
_RING = text("SELECT pg_notify('cairn', '')")
# As a worker sealed it for one of its placements on a host of the agent; or in clear, as a release before wrote it,
# until a worker seals that too.
_USER_DATA = text(
    """
    SELECT s.user_data AS sealed, i.user_data AS clear, h.public_key
    FROM instances i JOIN hosts h ON h.id IN (i.host_id, i.next_host_id)
    LEFT JOIN instance_secrets s ON s.project_id = i.project_id AND s.instance_id = i.id AND s.user_data IS NOT NULL
        AND (s.generation = i.generation AND h.id = i.host_id
            OR s.generation = i.next_generation AND h.id = i.next_host_id)
    WHERE i.id = :id AND i.project_id = :project AND h.credential = :credential
    AND (s.user_data IS NOT NULL OR i.user_data IS NOT NULL) ORDER BY s.generation DESC NULLS LAST LIMIT 1
    """
)
_LOGIN = text(
    """
    SELECT l.sealed FROM image_logins l JOIN hosts h ON h.id = l.host_id
    WHERE l.image_id = :id AND l.project_id = :project AND h.credential = :credential
    """
)
_GIT_LOGIN = text(
    """
    SELECT l.sealed FROM workspace_logins l JOIN hosts h ON h.id = l.host_id
    WHERE l.workspace_id = :id AND l.project_id = :project AND h.credential = :credential
    """
)
_NEEDED = text(
    """
    SELECT w.id FROM workspaces w JOIN hosts h ON h.id = w.host_id AND h.credential = :credential
    WHERE w.project_id = :project AND w.id = ANY(cast(:ids AS uuid[]))
    AND w.status IN ('initializing', 'ready', 'deleting')
    """
)
# Those in error too: their delete takes what is there.
_NEEDED_SESSIONS = text(
    """
    SELECT s.id FROM work_sessions s JOIN workspaces w ON w.project_id = s.project_id AND w.id = s.workspace_id
    JOIN hosts h ON h.id = w.host_id AND h.credential = :credential
    WHERE s.project_id = :project AND s.id = ANY(cast(:ids AS uuid[])) AND s.status <> 'removed'
    """
)
# Whatever their state: what was deleted is on no host any more.
_NEEDED_CACHES = text(
    """
    SELECT v.volume_id FROM cache_volume_hosts v JOIN hosts h ON h.id = v.host_id AND h.credential = :credential
    WHERE v.project_id = :project AND v.volume_id = ANY(cast(:ids AS uuid[]))
    """
)
_STRANGERS = text(
    """
    INSERT INTO restore_trees (id, host, restore_id, kind, project_id)
    SELECT t.id, h.names, :restore, :kind, t.project_id
    FROM unnest(cast(:ids AS uuid[]), cast(:projects AS uuid[])) t(id, project_id)
    CROSS JOIN (SELECT string_agg(name, ', ' ORDER BY name) AS names FROM hosts WHERE credential = :credential) h
    WHERE h.names IS NOT NULL ORDER BY t.id
    ON CONFLICT (id, host) DO UPDATE SET restore_id = excluded.restore_id, kind = excluded.kind, told_at = now()
    """
)
_SECRETS = text(
    """
    SELECT s.sealed FROM instance_secrets s
    JOIN instances i ON i.project_id = s.project_id AND i.id = s.instance_id
    JOIN hosts h ON h.id = CASE s.generation WHEN i.generation THEN i.host_id WHEN i.next_generation THEN i.next_host_id
        END
    WHERE s.instance_id = :id AND s.generation = :generation AND s.project_id = :project AND h.credential = :credential
    """
)


@router.post("/health", response_model=Envelope[HealthKept])
async def tell(request: Request, body: ToldHealth, agent: Authenticated) -> Response:
    """How the agent's machines that have a health check are. What changed is an event."""
    changed = 0
    machines = sorted({machine.id: machine for machine in body.machines}.values(), key=lambda m: m.project_id)
    for project_id, told in groupby(machines, lambda machine: machine.project_id):
        await agent.connection.execute(ENTER, {"project": str(project_id)})
        told_json = orjson.dumps([machine.model_dump(mode="json") for machine in told]).decode()
        mine = {"machines": told_json, "project": project_id, "credential": agent.credential}
        rows = (await agent.connection.execute(_CHANGE, mine)).all()
        changed += len(rows)
        for row in rows:
            if row.health == "starting":
                continue
            data = {"name": row.name, "from": row.before, "to": row.health, "failure": row.failure}
            event = {"project": project_id, "type": f"instance.{row.health}", "id": row.id}
            await agent.connection.execute(_RECORD, event | {"data": orjson.dumps(data).decode()})
    if changed:
        await agent.connection.execute(_RING)
    return answer(request, {"changed": changed})


@router.get("/user-data/{instance_id}", response_model=Envelope[UserData])
async def user_data(
    request: Request, instance_id: UUID, project_id: Annotated[UUID, Query()], agent: Authenticated
) -> Response:
    """The script of an instance that is, or is about to be, on a host of the agent."""
    await agent.connection.execute(ENTER, {"project": str(project_id)})
    asked = {"id": instance_id, "project": project_id, "credential": agent.credential}
    found = (await agent.connection.execute(_USER_DATA, asked)).one_or_none()
    if found is None:
        raise NotFound(f"no host of this agent holds an instance {instance_id} with user_data")
    sealed = found.sealed
    if sealed is None:
        sealed = seal(found.clear.encode(), purpose=of_user_data(instance_id), key=bytes(found.public_key or b""))
    return answer(request, {"sealed": sealed})


@router.get("/secrets/{instance_id}", response_model=Envelope[SealedSecrets])
async def secrets(
    request: Request,
    instance_id: UUID,
    project_id: Annotated[UUID, Query()],
    generation: Annotated[int, Query(ge=0, le=2**31 - 1)],
    agent: Authenticated,
) -> Response:
    """What a placement of an instance on a host of the agent is given; a worker sealed it, the API cannot read it."""
    await agent.connection.execute(ENTER, {"project": str(project_id)})
    asked = {"id": instance_id, "project": project_id, "generation": generation, "credential": agent.credential}
    found = (await agent.connection.execute(_SECRETS, asked)).one_or_none()
    if found is None:
        raise NotFound(f"no host of this agent holds generation {generation} of instance {instance_id} with secrets")
    return answer(request, {"sealed": found.sealed})


@router.get("/registry-logins/{image_id}", response_model=Envelope[SealedLogin])
async def registry_login(
    request: Request, image_id: UUID, project_id: Annotated[UUID, Query()], agent: Authenticated
) -> Response:
    """With what a host of the agent pulls an image that is being imported; a worker sealed it for that host."""
    await agent.connection.execute(ENTER, {"project": str(project_id)})
    asked = {"id": image_id, "project": project_id, "credential": agent.credential}
    found = (await agent.connection.execute(_LOGIN, asked)).one_or_none()
    if found is None:
        raise NotFound(f"no host of this agent is asked to pull image {image_id} with a login")
    return answer(request, {"sealed": found.sealed})


@router.get("/git-logins/{workspace_id}", response_model=Envelope[SealedLogin])
async def git_login(
    request: Request, workspace_id: UUID, project_id: Annotated[UUID, Query()], agent: Authenticated
) -> Response:
    """With what a host of the agent fetches a workspace; a worker sealed it for that host."""
    await agent.connection.execute(ENTER, {"project": str(project_id)})
    asked = {"id": workspace_id, "project": project_id, "credential": agent.credential}
    found = (await agent.connection.execute(_GIT_LOGIN, asked)).one_or_none()
    if found is None:
        raise NotFound(f"no host of this agent is asked to fetch workspace {workspace_id} with a credential")
    return answer(request, {"sealed": found.sealed})


@router.post("/workspaces", operation_id="report_workspaces", response_model=Envelope[WorkspacesKept])
async def workspaces(request: Request, body: HeldWorkspaces, agent: Authenticated) -> Response:
    """Of which of the workspaces, sessions and cache volumes whose files the agent holds nothing is needed any more.
    None while the platform is restored, where far too many are unknown, or of which a restore may have lost the row."""
    found = await agent.connection.execute(select(Restore.__table__).order_by(Restore.restored_at.desc()).limit(1))
    restore = None if (row := found.one_or_none()) is None else Restore(**row._mapping)
    gone = await _gone(agent, restore, "workspace", body.workspaces, _NEEDED, Workspace)
    gone_sessions = await _gone(agent, restore, "session", body.sessions, _NEEDED_SESSIONS, WorkSession)
    gone_caches = await _gone(agent, restore, "cache", body.caches, _NEEDED_CACHES, CacheVolume)
    return answer(request, {"gone": gone, "gone_sessions": gone_sessions, "gone_caches": gone_caches})


async def _gone(
    agent: Agent, restore: Restore | None, kind: str, told: list[HeldTree], needed: TextClause, table: type[Resource]
) -> list[UUID]:
    """Those that are proven to be nobody's: what has a row, and not on that host; of what has none, a few. What was
    made before a restore has them only where its row says that it was deleted: what was done with it may be lost."""
    held = sorted(told, key=lambda one: one.project_id)
    kept, known = set[UUID](), dict[UUID, str]()
    for project_id, of_project in groupby(held, lambda one: one.project_id):
        await agent.connection.execute(ENTER, {"project": str(project_id)})
        ids = [one.id for one in of_project]
        asked = {"project": project_id, "ids": [str(id) for id in ids], "credential": agent.credential}
        kept.update((await agent.connection.execute(needed, asked)).scalars())
        rows = select(table.id, table.status).where(table.project_id == project_id, table.id.in_(ids))
        known.update({row.id: row.status for row in await agent.connection.execute(rows)})
    if restore is not None and restore.finished_at is None:
        await _note(agent, restore, kind, [one for one in held if one.id not in known])
        return []
    gone = [one.id for one in held if one.id not in kept]
    if restore is not None:
        spared = [id for id in gone if restore.leaves(id) or (known.get(id) not in ENDED and restore.may_have_lost(id))]
        if spared:
            log.info("agent.files_from_before_a_restore", kind=kind, count=len(spared), first=str(spared[0]))
        gone = [id for id in gone if id not in spared]
    strangers = [id for id in gone if id not in known]
    if len(strangers) > max(MOST_STRANGE, len(held) // 10):
        log.warning("agent.too_many_strangers", kind=table.__name__, count=len(strangers), first=str(strangers[0]))
        return [id for id in gone if id in known]
    return gone


async def _note(agent: Agent, restore: Restore, kind: str, strange: list[HeldTree]) -> None:
    """Write down what no row knows, for the operator who decides what differs."""
    # Once each: the statement cannot change a row twice.
    ids = {one.id: one.project_id for one in strange}
    if ids:
        told = {"ids": [str(id) for id in ids], "projects": [str(project) for project in ids.values()]}
        of = {"restore": restore.id, "kind": kind, "credential": agent.credential}
        await agent.connection.execute(_STRANGERS, told | of)
