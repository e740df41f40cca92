"""The steps of load balancers: their records in the database, their proxies on the engines."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from sqlalchemy import Engine, func, select, update
from temporalio import activity

from activities import orders, secrets
from activities.balancer_configs import config_of, forget_deleted
from activities.balancer_ends import BalancerEnd, lock_balancer, settle_balancer
from activities.database import transaction
from activities.fleet import Limits
from activities.instances import spec_of
from activities.runs import Histories, claim, others
from drivers.balancers import Balancers
from drivers.machines import Machines, Secrets
from model import haproxy
from model.balancers import (
    PROVISION,
    TLS,
    AppliedSpec,
    BalancerSettings,
    BalancerSpec,
    BalancerTarget,
    DrainRequest,
    TargetState,
)
from model.base import Frozen
from model.errors import InstanceExited, NotFound, NotReady
from model.hosts import Host
from model.instances import Instance, MachineSpec, Status
from model.keyring import Keyring
from model.workflows import Order, State, Workflow

#: A new server's first check, after at most so long; and how long is waited for it and those behind it at most.
SETTLE_SECONDS = 10.0
#: Between two looks at a drain.
DRAIN_SECONDS = 1.0


class Configuration(Frozen):
    """What is to be made of a balancer. ``spec`` None: it is just that."""

    host: str
    digest: str
    settings: BalancerSettings
    spec: BalancerSpec | None
    #: The servers of the targets that this run takes out.
    draining: list[str] = []


class BalancerRecords:
    """Balancers in the database. Runs on the control queue; every method is one transaction."""

    def __init__(self, engine: Engine, histories: Histories, limits: Limits, keyring: Keyring | None = None) -> None:
        self._engine = engine
        self._histories = histories
        self._limits = limits
        self._keyring = keyring

    @activity.defn(name="lb.claim")
    def claim(self, order: Order) -> Order | None:
        """Claim the run of a new balancer; the launch of its proxy, which was written with it. None: that has ended."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            row = session.scalars(select(Workflow).where(Workflow.parent_id == order.workflow_id)).one_or_none()
            return Order.model_validate(row.order) if row is not None and row.finished_at is None else None

    @activity.defn(name="lb.configure")
    def configure(self, order: Order) -> Configuration:
        """Claim the run, and say what the balancer's proxy is to run with by now. Repeated, it is the newer.

        Runs of one balancer do not wait for each other: the newest configuration is of all that was asked for before
        it, and a host takes no older one after it. Raises NotReady while the proxy is worked on.
        """
        with transaction(self._engine, order.project_id) as session:
            balancer = lock_balancer(session, order)
            claim(session, order)
            proxy = session.scalars(select(Instance).where(Instance.id == balancer.instance_id).with_for_update()).one()
            host = session.get(Host, proxy.host_id) if proxy.host_id else None
            if proxy.status != Status.RUNNING or host is None:
                raise NotReady(
                    f"the instance {proxy.name} of load balancer {order.name} is {proxy.status}", retry_after_seconds=1
                )
            forget_deleted(session, balancer)
            settings = BalancerSettings.model_validate(balancer.settings)
            config = config_of(session, balancer, proxy)
            digest = haproxy.digest(config)
            # Of what the proxy does not know nothing is known, until it is told of again.
            session.execute(
                update(BalancerTarget)
                .where(
                    BalancerTarget.balancer_id == balancer.id,
                    BalancerTarget.instance_id.not_in([server.instance_id for server in config.servers]),
                )
                .values(health=None, health_at=None, check=None)
            )
            draining = session.execute(
                select(Instance.id, Instance.generation)
                .join(BalancerTarget, BalancerTarget.instance_id == Instance.id)
                .where(
                    BalancerTarget.balancer_id == balancer.id,
                    BalancerTarget.workflow_id == order.workflow_id,
                    BalancerTarget.state == TargetState.DRAINING,
                )
            ).all()
            names = [haproxy.server_name(str(row.id), row.generation) for row in draining]
            balancer.looked_at = func.now()
            same = digest == balancer.applied_digest and proxy.container_id == balancer.applied_engine_id
            about = {"host": host.name, "digest": digest, "settings": settings, "draining": names}
            if same and not others(session, order):
                return Configuration(spec=None, **about)
            if settings.tls is not None:
                proxy.secrets = {TLS: settings.tls.model_dump(mode="json")}
                secrets.give(session, self._keyring, proxy, host, proxy.generation)
            balancer.revision += 1
            check = settings.check
            known_after = haproxy.DOWN_SECONDS + check.rise * min(check.interval_seconds, 1) + 1
            spec = BalancerSpec(
                machine=spec_of(proxy),
                revision=balancer.revision,
                text=haproxy.render(config, balancer.revision),
                structure=haproxy.structure(config),
                weights={server.name: server.weight for server in config.servers},
                settle_seconds=min(known_after, SETTLE_SECONDS),
            )
            return Configuration(spec=spec, **about)

    @activity.defn(name="lb.drained")
    def drained(self, order: Order) -> None:
        """The targets that the run takes out have ended what they had begun. Repeated, nothing happens."""
        with transaction(self._engine, order.project_id) as session:
            lock_balancer(session, order)
            claim(session, order)
            session.execute(
                update(BalancerTarget)
                .where(
                    BalancerTarget.balancer_id == order.resource_id,
                    BalancerTarget.workflow_id == order.workflow_id,
                    BalancerTarget.state == TargetState.DRAINING,
                )
                .values(state=TargetState.DRAINED, updated_at=func.now())
            )

    @activity.defn(name="lb.remove")
    def remove(self, order: Order) -> Order | None:
        """Claim the run, and order the delete of the balancer's proxy, as a child of it; None: it is deleted.

        Repeated, the same child, as long as that has not ended. What works on the proxy is called off; runs of the
        balancer itself are waited for.
        """
        with transaction(self._engine, order.project_id) as session:
            balancer = lock_balancer(session, order)
            claim(session, order)
            in_the_way = others(session, order)
            if in_the_way:
                raise NotReady(f"workflow {in_the_way[0]} still works on load balancer {order.name}")
            proxy = session.scalars(select(Instance).where(Instance.id == balancer.instance_id).with_for_update()).one()
            if proxy.status == Status.DELETED:
                return None
            at_it = session.scalars(
                select(Workflow).where(
                    Workflow.parent_id == order.workflow_id,
                    Workflow.kind == "DeprovisionInstance",
                    Workflow.state.in_((State.ACCEPTED, State.RUNNING)),
                )
            ).one_or_none()
            if at_it is not None:
                return Order.model_validate(at_it.order)
            orders.call_off_others(session, proxy)
            return orders.change(
                session,
                proxy,
                "DeprovisionInstance",
                because=f"load balancer {order.name}: {'not made' if order.kind == PROVISION else 'deleted'}",
                deadline_seconds=self._limits.deadline_delete,
                grace_seconds=self._limits.stop_grace,
                force=order.force,
                parent_id=order.workflow_id,
            )

    @activity.defn(name="lb.settle")
    def settle(self, ended: BalancerEnd) -> None:
        """End the run and move the balancer where the outcome leads, once."""
        steps, failure = self._histories.steps(ended.order.workflow_id), ended.failure
        if failure is not None:
            attempts = [step.attempts for step in steps if step.name == failure.step]
            failure = failure.model_copy(update={"attempt": attempts[-1] if attempts else None})
        with transaction(self._engine, ended.order.project_id) as session:
            settle_balancer(session, ended.order, ended.outcome, failure, steps, ended.facts)


class BalancerEngine:
    """Proxies of one host. Runs on that host's queue."""

    def __init__(
        self, balancers: Balancers, machines: Machines, fetch: Callable[[MachineSpec], Secrets] | None = None
    ) -> None:
        """``fetch``: the values of the secrets that a machine names; they are in no history."""
        self._balancers = balancers
        self._machines = machines
        self._fetch = fetch

    @activity.defn(name="lb.apply", no_thread_cancel_exception=True)
    def apply(self, spec: BalancerSpec) -> AppliedSpec:
        if spec.machine.secrets and self._fetch:
            self._machines.give(spec.machine, self._fetch(spec.machine))
        return self._balancers.apply(spec, activity.is_cancelled)

    @activity.defn(name="lb.drain", no_thread_cancel_exception=True)
    def drain(self, request: DrainRequest) -> None:
        """Raises NotReady while there are sessions, and it is not time: the step's retries poll."""
        if dt.datetime.now(dt.UTC) >= request.until:
            return
        try:
            done = self._balancers.drained(request)
        except (InstanceExited, NotFound):  # with its machine all sessions ended
            return
        if not done:
            raise NotReady("there are sessions yet", retry_after_seconds=DRAIN_SECONDS)
