"""Load balancers and their targets as the API reads them: found, locked, shown."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, func, select

from api.caller import Caller
from api.resources import is_readable, one
from model.balancers import BalancerTarget, LoadBalancer
from model.hosts import Host, is_reachable
from model.instances import Instance

_targets = select(func.count()).where(BalancerTarget.balancer_id == LoadBalancer.id).correlate(LoadBalancer)
query = (
    select(
        *LoadBalancer.__table__.columns,
        *(Instance.instance_type, Instance.backend, Instance.private_ip, Instance.ports),
        *(Host.name.label("host"), Host.last_seen_at),
        _targets.scalar_subquery().label("targets"),
        _targets.where(BalancerTarget.health == "up").scalar_subquery().label("targets_up"),
    )
    .join(Instance, Instance.id == LoadBalancer.instance_id)
    .outerjoin(Host, Host.id == Instance.host_id)
)
targets_query = select(*BalancerTarget.__table__.columns, Instance.name, Instance.status).join(
    Instance, Instance.id == BalancerTarget.instance_id
)


def mine(caller: Caller, balancer_id: UUID) -> ColumnElement[bool]:
    return (LoadBalancer.project_id == caller.project_id) & (LoadBalancer.id == balancer_id) & is_readable(LoadBalancer)


async def lock(caller: Caller, balancer_id: UUID) -> Row[Any]:
    """Its row, which nobody else changes until the commit. Raises NotFound."""
    locked = select(LoadBalancer.__table__).where(mine(caller, balancer_id)).with_for_update()
    return await one(caller, locked, "load balancer", balancer_id)


async def show(caller: Caller, balancer_id: UUID) -> dict[str, Any]:
    """Its JSON. Raises NotFound."""
    return view(await one(caller, query.where(mine(caller, balancer_id)), "load balancer", balancer_id))


def view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of a balancer, from a row of ``query``."""
    settings = row.settings
    tls = settings.get("tls")
    return {
        "id": row.id,
        "project_id": row.project_id,
        "name": row.name,
        "status": row.status,
        "mode": row.mode,
        "port": row.port,
        "algorithm": settings["algorithm"],
        "health_check": settings["check"],
        "cookie": settings.get("cookie"),
        "tls": {"secret": tls["secret"], "version": tls.get("version")} if tls else None,
        "drain_seconds": settings["drain_seconds"],
        "instance_id": row.instance_id,
        "instance_type": row.instance_type,
        "backend": row.backend,
        "host": row.host,
        "reachable": None if row.host is None else is_reachable(row.last_seen_at),
        "private_ip": row.private_ip,
        "ports": row.ports,
        "targets": row.targets,
        "targets_up": row.targets_up,
        "revision": row.revision,
        "applied_revision": row.applied_revision,
        "version": row.version,
        "error": row.error,
        "workflow_id": row.workflow_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "deleted_at": row.deleted_at,
    }


def target_view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of a target, from a row of ``targets_query``."""
    return {
        "load_balancer_id": row.balancer_id,
        "instance_id": row.instance_id,
        "name": row.name,
        "status": row.status,
        "port": row.port,
        "weight": row.weight,
        "state": row.state,
        "health": row.health or "unknown",
        "health_at": row.health_at,
        "check": row.check,
        "workflow_id": row.workflow_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }
