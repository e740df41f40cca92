"""Cache volumes of sessions: named as a session is accepted, and brought to its host."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from api.caller import Caller
from model.cache_volumes import (
    CAPABILITY,
    CacheMount,
    CacheVolume,
    CacheVolumeHost,
    CacheVolumeStatus,
    SessionCacheVolume,
    nested,
)
from model.errors import InvalidState, NoCapacity, ValidationFailed

_OF_NAMES = select(CacheVolume.id, CacheVolume.name, CacheVolume.path, CacheVolume.status)


async def chosen(caller: Caller, names: list[str], host: Row[Any]) -> list[CacheMount]:
    """Those of these names, which stay until the commit, as a sandbox on the host is to see them.

    Raises Forbidden, ValidationFailed, InvalidState, NoCapacity.
    """
    if not names:
        return []
    caller.require("cache-volumes:read")
    mine = (CacheVolume.project_id == caller.project_id) & (CacheVolume.status != CacheVolumeStatus.DELETED)
    # Sessions that begin at once do not wait for each other; what empties or deletes one waits for them.
    locked = _OF_NAMES.where(mine, CacheVolume.name.in_(names)).order_by(CacheVolume.id).with_for_update(read=True)
    found = {row.name: row for row in (await caller.execute(locked)).all()}
    for name in names:
        if name not in found:
            raise _invalid(f"there is no cache volume '{name}': see GET /v1/cache-volumes")
        if found[name].status not in (CacheVolumeStatus.READY, CacheVolumeStatus.CLEARING):
            status = found[name].status
            raise InvalidState(f"cache volume {name} is {status}, not ready", state=status, cache_volume=name)
    if (both := nested({name: found[name].path for name in names})) is not None:
        outer, inner = (found[name] for name in both)
        raise _invalid(
            f"cache volumes {outer.name} and {inner.name} are at {outer.path} and {inner.path}, one of which is in the"
            " other: name one of them"
        )
    if CAPABILITY not in host.capabilities:
        raise NoCapacity(
            f"the agent of host '{host.name}' cannot give sandboxes cache volumes: leave caches out, or upgrade it"
            " ('cairn host show' says what it can do)",
            host=host.name,
        )
    return [CacheMount(id=found[name].id, path=found[name].path) for name in names]


async def give(caller: Caller, session_id: UUID, host_id: UUID, caches: list[CacheMount]) -> None:
    """Write which the session has, and that they are on its host from now on: before anything is there."""
    if not caches:
        return
    rows = [{"volume_id": cache.id, "project_id": caller.project_id} for cache in caches]
    rows.sort(key=lambda row: row["volume_id"])
    placed = upsert(CacheVolumeHost).on_conflict_do_nothing()
    await caller.execute(placed.values([row | {"host_id": host_id} for row in rows]))
    await caller.execute(insert(SessionCacheVolume).values([row | {"session_id": session_id} for row in rows]))


def _invalid(message: str) -> ValidationFailed:
    return ValidationFailed(message, fields=[{"field": "caches", "message": message}])
