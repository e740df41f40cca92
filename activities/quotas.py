"""Whether what quotas count is what there is. Every transaction that changes one changes the other, so a difference
is a mistake of ours, or somebody's who wrote into the database: it is mended, and told."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import once_committed, transaction
from model.base import Frozen
from model.metrics import QUOTA_DIFFERENCES
from model.projects import QUOTAS
from model.restores import restored
from model.workflows import Event

#: Of vCPUs, which are not whole numbers, and are added up.
CLOSE = 0.001
log = structlog.get_logger()

_COUNTED = [f"{what}_{column}" for what in QUOTAS for column in ("used", "reserved")]
for _name in _COUNTED:
    QUOTA_DIFFERENCES.labels(_name)  # from the beginning, as an increase is told by two values
# What a resize is to add is reserved beside what the instance has.
_SUMS = """
    SELECT project_id,
        count(*) FILTER (WHERE quota = 'used') AS instances_used,
        count(*) FILTER (WHERE quota = 'reserved') AS instances_reserved,
        coalesce(sum(vcpus) FILTER (WHERE quota = 'used'), 0) AS vcpus_used,
        coalesce(sum(vcpus) FILTER (WHERE quota = 'reserved'), 0)
            + coalesce(sum(greatest(next_vcpus - vcpus, 0)), 0) AS vcpus_reserved,
        coalesce(sum(memory_mb) FILTER (WHERE quota = 'used'), 0) AS memory_mb_used,
        coalesce(sum(memory_mb) FILTER (WHERE quota = 'reserved'), 0)
            + coalesce(sum(greatest(next_memory_mb - memory_mb, 0)), 0) AS memory_mb_reserved
    FROM instances WHERE (quota <> 'none' OR next_type IS NOT NULL) {only} GROUP BY project_id
"""
_DIFFER = " OR ".join(f"abs(q.{name} - coalesce(s.{name}, 0)) > :close" for name in _COUNTED)
# Of one snapshot: nothing that is under way looks like a difference.
_FIND = text(
    f"SELECT q.project_id FROM quotas q LEFT JOIN ({_SUMS.format(only='')}) s USING (project_id)"  # noqa: S608 - text of this module
    f" WHERE {_DIFFER} ORDER BY q.project_id"
)
_LOCK = text(f"SELECT {', '.join(_COUNTED)} FROM quotas WHERE project_id = :project FOR UPDATE")  # noqa: S608 - likewise
_SUMS_OF_ONE = text(_SUMS.format(only="AND project_id = :project"))
_MEND = text(
    f"UPDATE quotas SET {', '.join(f'{name} = :{name}' for name in _COUNTED)} WHERE project_id = :project"  # noqa: S608 - likewise
)


class Compared(Frozen):
    """What one pass found: in how many projects, how many counts."""

    projects: int = 0
    differences: int = 0


class QuotaRecords:
    """Runs on the control queue, by its schedule."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="quota.compare")
    def compare(self) -> Compared:
        """Compare all projects' counts with their rows, and mend those that differ, each project by itself.

        Repeated, it goes on where it was: what was mended does not differ any more.
        """
        with transaction(self._engine) as session:
            if restored(session):
                return Compared()
            projects = list(session.scalars(_FIND, {"close": CLOSE}))
        found = [self._mend(project) for project in projects]
        return Compared(projects=sum(1 for number in found if number), differences=sum(found))

    def _mend(self, project_id: UUID) -> int:
        with transaction(self._engine, project_id) as session:
            # Whoever changes a count waits for this row, and whoever has changed one has committed its rows too:
            # the sums that are read now, by a statement of their own, are those of the row.
            counted = session.execute(_LOCK, {"project": project_id}).mappings().one()
            sums = session.execute(_SUMS_OF_ONE, {"project": project_id}).mappings().one_or_none()
            real = {name: sums[name] if sums is not None else 0 for name in _COUNTED}
            wrong = [name for name in _COUNTED if abs(counted[name] - real[name]) > CLOSE]
            if wrong:
                session.execute(_MEND, {"project": project_id, **real})
                _tell(session, project_id, {name: {"counted": counted[name], "found": real[name]} for name in wrong})
        return len(wrong)


def _tell(session: Session, project_id: UUID, differences: dict[str, Any]) -> None:
    session.add(
        Event(
            project_id=project_id,
            type="project.quota_corrected",
            resource_type="project",
            resource_id=project_id,
            data={"differences": differences},
        )
    )

    def told() -> None:
        for name in differences:
            QUOTA_DIFFERENCES.labels(name).inc()
        log.warning("quota.corrected", project_id=str(project_id), differences=differences)

    once_committed(session, told)
