"""How runs on cache volumes end: the state that they leave behind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from activities.runs import RunEnded, end, record
from model.base import Frozen
from model.cache_volumes import CLEAR, DEPROVISION, CacheVolume, CacheVolumeHost, CacheVolumeStatus
from model.workflows import Failure, Order, Outcome, Step, Workflow


class CacheVolumeEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


def lock_cache_volume(session: Session, order: Order) -> CacheVolume:
    """The row of the order's cache volume, which nobody else changes until the commit, and no new session names."""
    mine = (CacheVolume.project_id == order.project_id) & (CacheVolume.id == order.resource_id)
    found = session.scalars(select(CacheVolume).where(mine).with_for_update()).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no cache volume {order.resource_id}")
    return found


def settle_cache_volume(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End a run on a cache volume. Once: a row that ended is left alone.

    One that could not be emptied everywhere is ready as before, with the reason.
    """
    volume = lock_cache_volume(session, order)
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    events = []
    if volume.workflow_id == order.workflow_id:  # a delete that came meanwhile owns it now
        previous, volume.status = volume.status, _leads_to(row, order, outcome)
        volume.version += 1
        volume.updated_at = func.now()
        volume.error = failure.model_dump() if failure is not None else None
        told: dict[str, Any] = {"name": volume.name, "from": previous, "to": volume.status}
        if order.kind == CLEAR and outcome == "completed":
            volume.cleared_at = func.now()
            told["cleared"] = True
        if volume.status == CacheVolumeStatus.DELETED:
            volume.deleted_at = func.now()
            session.execute(delete(CacheVolumeHost).where(CacheVolumeHost.volume_id == volume.id))
        events.append((f"cache_volume.{volume.status}", told))
    record(session, order, *events, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _leads_to(row: Workflow, order: Order, outcome: Outcome) -> CacheVolumeStatus:
    if order.kind != DEPROVISION:
        return CacheVolumeStatus.READY
    if outcome == "completed":
        return CacheVolumeStatus.DELETED
    # Called off while it was only a row, all is as it was; but not where it has called something else off.
    before = row.prior_status in (CacheVolumeStatus.READY, CacheVolumeStatus.ERROR) and row.started_at is None
    return CacheVolumeStatus(row.prior_status or "") if before else CacheVolumeStatus.ERROR
