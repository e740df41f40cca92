"""What is particular to pools among groups: how many they should have, and which members are out of date."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from model.groups import Group
from model.instances import Status
from model.pools import DEMAND, OLDEST, wanted
from model.sessions import WorkSession

#: The configuration of a member that is out of date, which no group has.
OUTDATED = 0
#: SQL, of a group ``g``: as many members as it should have; as ``wanted_of``.
WANTED = """CASE WHEN g.kind <> 'pool' THEN g.desired_count ELSE least(g.max_instances, greatest(g.min_instances, (
    SELECT count(*) FROM work_sessions s WHERE s.pool_id = g.id AND s.created_at > now() - :demand
))) END"""
#: SQL, of a group ``g``: it is a pool, and members of it are out of date; as ``stale``.
STALE = """g.kind = 'pool' AND EXISTS (
    SELECT FROM instances i WHERE i.group_id = g.id AND i.status = 'running' AND (i.created_at < now() - :oldest
        OR EXISTS (
            SELECT FROM instances n WHERE n.group_id = g.id AND n.host_id = i.host_id AND n.id > i.id
                AND n.status = 'running' AND n.image_digest <> i.image_digest
        ))
)"""
TIMES = {"demand": DEMAND, "oldest": OLDEST}


def wanted_of(session: Session, group: Group) -> int:
    """Nobody's wish but the demand: so many sessions asked for one of its sandboxes lately."""
    if group.kind != "pool":
        return group.desired_count
    lately = (WorkSession.pool_id == group.id) & (WorkSession.created_at > func.now() - DEMAND)
    asked = session.scalar(select(func.count()).select_from(WorkSession).where(lately)) or 0
    return wanted(group.min_instances, group.max_instances, asked)


def stale(found: Sequence[Row[Any]], now: dt.datetime) -> Collection[UUID]:
    """Members that are too old, or of another image than the newest on their host: the tag means another by now."""
    running = [row for row in found if row.status == Status.RUNNING]
    # Ids are in the order of their making.
    newest = {row.host_id: row.image_digest for row in running if row.image_digest}
    return {
        row.id
        for row in running
        if now - row.created_at > OLDEST or (row.image_digest and row.image_digest != newest[row.host_id])
    }
