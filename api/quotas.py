"""Holding a part of a project's quota for what is being accepted."""

from __future__ import annotations

from sqlalchemy import bindparam, update

from api.caller import Caller
from model.errors import QuotaExceeded
from model.projects import QUOTAS, ProjectQuota

_RESERVE = update(ProjectQuota).where(ProjectQuota.project_id == bindparam("project"))
for _what in QUOTAS:
    _limit, _used, _reserved = (getattr(ProjectQuota, f"{_what}_{column}") for column in ("limit", "used", "reserved"))
    # What asks for nothing is within any limit, also within one that was lowered.
    _allowed = _limit.is_(None) | (_used + _reserved + bindparam(_what) <= _limit)
    _RESERVE = _RESERVE.where(_allowed | (_reserved + bindparam(_what) == _reserved))
    _RESERVE = _RESERVE.values({f"{_what}_reserved": _reserved + bindparam(_what)})


async def reserve(caller: Caller, *, instances: int, vcpus: float, memory_mb: int) -> None:
    """Reserve this in the project's quota: one conditional update, no read before it. Raises QuotaExceeded.

    Last in a transaction: every request of the project waits for this row.
    """
    sizes = {"instances": instances, "vcpus": vcpus, "memory_mb": memory_mb}
    if (await caller.execute(_RESERVE, {"project": caller.project_id, **sizes})).rowcount == 0:
        raise QuotaExceeded("the project's quota does not allow this; see GET /v1/projects/{id}/quotas", **sizes)
