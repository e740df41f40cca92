"""The steps of cache volumes: claim, empty, remove, settle."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

from sqlalchemy import Engine, select
from temporalio import activity

from activities.cache_volume_ends import CacheVolumeEnd, lock_cache_volume, settle_cache_volume
from activities.database import transaction
from activities.instances import FORCE_AFTER
from activities.runs import Histories, claim, others
from drivers.machines import Check
from model.cache_volumes import CacheHosts, CacheSpec, CacheVolumeHost
from model.errors import NotReady, Superseded
from model.hosts import Host
from model.workflows import Order


class CacheTrees(Protocol):
    """Cache volumes of one host; see ``drivers.cache_trees``."""

    def clear(self, cache: CacheSpec, cancelled: Check) -> None: ...

    def remove(self, cache: CacheSpec, cancelled: Check) -> None: ...


class CacheVolumeRecords:
    """Cache volumes in the database. Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine, histories: Histories) -> None:
        self._engine = engine
        self._histories = histories

    @activity.defn(name="cache_volume.claim")
    def claim(self, order: Order) -> CacheHosts:
        """Claim the run, once no other works on the volume; on which hosts it is.

        One that is forced waits for others not longer than FORCE_AFTER: each removes what it finds. A session that is
        accepted later may bring it to further hosts, where it is empty.
        """
        waited = dt.datetime.now(dt.UTC) - activity.info().scheduled_time
        with transaction(self._engine, order.project_id) as session:
            volume = lock_cache_volume(session, order)
            claim(session, order)
            if volume.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {volume.workflow_id} works on cache volume {order.name} now")
            in_the_way = others(session, order)
            its = (CacheVolumeHost.host_id == Host.id) & (CacheVolumeHost.volume_id == volume.id)
            hosts = session.scalars(select(Host.name).join(CacheVolumeHost, its).order_by(Host.name)).all()
            found = CacheHosts(hosts=list(hosts), spec=CacheSpec(id=volume.id, project_id=volume.project_id))
        if in_the_way and not (order.force and waited > FORCE_AFTER):
            raise NotReady(f"workflow {in_the_way[0]} still works on cache volume {order.name}")
        return found

    @activity.defn(name="cache_volume.settle")
    def settle(self, ended: CacheVolumeEnd) -> None:
        """End the run and move the volume where the outcome leads, once."""
        steps, failure = self._histories.steps(ended.order.workflow_id), ended.failure
        if failure is not None:
            attempts = [step.attempts for step in steps if step.name == failure.step]
            failure = failure.model_copy(update={"attempt": max(attempts) if attempts else None})
        with transaction(self._engine, ended.order.project_id) as session:
            settle_cache_volume(session, ended.order, ended.outcome, failure, steps)


class CacheVolumeEngine:
    """Cache volumes of one host. Runs on that host's queue."""

    def __init__(self, trees: CacheTrees) -> None:
        self._trees = trees

    @activity.defn(name="cache_volume.clear", no_thread_cancel_exception=True)
    def clear(self, cache: CacheSpec) -> None:
        """Empty it where it is; sandboxes that run see that."""
        self._trees.clear(cache, activity.is_cancelled)

    @activity.defn(name="cache_volume.remove", no_thread_cancel_exception=True)
    def remove(self, cache: CacheSpec) -> None:
        self._trees.remove(cache, activity.is_cancelled)
