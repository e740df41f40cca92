"""Rows as the API accepts them, and activities run as a worker would run them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.instances import InstanceRecords, Placement, PlaceRequest, Settlement
from activities.placement import Capacity
from model.base import new_id
from model.instances import VERBS, MachineState
from model.workflows import Failure, Order, Outcome, Step
from tests.services import PORT_RANGE, Database, database, temporal_server, worker_engine

__all__ = ["database", "temporal_server", "worker_engine"]

#: What starts no machine (a resize, as long as it need not).
LEFT_AS_IT_IS = ("StopInstance", "PauseInstance", "ResumeInstance", "ResizeInstance", "DeprovisionInstance")
CAPACITY = Capacity(port_range=PORT_RANGE, overcommit_cpu=4, overcommit_memory=1)


class NoHistories:
    """Runs without a Temporal server have a step each."""

    def steps(self, workflow_id: UUID) -> list[Step]:
        step = {"host": "one", "state": "failed", "started_at": None, "finished_at": None, "error": None}
        return [Step(name="instance.start", attempts=3, undo=False, **step)]  # type: ignore[arg-type]


@dataclass
class Platform:
    db: Database
    records: InstanceRecords
    #: How long ago activities were scheduled.
    waited: dt.timedelta = dt.timedelta(0)

    def run(self, method: Callable[[Any], Any], argument: Any, run_id: str = "run-1") -> Any:
        """One attempt of an activity of the run ``run_id``."""
        environment = ActivityEnvironment()
        environment.info = replace(
            environment.info, workflow_run_id=run_id, scheduled_time=dt.datetime.now(dt.UTC) - self.waited
        )
        return environment.run(method, argument)

    def launch(self, name: str = "web", ports: list[dict[str, Any]] | None = None, **columns: Any) -> Order:
        """What accepting a launch writes."""
        order = self._order("ProvisionInstance", new_id(), name)
        ports = ports or []
        values = {
            "id": order.resource_id,
            "project_id": order.project_id,
            "name": name,
            "status": "pending",
            "image": "cairn/base",
            "instance_type": "basic-1",
            "vcpus": 1,
            "memory_mb": 512,
            "ports": Jsonb(ports),
            "wanted_ports": Jsonb(ports),
            "backend": "docker",
            "workflow_id": order.workflow_id,
        } | columns
        with self.db.connect() as connection, connection.transaction():
            names = ", ".join(values)
            connection.execute(
                f"INSERT INTO instances ({names}) VALUES ({', '.join(['%s'] * len(values))})", list(values.values())
            )
            self._write(connection, order, None)
            connection.execute(
                "UPDATE quotas SET instances_reserved = instances_reserved + 1, vcpus_reserved = vcpus_reserved + %s,"
                " memory_mb_reserved = memory_mb_reserved + %s",
                (values["vcpus"], values["memory_mb"]),
            )
        return order

    def change(self, launch: Order, kind: str, **more: Any) -> Order:
        """What accepting another verb writes."""
        order = self._order(kind, launch.resource_id, launch.name, **more)
        prior = self.instance(order)["status"]
        with self.db.connect() as connection, connection.transaction():
            connection.execute(
                "UPDATE instances SET status = %s, workflow_id = %s WHERE id = %s",
                (VERBS[kind].during, order.workflow_id, order.resource_id),
            )
            self._write(connection, order, prior)
        return order

    def _order(self, kind: str, instance_id: UUID, name: str, **more: Any) -> Order:
        return Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            resource_type="instance",
            resource_id=instance_id,
            name=name,
            request_id="test",
            deadline_seconds=60,
            **more,
        )

    def _write(self, connection: Any, order: Order, prior: str | None) -> None:
        connection.execute(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
            " VALUES (%s, %s, %s, 'instance', %s, 'test', %s, %s)",
            (
                *(order.workflow_id, order.project_id, order.kind, order.resource_id),
                *(Jsonb(order.model_dump(mode="json")), prior),
            ),
        )

    def place(self, order: Order, *, run_id: str = "run-1", avoid: list[int] | None = None) -> Placement:
        placement: Placement = self.run(self.records.place, PlaceRequest(order=order, avoid_ports=avoid or []), run_id)
        return placement

    def claim(self, order: Order, run_id: str = "run-1") -> Placement:
        placement: Placement = self.run(self.records.claim, order, run_id)
        return placement

    def settle(self, order: Order, outcome: Outcome, code: str | None = None, *, undone: bool = True) -> None:
        failure = Failure(code=code, message=code, step="instance.start") if code else None
        starts = outcome == "completed" and order.kind not in LEFT_AS_IT_IS
        facts = MachineState(engine_id="e-1", private_ip="10.0.0.9") if starts else None
        settlement = Settlement(order=order, outcome=outcome, failure=failure, facts=facts, undone=undone)
        self.run(self.records.settle, settlement)

    def running(self, name: str = "web", **more: Any) -> Order:
        order = self.launch(name, **more)
        self.place(order)
        self.settle(order, "completed")
        return order

    def instance(self, order: Order) -> dict[str, Any]:
        return self.db.one("SELECT * FROM instances WHERE id = %s", order.resource_id)

    def workflow(self, order: Order) -> dict[str, Any]:
        return self.db.one("SELECT * FROM workflows WHERE id = %s", order.workflow_id)

    def events(self, order: Order) -> list[str]:
        found = self.db.rows("SELECT type FROM events WHERE workflow_id = %s ORDER BY xid, id", order.workflow_id)
        return [row["type"] for row in found]

    def held(self) -> dict[str, float]:
        """What all hosts together hold for instances."""
        return self.db.one(
            "SELECT sum(allocated_vcpus) AS vcpus, sum(allocated_memory_mb) AS memory_mb,"
            " (SELECT count(*) FROM host_ports) AS ports FROM hosts"
        )

    def counted(self) -> tuple[float, float, float, float, float, float]:
        """Instances, vCPUs and memory of the quota: those used, then those reserved."""
        quota = self.db.quota()
        columns = [
            f"{what}_{column}" for column in ("used", "reserved") for what in ("instances", "vcpus", "memory_mb")
        ]
        return tuple(quota[column] for column in columns)  # type: ignore[return-value]


@pytest.fixture
def platform(database: Database, worker_engine: Engine) -> Platform:
    return Platform(database, InstanceRecords(worker_engine, CAPACITY, NoHistories()))  # type: ignore[arg-type]
