"""Sandboxes of pools, as sessions claim them."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import Row, text

from api import lifetimes
from api.caller import Caller
from api.image_names import named_image
from api.instance_schemas import InstanceCreate
from api.work_session_schemas import SessionCreate

#: Live pools of the project that have such sandboxes, those with most of them first.
_POOLS = text(
    """
    SELECT g.id, g.name FROM scaling_groups g
    JOIN group_configurations c ON c.group_id = g.id AND c.revision = g.revision
    WHERE g.project_id = :project AND g.kind = 'pool' AND g.status NOT IN ('deleting', 'deleted')
        AND c.template ->> 'image' = :image AND (c.template ->> 'image_id') IS NOT DISTINCT FROM :image_id
        AND c.template ->> 'instance_type' = :type AND c.template -> 'network' = cast(:network AS jsonb)
        AND coalesce(c.template ->> 'wanted_host', :host) = :host
    ORDER BY g.desired_count DESC, g.id
    """
)
# One statement, on a row that nobody else has locked: what one session takes, no other sees. It leaves its pool with
# that, so that whoever counts the pool's members from then on finds one missing.
_CLAIM = text(
    """
    UPDATE instances SET session_id = :session, group_id = NULL, group_revision = NULL, env = cast(:env AS jsonb),
        idle_stop_seconds = :idle, active_at = CASE WHEN cast(:idle AS int) IS NULL THEN NULL ELSE now() END,
        ttl_seconds = :ttl_seconds, expires_at = :expires_at, version = version + 1, updated_at = now()
    WHERE id = (
        SELECT i.id FROM instances i
        WHERE i.group_id = :pool AND i.warm AND i.status = 'running' AND i.host_id = :host_id
            AND i.container_id IS NOT NULL AND coalesce(i.drift ->> 'kind', 'changed') = 'changed'
        ORDER BY i.id LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING *
    """
)


class Claim(NamedTuple):
    """What became of it. ``sandbox`` None: ``reason`` says why there is none."""

    pool_id: UUID | None
    sandbox: Row[Any] | None
    reason: str | None


async def claim(caller: Caller, session_id: UUID, host_id: UUID, body: SessionCreate, sandbox: InstanceCreate) -> Claim:
    """Take a sandbox that runs on the host, made as ``sandbox`` would be, for good: it is no other session's, and is
    deleted with this one. What is rolled back has claimed nothing."""
    if reason := _cannot(body):
        return Claim(None, None, reason)
    named = await named_image(caller, sandbox.image, sandbox.backend, None)
    asked = {
        "project": caller.project_id,
        "image": sandbox.image,
        "image_id": str(named["image_id"]) if named["image_id"] else None,
        "type": sandbox.instance_type,
        "network": orjson.dumps(sandbox.wanted_network.model_dump()).decode(),
        "host": sandbox.host,
    }
    pools = (await caller.execute(_POOLS, asked)).all()
    if not pools:
        return Claim(None, None, "no pool has sandboxes of this image, instance type and network")
    given = {
        "session": session_id,
        "host_id": host_id,
        "env": orjson.dumps(sandbox.plain_env()).decode(),
        "idle": body.idle_stop_seconds,
        **await lifetimes.ttl(caller, body.ttl_seconds),
    }
    for pool in pools:
        row = (await caller.execute(_CLAIM, given | {"pool": pool.id})).one_or_none()
        if row is not None:
            return Claim(pool.id, row, None)
    return Claim(pools[0].id, None, f"pool {pools[0].name} has no sandbox ready on host {sandbox.host}")


def _cannot(body: SessionCreate) -> str | None:
    """What a sandbox cannot be given any more that runs."""
    if body.agent_id is not None:
        return "its program is an agent"
    if body.ports:
        return "it publishes ports"
    if body.caches:
        return "it has cache volumes"
    if any(not isinstance(value, str) for value in body.env.values()):
        return "it is given secrets"
    return None
