"""Holding a part of a project's quota for what is being accepted."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from activities.reserving import RESERVE
from api.caller import Caller
from model.errors import QuotaExceeded
from model.projects import QUOTAS, ProjectQuota

#: As people call them.
WORDS = {"instances": "instances", "vcpus": "vCPUs", "memory_mb": "MiB of memory"}
_LIMITS = select(ProjectQuota.__table__).where(ProjectQuota.project_id == bindparam("project"))


async def reserve(caller: Caller, *, instances: int, vcpus: float, memory_mb: int) -> None:
    """Reserve this in the project's quota: one conditional update, no read before it. Raises QuotaExceeded.

    Last in a transaction: every request of the project waits for this row.
    """
    sizes = {"instances": instances, "vcpus": vcpus, "memory_mb": memory_mb}
    if (await caller.execute(RESERVE, {"project": caller.project_id, **sizes})).rowcount == 0:
        raise await _exceeded(caller, sizes)


async def _exceeded(caller: Caller, asked: dict[str, float]) -> QuotaExceeded:
    """Which of them it is, as they are now: read without a lock, so it may be just free again."""
    row = (await caller.execute(_LIMITS, {"project": caller.project_id})).one()
    for what in QUOTAS:
        limit, used, reserved = (getattr(row, f"{what}_{column}") for column in ("limit", "used", "reserved"))
        if asked[what] and limit is not None and used + reserved + asked[what] > limit:
            said = (
                f"the project may have {limit:.10g} {WORDS[what]}: {used + reserved:.10g} are used or reserved, and"
                f" this asks for {asked[what]:.10g} more; see GET /v1/projects/{{id}}/quotas"
            )
            return QuotaExceeded(
                said, **asked, quota=what, limit=limit, used=used, reserved=reserved, asked=asked[what]
            )
    return QuotaExceeded("the project's quota did not allow this; see GET /v1/projects/{id}/quotas", **asked)
