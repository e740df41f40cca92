"""The steps of hosts: what is really there, and what of it is a leftover."""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy import Engine, func, select, update
from temporalio import activity

from activities.database import transaction
from drivers.machines import Machines
from model.base import Frozen
from model.errors import CairnError
from model.hosts import Host
from model.instances import Instance, OwnedMachine

log = structlog.get_logger()


class Inventory(Frozen):
    """All that a host's engine holds of ours."""

    host: str
    machines: list[OwnedMachine]


class HostRecords:
    """Hosts in the database. Runs on the control queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="host.reconcile")
    def reconcile(self, inventory: Inventory) -> list[OwnedMachine]:
        """Note that the host was seen; answer which of its machines are leftovers.

        A leftover has a row that names another host or a newer generation than its own: a placement never
        comes back to a generation, so the answer cannot become wrong. A machine with no row, or with one
        of an older generation, is proven less (an older database may have been restored): more than
        max(5, 10 %) of those in one pass are left alone and reported.
        """
        with transaction(self._engine) as session:
            host = session.execute(
                update(Host).where(Host.name == inventory.host).values(last_seen_at=func.now()).returning(Host.id)
            ).scalar_one()
            found = [machine.id for machine in inventory.machines]
            rows: dict[UUID, tuple[UUID | None, int]] = {
                row.id: (row.host_id, row.generation)
                for row in session.execute(
                    select(Instance.id, Instance.host_id, Instance.generation).where(Instance.id.in_(found))
                )
            }
        nowhere = (None, -1)
        unknown = [m for m in inventory.machines if rows.get(m.id, nowhere)[1] < m.generation]
        leftovers = [m for m in inventory.machines if m not in unknown and rows[m.id] != (host, m.generation)]
        if len(unknown) > max(5, len(inventory.machines) // 10):
            log.error(
                "host.unknown_machines_kept",
                host=inventory.host,
                unknown=len(unknown),
                machines=len(inventory.machines),
                advice="the database knows none of them: was an older backup restored?",
            )
        else:
            leftovers += unknown
        return leftovers


class HostEngine:
    """One host's engine as a whole. Runs on that host's queue."""

    def __init__(self, host: str, machines: Machines) -> None:
        self._host = host
        self._machines = machines

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
                log.warning("host.leftover_removed", host=self._host, instance=str(machine.id))
        if failed is not None:
            raise failed
        return Inventory(host=self._host, machines=self._machines.inventory())
