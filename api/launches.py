"""What a launch asks for, resolved and checked: the instance type, the image, the secrets, the key."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from sqlalchemy import Row, text

from activities import no_room
from activities.placement import Capacity
from api import lifetimes, secrets
from api.caller import Caller
from api.image_names import named_image
from api.instance_schemas import InstanceCreate
from model.errors import NoCapacity, PortTaken, ValidationFailed
from model.groups import Template

_POSSIBLE = text(
    """
    SELECT t.vcpus, t.memory_mb, count(clash) > 0 AS room, count(*) FILTER (WHERE NOT clash) > 0 AS ports
    FROM instance_types t LEFT JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM host_ports p JOIN unnest(cast(:ports AS int[]), cast(:protocols AS text[])) AS w(port, protocol)
            ON p.port = w.port AND p.protocol = w.protocol WHERE p.host_id = h.id
        ) AS clash
        FROM hosts h
        WHERE h.backend = :backend AND h.state = 'ready' AND (cast(:host AS text) IS NULL OR h.name = :host)
          AND h.labels @> cast(:labels AS jsonb) AND h.capabilities @> cast(:needs AS jsonb)
          AND h.allocated_vcpus + t.vcpus <= h.cpus * :cpu
          AND h.allocated_memory_mb + t.memory_mb <= h.memory_mb * :memory
    ) AS fitting ON true
    WHERE t.name = :type AND t.retired_at IS NULL
    GROUP BY t.name
    """
)


async def template_of(request: Request, caller: Caller, body: InstanceCreate) -> Template:
    """What the row of such an instance says. What it names stays until the commit.

    Raises NoCapacity or PortTaken where no host could take it now, and whatever is wrong with what it names.
    """
    named = await named_image(caller, body.image, body.backend, body.registry_secret)
    size = await check_possible(request, caller, body)
    return Template(
        image=body.image,
        **named,
        instance_type=body.instance_type,
        vcpus=size.vcpus,
        memory_mb=size.memory_mb,
        env=body.plain_env(),
        secrets=await secrets.uses(caller, body),
        cmd=body.cmd,
        wanted_ports=body.wanted_ports(),
        labels=body.labels,
        tags=body.tags,
        metadata=body.metadata,
        backend=body.backend,
        wanted_host=body.host,
        wanted_labels=body.host_labels,
        network=body.wanted_network,
        on_host_lost=body.on_host_lost,
        **await lifetimes.columns(caller, body),
    )


async def check_possible(request: Request, caller: Caller, body: InstanceCreate) -> Row[Any]:
    """The instance type, and whether any host could take the launch now: one read, that holds nothing."""
    capacity: Capacity = request.app.state.capacity
    fixed = [(port.host_port, port.protocol) for port in body.ports if port.host_port]
    asked = {
        "type": body.instance_type,
        "backend": body.backend,
        "host": body.host,
        "labels": orjson.dumps(body.host_labels).decode(),
        "needs": orjson.dumps(body.needs).decode(),
        "cpu": capacity.overcommit_cpu,
        "memory": capacity.overcommit_memory,
        "ports": [port for port, _ in fixed],
        "protocols": [protocol for _, protocol in fixed],
    }
    row = (await caller.execute(_POSSIBLE, asked)).one_or_none()
    if row is None:
        raise ValidationFailed(
            f"there is no instance type '{body.instance_type}'",
            fields=[{"field": "instance_type", "message": "see GET /v1/instance-types"}],
        )
    if not row.room:
        raise NoCapacity(
            await _why_no_room(caller, body, row, capacity),
            instance_type=body.instance_type,
            backend=body.backend,
            host=body.host,
        )
    if not row.ports:
        raise PortTaken("no host has these ports free", ports=[port for port, _ in fixed])
    return row


async def _why_no_room(caller: Caller, body: InstanceCreate, size: Row[Any], capacity: Capacity) -> str:
    asked = no_room.Asked(
        backend=body.backend,
        vcpus=size.vcpus,
        memory_mb=size.memory_mb,
        labels=body.host_labels,
        needs=body.needs,
        host=body.host,
    )
    hosts = (await caller.execute(no_room.HOSTS)).all()
    return no_room.why(hosts, asked, capacity.overcommit_cpu, capacity.overcommit_memory)
