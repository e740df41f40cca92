"""What a balancer's proxy should run with, from the rows of the balancer, its targets and their machines."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from model import haproxy
from model.balancers import (
    TAKES,
    BalancerConfig,
    BalancerSettings,
    BalancerTarget,
    LoadBalancer,
    Server,
    TargetState,
)
from model.hosts import Host
from model.instances import Instance, Port, Status
from model.vault import Secret, SecretUse


class Way(NamedTuple):
    """Where a balancer finds a target."""

    address: str
    port: int


def way_to(proxy: Instance, target: Instance, port: int, agent_url: str | None, *, leaves: bool = False) -> Way | None:
    """How the proxy reaches a port of the target: on its own host the machine itself, on another what that publishes
    of it (``agent_url``: of the target's host, where that says an address). None: in no way, or not now. ``leaves``:
    it drains, and who has asked for its deletion waits for that."""
    waits = leaves and target.status == Status.DELETING
    if not (target.status in TAKES or waits) or target.host_id is None:
        return None
    if target.host_id == proxy.host_id:
        return Way(target.private_ip, port) if target.private_ip else None
    published = published_port(target.ports, port)
    address = address_of(agent_url)
    return Way(address, published) if address and published else None


def address_of(agent_url: str | None) -> str | None:
    """At which an agent's host is reached. None: the URL has a name, which may mean something else where a proxy is."""
    try:
        return str(ip_address(urlsplit(agent_url or "").hostname or ""))
    except ValueError:
        return None


def published_port(ports: list[Any], port: int) -> int | None:
    """The port of its host under which a port of an instance is published, by its row's ``ports``."""
    known = [Port.model_validate(one) for one in ports]
    return next((one.host_port for one in known if one.container_port == port and one.protocol == "tcp"), None)


def config_of(session: Session, balancer: LoadBalancer, proxy: Instance) -> BalancerConfig:
    """Its targets are those that can be reached just now, in the order in which they came."""
    settings = BalancerSettings.model_validate(balancer.settings)
    targets = session.execute(
        select(BalancerTarget, Instance, Host.agent_url)
        .join(Instance, Instance.id == BalancerTarget.instance_id)
        .outerjoin(Host, Host.id == Instance.host_id)
        .where(BalancerTarget.balancer_id == balancer.id, BalancerTarget.state != TargetState.DRAINED)
        .order_by(BalancerTarget.created_at, BalancerTarget.instance_id)
    )
    servers = []
    for target, instance, agent_url in targets:
        leaves = target.state == TargetState.DRAINING
        way = way_to(proxy, instance, target.port, agent_url, leaves=leaves)
        if way is None:
            continue
        weight = 0 if target.state == TargetState.DRAINING else target.weight
        name = haproxy.server_name(str(instance.id), instance.generation)
        servers.append(Server(name=name, instance_id=instance.id, address=way.address, port=way.port, weight=weight))
    return BalancerConfig(
        mode=balancer.mode,
        port=balancer.port,
        algorithm=settings.algorithm,
        check=settings.check,
        cookie=settings.cookie,
        tls_version=_tls_version(session, settings.tls),
        threads=max(1, round(proxy.vcpus)),
        servers=servers,
    )


def forget_deleted(session: Session, balancer: LoadBalancer) -> None:
    """What is deleted is no target any more."""
    gone = select(Instance.id).where(Instance.id == BalancerTarget.instance_id, Instance.status == Status.DELETED)
    session.execute(delete(BalancerTarget).where(BalancerTarget.balancer_id == balancer.id, gone.exists()))


def _tls_version(session: Session, use: SecretUse | None) -> int | None:
    """Of the secret that the certificate is in; 0 where that is gone, which the next step says."""
    if use is None or use.version is not None:
        return use.version if use is not None else None
    return session.scalar(select(Secret.current_version).where(Secret.id == use.secret_id)) or 0
