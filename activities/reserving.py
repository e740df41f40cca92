"""Holding a part of a project's quota: one statement, for what is accepted and for what the platform orders itself."""

from __future__ import annotations

from sqlalchemy import bindparam, update

from model.projects import QUOTAS, ProjectQuota

#: ``project`` and one number for each of QUOTAS. No row: they do not allow it. Last in a transaction: all that begins
#: in the project waits for this row.
RESERVE = update(ProjectQuota).where(ProjectQuota.project_id == bindparam("project"))
for _what in QUOTAS:
    _limit, _used, _reserved = (getattr(ProjectQuota, f"{_what}_{column}") for column in ("limit", "used", "reserved"))
    # What asks for nothing is within any limit, also within one that was lowered.
    _allowed = _limit.is_(None) | (_used + _reserved + bindparam(_what) <= _limit)
    RESERVE = RESERVE.where(_allowed | (_reserved + bindparam(_what) == _reserved))
    RESERVE = RESERVE.values({f"{_what}_reserved": _reserved + bindparam(_what)})
