"""Hosts that join again because a restored database does not know them any more."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from model.base import new_id
from model.hosts import Host
from model.restores import Restore, made_at


async def former(connection: AsyncConnection, host_id: UUID | None) -> UUID:
    """The id of a host that is new here: the one that it had, where the row of that was lost with a restore."""
    restored_at = (await connection.execute(select(func.max(Restore.restored_at)))).scalar_one()
    if host_id is None or restored_at is None or made_at(host_id) > restored_at:
        return new_id()
    known = (await connection.execute(select(Host.id).where(Host.id == host_id))).one_or_none()
    return host_id if known is None else new_id()
