"""The steps of hosts: what is really there, what of it is a leftover, and what has drifted."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

import structlog
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import orders
from activities.database import transaction, use_project
from activities.fleet import Limits
from drivers.images import engine_reference
from drivers.machines import Fence, Machines
from model.base import Frozen
from model.drift import Drift, compare
from model.errors import CairnError
from model.hosts import Host
from model.images import ImageWanted
from model.instances import Instance, OwnedMachine, Port, Status, digest_of
from model.projects import Project
from model.restores import last_restore, restored
from model.workflows import Event

log = structlog.get_logger()
#: How far Temporal's clock may be from the database's.
CLOCKS = dt.timedelta(seconds=2)


class Inventory(Frozen):
    """All that a host's engine holds of ours."""

    host: str
    machines: list[OwnedMachine]
    #: Before this nothing of it was looked at.
    asked_at: dt.datetime | None = None
    #: What does not run because the fence stopped it.
    fence_stopped: list[UUID] = []
    #: The host's lease had lapsed, as its agent sees it: what is fenced there was stopped, and may not start.
    fence_closed: bool = False


def names_of(instance: Instance) -> list[str]:
    """By digest, or as it was made before the digest was known."""
    name = instance.image_reference or instance.image
    wanted = ImageWanted(reference=name, digest=instance.image_digest, format=instance.image_format)
    return list(dict.fromkeys([engine_reference(wanted), name]))


class HostRecords:
    """Hosts in the database. Runs on the control queue."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits

    @activity.defn(name="host.reconcile")
    def reconcile(self, inventory: Inventory) -> list[OwnedMachine]:
        """Note how instances differ from what they should be; answer which machines are leftovers.

        A leftover has a row that names another host or a newer generation than its own: a placement never
        comes back to a generation, so the answer cannot become wrong. A machine with no row, or one newer than
        its row has ever been, is proven less (an older database may have been restored): more than
        max(5, 10 %) of those in one pass are left alone and reported.
        """
        with transaction(self._engine) as session:
            host = session.execute(select(Host).where(Host.name == inventory.host)).scalar_one_or_none()
            if host is None:  # removed meanwhile
                return []
            found = {machine.id: machine for machine in inventory.machines}
            rows = {
                row.id: row
                for row in session.execute(
                    select(
                        Instance.id,
                        Instance.host_id,
                        Instance.generation,
                        Instance.next_host_id,
                        Instance.next_generation,
                        Instance.last_generation,
                    ).where(Instance.id.in_(found))
                )
            }
            placed = {(id, row.host_id, row.generation) for id, row in rows.items()}
            restore = last_restore(session)
            placed |= {(id, row.next_host_id, row.next_generation) for id, row in rows.items()}
            strange = [m for m in inventory.machines if (m.id, host.id, m.generation) not in placed]
            unknown = [m for m in strange if m.id not in rows or rows[m.id].last_generation < m.generation]
            leftovers = [m for m in strange if m not in unknown]
            warning = None
            if restore is not None and (kept := [m for m in unknown if restore.may_have_lost(m.id)]):
                unknown = [m for m in unknown if m not in kept]
                warning = (
                    f"{len(kept)} machines were made before the restore of {restore.restored_at:%Y-%m-%d}, and are "
                    "unknown to the database: they stay as they are"
                )
            if len(unknown) > max(5, len(inventory.machines) // 10):
                warning = (
                    f"{len(unknown)} of {len(inventory.machines)} machines are unknown to the database, and were left "
                    "as they are: was an older backup restored?"
                )
            else:
                leftovers += unknown
            if restore is not None:
                leftovers = [] if restore.finished_at is None else [m for m in leftovers if not restore.leaves(m.id)]
            if (warning is None) != (host.warning is None):
                self._tell_operator(session, host, warning)
            settled = self._find_drift(session, host, found, inventory)
            done = settled and not leftovers
            session.execute(
                update(Host)
                .where(Host.id == host.id)
                .values(reconciled=digest_of(inventory.machines) if done else None, warning=warning)
            )
        return leftovers

    def _find_drift(self, session: Session, host: Host, found: dict[UUID, OwnedMachine], inventory: Inventory) -> bool:
        """Record and, where the project asks for it, mend; whether nothing is left to be looked at again."""
        settled = True
        now = dt.datetime.now(dt.UTC)
        # What changed after the look began is left to the next one.
        began = inventory.asked_at - CLOCKS if inventory.asked_at else host.reconciled_at
        older = Instance.updated_at < (began or func.now())
        at_rest = Instance.status.in_((Status.RUNNING, Status.STOPPED, Status.PAUSED))
        # By id: whoever locks several instances does it in this order.
        here = select(Instance).where(Instance.host_id == host.id).order_by(Instance.id)
        for instance in session.scalars(here.where(at_rest, older)).all():
            machine = found.get(instance.id)
            drift = compare(
                machine if machine is not None and machine.generation == instance.generation else None,
                status=Status(instance.status),
                images=names_of(instance),
                vcpus=instance.vcpus,
                memory_mb=instance.memory_mb,
                ports=[Port.model_validate(port) for port in instance.ports],
                now=now,
            )
            if drift is None and instance.drift is None:
                continue
            if inventory.fence_closed and instance.on_host_lost == "fence":
                settled = False  # it starts again when the lease is renewed, or elsewhere
                continue
            # What the fence stopped was stopped by us; its host is back, and it is still there.
            ours = drift is not None and drift.kind == "stopped" and instance.id in inventory.fence_stopped
            settled &= self._note(session, instance.id, instance.version, drift, now, ours=ours)
        unsettled = here.where(~(at_rest & older), Instance.status != Status.ERROR).limit(1)
        return settled and session.execute(unsettled).first() is None

    def _note(
        self, session: Session, instance_id: UUID, version: int, drift: Drift | None, now: dt.datetime, *, ours: bool
    ) -> bool:
        """Write down what was found of one instance; whether it needs no further look. ``ours``: mend it anyway."""
        instance = session.scalars(
            select(Instance)
            .where(Instance.id == instance_id, Instance.version == version)
            .with_for_update()
            .execution_options(populate_existing=True)
        ).one_or_none()
        if instance is None:
            return False
        before = Drift.model_validate(instance.drift) if instance.drift else None
        if drift is not None and before is not None:
            if drift.same_as(before):
                drift = before
            else:
                drift = drift.model_copy(update={"heals": before.heals, "heal_after": before.heal_after})
        if drift != before:
            instance.drift = drift.model_dump(mode="json") if drift else None
            instance.version += 1
            name = "instance.drifted" if drift else "instance.drift_gone"
            self._tell(session, instance, name, drift)
            log.warning(name, instance=str(instance.id), kind=drift.kind if drift else None)
        if drift is None:
            return True
        policy = session.scalar(select(Project.drift_policy).where(Project.id == instance.project_id))
        # What users may not touch, the platform looks after.
        ours = ours or instance.balancer_id is not None or instance.session_id is not None
        if (policy != "heal" and not ours) or restored(session):
            return True
        if drift.heal_after is None or drift.heal_after <= now:
            instance.drift = drift.tried(now).model_dump(mode="json")
            orders.change(
                session,
                instance,
                "HealInstance",
                because=f"drift: {drift.kind}",
                deadline_seconds=self._limits.deadline_launch,
                grace_seconds=self._limits.stop_grace,
                recreate=bool({"image", "ports"} & set(drift.changes)),
            )
        return False

    @staticmethod
    def _tell(session: Session, instance: Instance, name: str, drift: Drift | None) -> None:
        use_project(session, instance.project_id)
        session.add(
            Event(
                project_id=instance.project_id,
                type=name,
                resource_type="instance",
                resource_id=instance.id,
                workflow_id=None,
                data={"name": instance.name, "drift": drift.model_dump(mode="json") if drift else None},
            )
        )
        session.flush()

    @staticmethod
    def _tell_operator(session: Session, host: Host, warning: str | None) -> None:
        """Once, in the log and as an event of the oldest project, which is the operator's."""
        name = "host.warning" if warning else "host.warning_gone"
        log.error(name, host=host.name, warning=warning)
        project = session.scalars(select(Project.id).order_by(Project.created_at).limit(1)).one()
        use_project(session, project)
        data = {"name": host.name, "warning": warning}
        session.add(Event(project_id=project, type=name, resource_type="host", resource_id=host.id, data=data))
        session.flush()


class HostEngine:
    """One host's engine as a whole. Runs on that host's queue."""

    def __init__(self, host: str, machines: Machines, fence: Fence) -> None:
        self._host = host
        self._machines = machines
        self._fence = fence

    @activity.defn(name="host.inventory", no_thread_cancel_exception=True)
    def inventory(self, leftovers: list[OwnedMachine]) -> Inventory:
        """Remove ``leftovers``, then say what is there."""
        failed: CairnError | None = None
        for machine in leftovers:
            try:
                self._machines.delete(machine.id, machine.generation)
            except CairnError as error:  # the others go all the same
                failed = failed or error
            else:
                self._fence.forget(machine.id)
                log.warning("host.leftover_removed", host=self._host, instance=str(machine.id))
        if failed is not None:
            raise failed
        closed = self._fence.is_closed()
        found = self._machines.inventory()
        down = [machine.id for machine in found if machine.fenced and not machine.running]
        stopped = [machine for machine in down if self._fence.has_stopped(machine)]
        return Inventory(host=self._host, machines=found, fence_stopped=stopped, fence_closed=closed)
