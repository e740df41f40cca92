"""Rows that are made to agree with what an engine has, or has no more, after a restore."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from activities import secrets, sizes
from activities.database import use_project
from activities.instance_ends import count
from activities.orders import ACTOR
from activities.placement import release
from activities.runs import end, record
from model.base import new_id
from model.errors import NotFound, PortTaken
from model.hosts import Host, HostPort, InstanceType
from model.instances import Instance, Status
from model.projects import Project
from model.restores import FoundMachine, RestoreDifference
from model.workflows import TERMINAL, Event, Failure, Order, Outcome, State, Workflow


def adopt(session: Session, order: Order, host_name: str, machine: FoundMachine, ended: Failure) -> None:
    """Make the row of the machine: its place, generation, ports, size and state. Repeated, the same.

    A row that is there already becomes what the machine is; what it held elsewhere is given back. Runs on it that
    are not at their end, and have no run any more, end. Raises NotFound, PortTaken.
    """
    instance = session.scalars(select(Instance).where(Instance.id == machine.id).with_for_update()).one_or_none()
    backend = session.scalar(select(Host.backend).where(Host.name == host_name))
    if backend is None:
        raise NotFound(f"there is no host {host_name} any more")
    before = instance.status if instance is not None else None
    if instance is None:
        instance = _insert(session, order, machine, backend)
    else:
        use_project(session, instance.project_id)
        _end_runs(session, instance, order, ended)
        sizes.give_up(session, instance)
        release(session, instance)
        count(session, instance, "none")
        instance.name = _free_name(session, instance.project_id, instance.name, instance.id)
        instance.workflow_id = _owner(session, order, instance).workflow_id
    instance.vcpus = machine.vcpus or instance.vcpus
    instance.memory_mb = machine.memory_mb or instance.memory_mb
    instance.instance_type = _type_of(session, instance.vcpus, instance.memory_mb)
    host = session.scalars(
        select(Host).where(Host.name == host_name).with_for_update().execution_options(populate_existing=True)
    ).one()
    instance.host_id, instance.generation = host.id, machine.generation
    instance.last_generation = max(instance.last_generation, machine.generation)
    instance.status = Status.RUNNING if machine.running else Status.PAUSED if machine.paused else Status.STOPPED
    instance.container_id = machine.engine_id
    instance.private_ip = machine.private_ip if machine.running else None
    instance.ports = [port.model_dump() for port in machine.ports or []]
    instance.drift = instance.error = instance.deleted_at = None
    instance.version += 1
    instance.updated_at = func.now()
    host.allocated_vcpus += instance.vcpus
    host.allocated_memory_mb += instance.memory_mb
    session.flush()
    _hold_ports(session, instance, host)
    count(session, instance, "used")
    data = {"name": instance.name, "from": before, "to": instance.status, "host": host_name}
    _tell(session, instance, "instance.adopted", data | {"generation": machine.generation})
    use_project(session, order.project_id)


def forget(session: Session, order: Order, ended: Failure) -> None:
    """Record an instance as deleted, whose machine is no more; what it held is given back. Repeated, the same."""
    instance = session.scalars(select(Instance).where(Instance.id == order.resource_id).with_for_update()).one()
    if instance.status == Status.DELETED:
        return
    use_project(session, instance.project_id)
    _end_runs(session, instance, order, ended)
    sizes.give_up(session, instance)
    release(session, instance)
    count(session, instance, "none")
    before = instance.status
    instance.status = Status.DELETED
    instance.deleted_at = instance.updated_at = func.now()
    instance.container_id = instance.private_ip = instance.drift = None
    secrets.keep(session, instance, [])
    secrets.forget(session, instance)
    instance.workflow_id = _owner(session, order, instance).workflow_id
    instance.version += 1
    _tell(session, instance, "instance.deleted", {"name": instance.name, "from": before, "to": Status.DELETED})
    use_project(session, order.project_id)


def _tell(session: Session, instance: Instance, type: str, data: dict[str, Any]) -> None:
    session.flush()
    event = {"resource_type": "instance", "resource_id": instance.id, "workflow_id": instance.workflow_id}
    session.add(Event(project_id=instance.project_id, type=type, data=data, **event))
    session.flush()


def _insert(session: Session, order: Order, machine: FoundMachine, backend: str) -> Instance:
    """A row as a launch of the machine would have made it; it holds nothing yet."""
    project_id = machine.project_id
    project = session.get(Project, project_id) if project_id is not None else None
    if project is None or project.deleted_at is not None or project_id is None:
        raise NotFound(f"machine {machine.id} is of project {project_id}, which the database does not have")
    use_project(session, project_id)
    ports = [port.model_dump() for port in machine.ports or []]
    instance = Instance(
        id=machine.id,
        project_id=project_id,
        name=_free_name(session, project_id, machine.name or f"adopted-{machine.id.hex[-8:]}", machine.id),
        status=Status.STOPPED,
        image=machine.image or "unknown",
        instance_type=_type_of(session, machine.vcpus or 1, machine.memory_mb or 1),
        vcpus=machine.vcpus or 1,
        memory_mb=machine.memory_mb or 1,
        env=machine.env,
        cmd=machine.cmd,
        ports=ports,
        wanted_ports=ports,
        labels=machine.labels,
        tags=[],
        annotations={},
        backend=backend,
        wanted_labels={},
        on_host_lost="fence" if machine.fenced else "keep",
        generation=machine.generation,
        last_generation=machine.generation,
        restart_policy=machine.restart_policy,
        health_check=machine.health_check.model_dump(mode="json") if machine.health_check else None,
        network=machine.network.model_dump(),
        quota="none",
        version=1,
        next_held=False,
        workflow_id=order.workflow_id,
    )
    instance.workflow_id = _owner(session, order, instance).workflow_id
    session.add(instance)
    session.flush()
    return instance


def _free_name(session: Session, project_id: UUID, wanted: str, id: UUID) -> str:
    """The name, or, where another that lives has it, one with the end of the id behind it."""
    taken = select(Instance.id).where(
        Instance.project_id == project_id,
        Instance.name == wanted,
        Instance.status != Status.DELETED,
        Instance.id != id,
    )
    return wanted if session.execute(taken).first() is None else f"{wanted[:50]}-{id.hex[-8:]}"


def _owner(session: Session, order: Order, instance: Instance) -> Order:
    """The run that the row names as its last: of the instance's own project, where its users can see it."""
    if instance.project_id == order.project_id:
        return order
    last = session.get(Workflow, instance.workflow_id)
    if last is not None and last.parent_id == order.workflow_id:
        return Order.model_validate(last.order)
    own = order.model_copy(
        update={
            "workflow_id": new_id(),
            "project_id": instance.project_id,
            "resource_type": "instance",
            "resource_id": instance.id,
            "name": instance.name,
        }
    )
    session.execute(
        insert(Workflow).values(
            id=own.workflow_id,
            project_id=own.project_id,
            kind=own.kind,
            resource_type=own.resource_type,
            resource_id=own.resource_id,
            actor=ACTOR,
            order=own.model_dump(mode="json"),
            parent_id=order.workflow_id,
            state=State.COMPLETED,
            finished_at=func.now(),
        )
    )
    return own


def _end_runs(session: Session, instance: Instance, order: Order, ended: Failure) -> None:
    others = select(Workflow).where(
        Workflow.project_id == instance.project_id,
        Workflow.resource_id == instance.id,
        Workflow.resource_type == "instance",
        Workflow.state.not_in(TERMINAL),
        Workflow.id != order.workflow_id,
    )
    for row in session.scalars(others).all():
        other = Order.model_validate(row.order)
        told = session.scalar(
            select(RestoreDifference.difference["run"].as_string()).where(RestoreDifference.resource_id == row.id)
        )
        failure = None if told == "completed" else ended
        outcome: Outcome = "completed" if failure is None else "failed"
        if end(session, other, outcome, failure, []) is not None:
            error = failure.model_dump() if failure else None
            record(session, other, (f"workflow.{outcome}", {"kind": other.kind, "error": error}))


def _type_of(session: Session, vcpus: float, memory_mb: int) -> str:
    """The type of just this size, else the smallest that is as large, else the largest."""
    types = session.scalars(select(InstanceType).order_by(InstanceType.memory_mb, InstanceType.vcpus)).all()
    exact = [t for t in types if (t.vcpus, t.memory_mb) == (vcpus, memory_mb)]
    larger = [t for t in types if t.vcpus >= vcpus and t.memory_mb >= memory_mb]
    return (exact or larger or list(types[-1:]))[0].name


def _hold_ports(session: Session, instance: Instance, host: Host) -> None:
    for port in instance.ports:
        held: dict[str, Any] = {"host_id": host.id, "protocol": port["protocol"], "port": port["host_port"]}
        holder: UUID | None = session.scalar(
            select(HostPort.instance_id).where(
                *(getattr(HostPort, name) == value for name, value in held.items()),
            )
        )
        if holder is not None and holder != instance.id:
            raise PortTaken(
                f"port {port['host_port']}/{port['protocol']} of host {host.name} is held by instance {holder}: "
                "adopt or forget that first",
                port=port["host_port"],
            )
        if holder is None:
            session.execute(insert(HostPort).values(**held, project_id=instance.project_id, instance_id=instance.id))
