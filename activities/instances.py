"""The steps of instances: their records in the database, their machines on the engines."""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from temporalio import activity

from activities import secrets, sizes
from activities.database import transaction
from activities.fleet import silence_says_something
from activities.health import until_healthy
from activities.images import Given
from activities.instance_ends import lock, move, resized, settle_instance
from activities.placement import Capacity, anew, place, release, release_next, switch
from activities.runs import Histories, claim, others, record
from drivers.machines import Fence, Machines
from model.base import Frozen
from model.cache_volumes import CacheMount
from model.errors import HostIsBack, NoCapacity, NotReady, Superseded
from model.health import HealthCheck
from model.hosts import Host, fenced_after, is_reachable
from model.instances import Instance, MachineSpec, MachineState, Port, Ready, Status
from model.keyring import Keyring
from model.networks import Network
from model.vault import uses_of
from model.workflows import Failure, Order, Outcome

FORCE_AFTER = dt.timedelta(seconds=10)
#: How long a placement waits for hosts whose lease has lapsed.
PLACE_WITHIN = 20.0
#: Runs that claim an instance in order to start it; its machine gets the secrets of that moment.
STARTS = frozenset({"StartInstance", "RestartInstance", "HealInstance"})


class PlaceRequest(Frozen):
    order: Order
    #: Automatic host ports that the engine found taken.
    avoid_ports: list[int] = []
    #: A host that took up no step for a while: left for another, where its lease has lapsed too.
    silent_host: str | None = None


class Placement(Frozen):
    """Where an instance is, and everything its host is told about it. ``host`` None: nowhere."""

    host: str | None
    spec: MachineSpec
    #: Whether it ran before the run at hand.
    was_running: bool = True
    was_paused: bool = False
    #: Of a move: where it was, unless that host is lost. Of a resize: where it is.
    leaves: str | None = None
    #: How long what is fenced may run on a silent host.
    fence_seconds: float = 0
    old_spec: MachineSpec | None = None


class Settlement(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None
    facts: Ready | None = None
    #: False: it could not be taken back, and was brought to an end instead.
    undone: bool = True


class StopRequest(Frozen):
    spec: MachineSpec
    grace_seconds: float


class InstanceRecords:
    """Instances in the database. Runs on the control queue; every method is one transaction."""

    def __init__(
        self, engine: Engine, capacity: Capacity, histories: Histories, keyring: Keyring | None = None
    ) -> None:
        self._engine = engine
        self._capacity = capacity
        self._histories = histories
        self._keyring = keyring

    @activity.defn(name="instance.place")
    def place(self, request: PlaceRequest) -> Placement:
        """Claim the run, and hold a host, capacity and ports under a new generation.

        Repeated, it answers the placement that it made, unless that holds a port to avoid, or its host is lost.
        """
        order = request.order
        with transaction(self._engine, order.project_id) as session:
            instance = lock(session, order)
            claim(session, order)
            _check_owner(instance, order)
            host = session.get(Host, instance.host_id) if instance.host_id else None
            if host is None or self._is_to_leave(host, instance, instance.ports, request):
                release(session, instance)
                host = _placed(session, instance, self._capacity, request.avoid_ports)
                record(session, order, move(instance, Status.PROVISIONING, host=host.name))
            secrets.give(session, self._keyring, instance, host, instance.generation)
            return Placement(host=host.name, spec=spec_of(instance))

    @activity.defn(name="instance.place_beside")
    def place_beside(self, request: PlaceRequest) -> Placement:
        """Claim the run, and hold another host for the instance beside its own. Repeated, as ``place``."""
        order = request.order
        with transaction(self._engine, order.project_id) as session:
            instance = lock(session, order)
            row = claim(session, order)
            _check_owner(instance, order)
            new = session.get(Host, instance.next_host_id) if instance.next_host_id else None
            old = session.get(Host, instance.host_id)
            if order.host_lost and new is None and old is not None and is_reachable(old.last_seen_at):
                raise HostIsBack(f"host {old.name} is back: instance {instance.name} stays there")
            if new is None or self._is_to_leave(new, instance, instance.next_ports or [], request):
                release_next(session, instance)
                new = _placed(session, instance, self._capacity, request.avoid_ports, beside=True)
            spec = _next_spec(instance)
            secrets.give(session, self._keyring, instance, new, spec.generation)
            return Placement(
                host=new.name,
                spec=spec,
                was_running=row.prior_status == Status.RUNNING,
                leaves=old.name if old is not None and not order.host_lost else None,
                fence_seconds=fenced_after(new, self._capacity.fence_after).total_seconds(),
                old_spec=spec_of(instance),
            )

    def _is_to_leave(self, host: Host, instance: Instance, ports: list[Any], request: PlaceRequest) -> bool:
        """Whether a placement that was made holds a port to avoid, or a host that is lost: for what is fenced, one
        on which it must have been stopped by now."""
        lost = host.name == request.silent_host and not is_reachable(host.last_seen_at)
        if lost and instance.on_host_lost == "fence" and host.last_seen_at is not None:
            silent = dt.datetime.now(dt.UTC) - host.last_seen_at
            lost = silent > fenced_after(host, self._capacity.fence_after)
        return lost or bool({port["host_port"] for port in ports} & set(request.avoid_ports))

    @activity.defn(name="instance.switch")
    def switch(self, order: Order) -> None:
        """The instance is where it was moving to. What is left on its old host is a leftover from now on."""
        with transaction(self._engine, order.project_id) as session:
            instance = lock(session, order)
            _check_owner(instance, order)
            if instance.next_host_id is not None:
                what = "recreated" if instance.next_host_id == instance.host_id else "moved"
                switch(session, instance)
                secrets.keep(session, instance, [instance.generation])
                host = session.get_one(Host, instance.host_id)
                events = [(f"instance.{what}", {"name": instance.name, "host": host.name})]
                if (before := sizes.take(session, instance)) is not None:
                    events.append(resized(instance, before))
                record(session, order, *events)

    @activity.defn(name="instance.stay")
    def stay(self, order: Order) -> None:
        """Give back what a move held elsewhere. Undoes ``place_beside``."""
        with transaction(self._engine, order.project_id) as session:
            release_next(session, lock(session, order))

    @activity.defn(name="instance.hold_size")
    def hold_size(self, order: Order) -> Placement:
        """Claim the run, and hold on the instance's host what its new size needs beside its own.

        Repeated, the same. Where the machine may be made anew it gets a generation for that.
        """
        with transaction(self._engine, order.project_id) as session:
            instance = lock(session, order)
            row = claim(session, order)
            _check_owner(instance, order)
            host = session.get(Host, instance.host_id) if instance.host_id else None
            old = spec_of(instance)
            if host is None:
                return Placement(host=None, spec=old)
            sizes.hold(session, instance, self._capacity)
            if order.recreate:
                anew(instance)
            # Where it is, and where it is made anew: both may be started.
            for generation in {instance.generation, instance.next_generation or instance.generation}:
                secrets.give(session, self._keyring, instance, host, generation)
            size = {"vcpus": instance.next_vcpus, "memory_mb": instance.next_memory_mb}
            return Placement(
                host=host.name,
                spec=(_next_spec(instance) if order.recreate else old).model_copy(update=size),
                was_running=row.prior_status == Status.RUNNING,
                was_paused=row.prior_status == Status.PAUSED,
                leaves=host.name,
                old_spec=old,
            )

    @activity.defn(name="instance.claim")
    def claim(self, order: Order) -> Placement:
        """Claim the run and say where the instance is, once no other run works on it.

        A forced delete does not wait longer than FORCE_AFTER: what the other run still does carries a
        generation that no row names any more.
        """
        with transaction(self._engine, order.project_id) as session:
            instance = lock(session, order)
            row = claim(session, order)
            _check_owner(instance, order)
            in_the_way = others(session, order)
            host = session.get(Host, instance.host_id) if instance.host_id else None
            if host is not None and order.kind in STARTS:
                makes = order.kind == "HealInstance"
                secrets.give(session, self._keyring, instance, host, instance.generation, makes=makes)
        waited = dt.datetime.now(dt.UTC) - activity.info().scheduled_time
        if in_the_way and not (order.force and waited > FORCE_AFTER):
            raise NotReady(f"workflow {in_the_way[0]} still works on instance {order.name}")
        return Placement(
            host=host.name if host else None,
            spec=spec_of(instance),
            was_running=row.prior_status == Status.RUNNING,
            was_paused=row.prior_status == Status.PAUSED,
        )

    @activity.defn(name="instance.settle")
    def settle(self, settlement: Settlement) -> None:
        """End the run and move the instance where the outcome leads, once."""
        order = settlement.order
        steps = self._histories.steps(order.workflow_id)
        failure = settlement.failure
        if failure is not None:
            attempts = [step.attempts for step in steps if step.name == failure.step and not step.undo]
            failure = failure.model_copy(update={"attempt": attempts[-1] if attempts else None})
        with transaction(self._engine, order.project_id) as session:
            settle_instance(
                session, order, settlement.outcome, failure, steps, settlement.facts, undone=settlement.undone
            )


class Places(Protocol):
    """Where sandboxes of one host have the files of sessions; see ``drivers.warm_trees``."""

    def ready(self, spec: MachineSpec) -> None: ...

    def remove(self, sandbox: UUID) -> None: ...


class Caches(Protocol):
    """Cache volumes of one host; see ``drivers.cache_trees``."""

    def ready(self, spec: MachineSpec) -> None: ...


class InstanceEngine:
    """Machines of one host. Runs on that host's queue."""

    def __init__(
        self,
        machines: Machines,
        fence: Fence,
        given: Given | None = None,
        places: Places | None = None,
        caches: Caches | None = None,
    ) -> None:
        """``places``: where the files of sessions are, for their sandboxes; ``caches``: what these share."""
        self._machines = machines
        self._fence = fence
        self._given = given
        self._places = places
        self._caches = caches

    @activity.defn(name="instance.create", no_thread_cancel_exception=True)
    def create(self, spec: MachineSpec) -> str:
        if spec.fenced:
            self._fence.check_open(activity.is_cancelled)
        script = partial(self._given.script, spec) if spec.user_data and self._given else None
        secrets = partial(self._given.secrets, spec) if spec.secrets and self._given else None
        return self._machines.create(spec, script, secrets)

    @activity.defn(name="instance.start", no_thread_cancel_exception=True)
    def start(self, spec: MachineSpec) -> MachineState:
        if spec.fenced:
            self._fence.check_open(activity.is_cancelled)
        if self._places:
            self._places.ready(spec)
        if self._caches:
            self._caches.ready(spec)
        if spec.secrets and self._given:
            self._machines.give(spec, self._given.secrets(spec))
        state = self._machines.start(spec.id, activity.is_cancelled)
        if spec.fenced:
            # Only now: one that the fence stopped, and whose start was given up, is started by the next look at it.
            self._fence.forget(spec.id)
        if spec.health_check is None:
            return state
        return until_healthy(self._machines, spec, spec.health_check, state, activity.is_cancelled)

    @activity.defn(name="instance.adjust", no_thread_cancel_exception=True)
    def adjust(self, spec: MachineSpec) -> None:
        self._machines.adjust(spec)

    @activity.defn(name="instance.stop", no_thread_cancel_exception=True)
    def stop(self, request: StopRequest) -> None:
        self._machines.stop(request.spec.id, request.grace_seconds, activity.is_cancelled)

    @activity.defn(name="instance.pause", no_thread_cancel_exception=True)
    def pause(self, spec: MachineSpec) -> None:
        self._machines.pause(spec.id)

    @activity.defn(name="instance.resume", no_thread_cancel_exception=True)
    def resume(self, spec: MachineSpec) -> None:
        if spec.fenced:
            self._fence.check_open(activity.is_cancelled)
        self._machines.resume(spec.id)

    @activity.defn(name="instance.delete", no_thread_cancel_exception=True)
    def delete(self, spec: MachineSpec) -> None:
        self._machines.delete(spec.id, spec.generation)
        if spec.warm and self._places:
            self._places.remove(spec.id)
        self._fence.forget(spec.id)


def _check_owner(instance: Instance, order: Order) -> None:
    if instance.workflow_id != order.workflow_id:
        raise Superseded(f"workflow {instance.workflow_id} works on instance {order.name} now")


def _placed(session: Session, instance: Instance, *args: Any, **more: Any) -> Host:
    """``place``, where NotReady becomes NoCapacity once the step has waited PLACE_WITHIN, and the silence is the hosts'
    own: when all of the platform was away, its hosts come back with it."""
    try:
        return place(session, instance, *args, **more)
    except NotReady as error:
        waited = dt.datetime.now(dt.UTC) - activity.info().scheduled_time
        if waited.total_seconds() < PLACE_WITHIN or not silence_says_something(session):
            raise
        raise NoCapacity(error.message, **error.details) from error


def _next_spec(instance: Instance) -> MachineSpec:
    """Of the machine where it is moving to."""
    ports = [Port.model_validate(port) for port in instance.next_ports or []]
    return spec_of(instance).model_copy(update={"generation": instance.next_generation, "ports": ports})


def spec_of(instance: Instance) -> MachineSpec:
    return MachineSpec(
        id=instance.id,
        project_id=instance.project_id,
        generation=instance.generation,
        name=instance.name,
        image=instance.image_reference or instance.image,
        image_digest=instance.image_digest,
        image_format=instance.image_format,
        vcpus=instance.vcpus,
        memory_mb=instance.memory_mb,
        env=instance.env,
        cmd=instance.cmd,
        ports=[Port.model_validate(port) for port in instance.ports],
        labels=instance.labels,
        fenced=instance.on_host_lost == "fence",
        restart_policy=instance.restart_policy,
        health_check=HealthCheck.model_validate(instance.health_check) if instance.health_check else None,
        user_data=instance.user_data_sha256,
        authorized_key=instance.authorized_key,
        secrets={name: use.delivery for name, use in uses_of(instance.secrets).items()},
        registry_login=instance.registry_secret is not None,
        balancer=instance.balancer_id,
        tree=instance.session_id,
        warm=instance.warm,
        caches=[CacheMount.model_validate(cache) for cache in instance.caches],
        network=Network.model_validate(instance.network),
    )
