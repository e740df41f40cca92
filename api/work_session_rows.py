"""Work sessions as the API reads them: found, locked, shown."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from api import instance_rows
from api.caller import Caller
from api.resources import is_readable, one
from model.cache_volumes import CacheVolume, SessionCacheVolume
from model.hosts import Host, is_reachable
from model.instances import Instance
from model.sessions import SessionStatus, WorkSession

GONE = SessionStatus.REMOVED
_INSTANCE = ("image", "instance_type", "env", "secrets", "network", "ports", "private_ip")
_LIFETIMES = ("ttl_seconds", "expires_at", "idle_stop_seconds")
_caches = (
    select(func.array_agg(aggregate_order_by(CacheVolume.name, CacheVolume.name)))
    .join(SessionCacheVolume, SessionCacheVolume.volume_id == CacheVolume.id)
    .where(SessionCacheVolume.session_id == WorkSession.id)
    .correlate(WorkSession)
    .scalar_subquery()
)
query = (
    select(
        *(*WorkSession.__table__.columns, _caches.label("caches")),
        *(Instance.__table__.c[name] for name in (*_INSTANCE, *_LIFETIMES)),
        *(Host.name.label("host"), Host.last_seen_at),
    )
    .join(Instance, Instance.id == WorkSession.instance_id)
    .outerjoin(Host, Host.id == Instance.host_id)
)


def mine(caller: Caller, session_id: UUID) -> ColumnElement[bool]:
    return (
        (WorkSession.project_id == caller.project_id) & (WorkSession.id == session_id) & is_readable(WorkSession, GONE)
    )


async def lock(caller: Caller, session_id: UUID) -> Row[Any]:
    """Its row, which nobody else changes until the commit. Raises NotFound."""
    locked = select(WorkSession.__table__).where(mine(caller, session_id)).with_for_update()
    return await one(caller, locked, "session", session_id)


async def show(caller: Caller, session_id: UUID) -> dict[str, Any]:
    """Its JSON. Raises NotFound."""
    return view(await one(caller, query.where(mine(caller, session_id)), "session", session_id))


def view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of a session, from a row of ``query``."""
    shown = ("id", "project_id", "name", "status", "workspace_id", "commit", "head", "instance_id", "agent_id")
    how = ("start", "start_reason", "pool_id")
    times = ("version", "error", "workflow_id", "created_at", "updated_at", "deleted_at")
    sandbox = ("image", "instance_type", "network", "ports", "private_ip", "host")
    return {name: getattr(row, name) for name in (*shown, *how, *times, *sandbox, *_LIFETIMES)} | {
        "env": instance_rows.env_of(row),
        "caches": row.caches or [],
        "reachable": None if row.host is None else is_reachable(row.last_seen_at),
    }
