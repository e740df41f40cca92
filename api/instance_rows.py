"""Instances as the API reads them: found, locked, shown."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, select

from api import lifetimes
from api.caller import Caller
from api.resources import is_readable, one
from model.balancers import LoadBalancer
from model.errors import Managed
from model.groups import Group
from model.hosts import Host, is_reachable
from model.instances import Instance
from model.sessions import WorkSession

# All but a script, which nobody but its agent reads.
own = [column for column in Instance.__table__.columns if column.name != "user_data"]
columns = [*own, Host.name.label("host"), Host.last_seen_at]
query = select(*columns).select_from(Instance).outerjoin(Host, Host.id == Instance.host_id)

# Built once: on the paths that every client waits for, building a statement costs more than running it.
readable = is_readable(Instance)
MINE = (Instance.project_id == bindparam("project_id")) & (Instance.id == bindparam("instance_id")) & readable
_BY_ID = query.where(MINE)
_LOCK = select(*own).where(MINE).with_for_update()


async def lock(caller: Caller, instance_id: UUID) -> Row[Any]:
    """Its row, which nobody else changes until the commit. Raises NotFound."""
    asked = {"project_id": caller.project_id, "instance_id": instance_id}
    return await one(caller, _LOCK, "instance", instance_id, asked)


async def show(caller: Caller, instance_id: UUID) -> dict[str, Any]:
    """Its JSON. Raises NotFound."""
    asked = {"project_id": caller.project_id, "instance_id": instance_id}
    return view(await one(caller, _BY_ID, "instance", instance_id, asked))


async def check_unmanaged(caller: Caller, row: Row[Any]) -> None:
    """Raises Managed for an instance that users change through what it belongs to."""
    if row.session_id is not None:
        named = select(WorkSession.name).where(WorkSession.id == row.session_id)
        name = (await caller.execute(named)).scalar_one_or_none()
        raise Managed(
            f"instance {row.name} is the sandbox of session {name}: change or delete that instead (/v1/sessions)",
            managed_by={"type": "session", "id": str(row.session_id), "name": name},
        )
    if row.warm:
        named = select(Group.name).where(Group.id == row.group_id)
        name = (await caller.execute(named)).scalar_one_or_none()
        raise Managed(
            f"instance {row.name} is a sandbox of pool {name}: change or delete that instead (/v1/pools)",
            managed_by={"type": "pool", "id": str(row.group_id), "name": name},
        )
    if row.balancer_id is None:
        return
    named = select(LoadBalancer.name).where(LoadBalancer.id == row.balancer_id)
    name = (await caller.execute(named)).scalar_one_or_none()
    raise Managed(
        f"instance {row.name} is the proxy of load balancer {name}: change or delete that instead (/v1/lb)",
        managed_by={"type": "load_balancer", "id": str(row.balancer_id), "name": name},
    )


def view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of an instance, from a row of ``query``."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "name": row.name,
        "status": row.status,
        "image": row.image,
        "image_id": row.image_id,
        "registry_secret": row.registry_secret["secret"] if row.registry_secret else None,
        "image_digest": row.image_digest,
        "instance_type": row.instance_type,
        "vcpus": row.vcpus,
        "memory_mb": row.memory_mb,
        "env": env_of(row),
        "cmd": row.cmd,
        "ports": row.ports,
        "labels": row.labels,
        "tags": row.tags,
        "metadata": row.metadata,
        "backend": row.backend,
        "host": row.host,
        "reachable": None if row.host is None else is_reachable(row.last_seen_at),
        "container_id": row.container_id,
        "private_ip": None if lifetimes.is_dead(row) else row.private_ip,
        "group_id": row.group_id,
        "generation": row.generation,
        "version": row.version,
        "error": row.error,
        "on_host_lost": row.on_host_lost,
        "host_labels": row.wanted_labels,
        "network": row.network,
        "drift": row.drift,
        "managed_by": _manager(row),
        **lifetimes.view(row),
        "workflow_id": row.workflow_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "deleted_at": row.deleted_at,
    }


def _manager(row: Row[Any]) -> dict[str, str] | None:
    if row.session_id is not None:
        return {"type": "session", "id": str(row.session_id)}
    if row.warm:
        return {"type": "pool", "id": str(row.group_id)}
    return None if row.balancer_id is None else {"type": "load_balancer", "id": str(row.balancer_id)}


def env_of(row: Row[Any]) -> dict[str, Any]:
    """As it was asked for."""
    plain: dict[str, Any] = row.env
    return plain | {name: _ref(use) for name, use in row.secrets.items()}


def _ref(use: dict[str, Any]) -> dict[str, Any]:
    """A use of a secret, as it was asked for."""
    version = {} if use["version"] is None else {"version": use["version"]}
    return {"secret": use["secret"], **version, "as": use["delivery"]}
