"""``/v1/lb``: create, read, change, delete. Targets are in ``api.balancer_targets``."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, insert, select, text, update

from api.accept import Acceptance, Answered, check_if_match, etag
from api.authentication import may
from api.balancer_rows import lock, query, show, view
from api.balancer_schemas import BalancerCreate, BalancerPatch, BalancerView, TlsRef
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.group_balancers import check_unnamed
from api.image_names import named_image
from api.instance_changes import cancel_others, order_of
from api.instance_schemas import InstanceCreate, PortIn, SecretRef
from api.launches import check_possible
from api.paging import OfName, Paging, page_of
from api.quotas import reserve
from api.resources import listed, rename, unique_name
from api.secrets import use
from model import haproxy
from model.balancers import (
    DEPROVISION,
    OPEN,
    PROVISION,
    TLS,
    UPDATE,
    BalancerSettings,
    BalancerStatus,
    LoadBalancer,
)
from model.base import new_id
from model.errors import InvalidState, QuotaExceeded, ValidationFailed
from model.instances import Instance, Status
from model.settings import Settings
from model.vault import SecretUse
from model.workflows import Order

router = APIRouter(prefix="/v1/lb", tags=["load-balancers"], responses=RESPONSES)

_LIMIT = text("SELECT load_balancers_limit FROM quotas WHERE project_id = :project FOR UPDATE")
#: Of a balancer's name, in the name of its instance.
SHOWN = 40


@router.post("", status_code=202, response_model=Envelope[BalancerView])
async def create(request: Request, body: BalancerCreate, caller: Annotated[Caller, may("lb:create")]) -> Response:
    """Create a load balancer: 202 with its id and its workflow's. It has no targets yet, and answers 503 to all.

    It runs in an instance of its own, which counts in the project's quota, and publishes `port` on its host.
    """
    acceptance = Acceptance(request, caller, created=True)
    balancer_id = new_id()
    asked = body.model_dump(mode="json", exclude_unset=True)
    if answered := await acceptance.answered_before(balancer_id, asked):
        return await acceptance.answer(show, answered)
    tls = await _use(caller, body.tls)
    chosen = BalancerSettings(
        algorithm=body.algorithm,
        check=body.health_check,
        cookie=body.cookie,
        tls=tls,
        drain_seconds=body.drain_seconds,
    )
    order = balancer_order(request, caller, acceptance, PROVISION, balancer_id, body.name)
    launch, size = await _launch(request, caller, acceptance, body, balancer_id, tls)
    values = {
        "id": balancer_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": BalancerStatus.CREATING,
        "mode": body.mode,
        "port": body.port,
        "settings": chosen.model_dump(mode="json"),
        "instance_id": launch.resource_id,
        "workflow_id": order.workflow_id,
    }
    with unique_name("a load balancer", body.name):
        await caller.execute(insert(LoadBalancer).values(**values))
    caller.changed("load_balancer", balancer_id, after=asked)
    data = {"name": body.name, "from": None, "to": BalancerStatus.CREATING}
    await acceptance.write(order, "lb.creating", data)
    await acceptance.write_child(launch, order)
    told = {"name": launch.name, "from": None, "to": Status.PENDING}
    await acceptance.record("instance.pending", "instance", launch.resource_id, launch.workflow_id, told)
    await _check_limit(caller)
    await reserve(caller, instances=1, vcpus=size.vcpus, memory_mb=size.memory_mb)
    return await acceptance.answer(show)


async def _launch(
    request: Request,
    caller: Caller,
    acceptance: Acceptance,
    body: BalancerCreate,
    balancer_id: UUID,
    tls: SecretUse | None,
) -> tuple[Order, Any]:
    """Write the row of its proxy, which a child of the order launches; that child, and the proxy's size."""
    settings: Settings = request.app.state.settings
    name = f"lb-{body.name[:SHOWN]}-{balancer_id.hex[-8:]}"
    host_port = body.port if body.host_port is None else body.host_port
    proxy = InstanceCreate(
        name=name,
        image=settings.lb_image,
        instance_type=body.instance_type,
        ports=[PortIn(host_port=host_port, container_port=body.port)],
        backend=body.backend,
        host=body.host,
        host_labels=body.host_labels,
    )
    named = await named_image(caller, proxy.image, proxy.backend, None)
    size = await check_possible(request, caller, proxy)
    order = order_of(request, caller, acceptance, "ProvisionInstance", new_id(), name)
    fixed = [host_port] if host_port else []
    order = order.model_copy(update={"workflow_id": new_id(), "fixed_ports": fixed})
    ports = [port.model_dump() for port in proxy.wanted_ports()]
    values = {
        "id": order.resource_id,
        "project_id": caller.project_id,
        "name": name,
        "status": Status.PENDING,
        "image": proxy.image,
        **named,
        "instance_type": proxy.instance_type,
        "vcpus": size.vcpus,
        "memory_mb": size.memory_mb,
        "secrets": {} if tls is None else {TLS: tls.model_dump(mode="json")},
        "cmd": haproxy.PROGRAM,
        "ports": ports,
        "wanted_ports": ports,
        "backend": proxy.backend,
        "wanted_host": proxy.host,
        "wanted_labels": proxy.host_labels,
        "restart_policy": "always",
        "balancer_id": balancer_id,
        "workflow_id": order.workflow_id,
    }
    await caller.execute(insert(Instance.__table__), values)  # type: ignore[arg-type]  # a Table, typed as FromClause
    return order, size


async def _check_limit(caller: Caller) -> None:
    """Last but one in a transaction: every launch of the project waits for this row. Raises QuotaExceeded."""
    most = (await caller.execute(_LIMIT, {"project": caller.project_id})).scalar_one()
    live = (LoadBalancer.project_id == caller.project_id) & (LoadBalancer.status != BalancerStatus.DELETED)
    there = (await caller.execute(select(func.count()).select_from(LoadBalancer).where(live))).scalar_one()
    if most is not None and there > most:
        raise QuotaExceeded(
            f"the project may have {most} load balancers: delete one first", load_balancers=1, limit=most
        )


@router.get("", response_model=Envelope[list[BalancerView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("lb:read")],
    page: Paging,
    status: Annotated[BalancerStatus | None, Query()] = None,
    name: OfName = None,
) -> Response:
    """Load balancers, newest first; those deleted within 24 hours only with `?status=deleted`."""
    found = listed(query, LoadBalancer, caller, status=status, name=name)
    return await page_of(request, caller, found, LoadBalancer.__table__.c.id, page, view)


@router.get("/{balancer_id}", response_model=Envelope[BalancerView])
async def show_one(request: Request, balancer_id: UUID, caller: Annotated[Caller, may("lb:read")]) -> Response:
    """One load balancer. A deleted one stays readable for 24 hours."""
    data = await show(caller, balancer_id)
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.patch(
    "/{balancer_id}",
    status_code=202,
    response_model=Envelope[BalancerView],
    responses={200: {"model": Envelope[BalancerView], "description": "Only its name was another; no workflow"}},
)
async def patch(
    request: Request, balancer_id: UUID, body: BalancerPatch, caller: Annotated[Caller, may("lb:update")]
) -> Response:
    """Change how it works, as it works: no request fails for it. Where that fails, all is as it was before."""
    acceptance = Acceptance(request, caller)
    balancer = await lock(caller, balancer_id)
    check_if_match(request, balancer.version)
    check_open(balancer)
    before = BalancerSettings.model_validate(balancer.settings)
    after = await _changed(caller, balancer, body, before)
    renamed = bool(body.name) and body.name != balancer.name
    if renamed:
        await rename(caller, LoadBalancer, balancer, body.name, resource_type="load_balancer", topic="lb")
    if after == before:
        data = await show(caller, balancer_id)
        await caller.commit()
        return answer(request, data, headers={"ETag": etag(data["version"])})
    name = body.name if renamed else balancer.name
    told = body.model_dump(mode="json", exclude_unset=True)
    caller.changed("load_balancer", balancer_id, before.model_dump(mode="json", include=set(told)), told)
    order = balancer_order(request, caller, acceptance, UPDATE, balancer_id, name)
    values = {"settings": after.model_dump(mode="json"), "settings_by": order.workflow_id}
    await begin(caller, acceptance, balancer, order, BalancerStatus.UPDATING, **values)
    return await acceptance.answer(show)


async def _changed(caller: Caller, balancer: Any, body: BalancerPatch, before: BalancerSettings) -> BalancerSettings:
    """What is asked for. Raises ValidationFailed."""
    values: dict[str, Any] = {}
    for field in sorted(body.model_fields_set - {"name"}):
        asked = getattr(body, field)
        if field == "tls":
            if (asked is None) != (before.tls is None):
                raise _invalid("tls", "it neither goes nor comes with a balancer that there is: make another one")
            asked = await _use(caller, asked)
        elif field == "cookie":
            if asked is not None and balancer.mode != "http":
                raise _invalid("cookie", "it needs the mode http")
        elif asked is None:
            raise _invalid(field, "it cannot be null")
        values["check" if field == "health_check" else field] = asked
    return before.model_copy(update=values)


@router.delete("/{balancer_id}", status_code=202, response_model=Envelope[BalancerView])
async def delete(
    request: Request, balancer_id: UUID, caller: Annotated[Caller, may("lb:delete")], force: bool = False
) -> Response:
    """Delete a load balancer, whatever its state, with its instance; its targets stay as they are. 409 `in_use` while a
    group names it.

    With `force=true` an engine that does not answer is not waited for: its host removes what is left.
    """
    acceptance = Acceptance(request, caller)
    balancer = await lock(caller, balancer_id)
    if balancer.status == BalancerStatus.DELETED:
        return answer(request, await show(caller, balancer_id), headers={"ETag": etag(balancer.version)})
    if balancer.status == BalancerStatus.DELETING:
        check_if_match(request, balancer.version, balancer.version - 1)
        return await acceptance.answer(show, Answered(balancer_id, balancer.workflow_id))
    check_if_match(request, balancer.version)
    await check_unnamed(caller, balancer)
    await cancel_others(caller, acceptance, balancer_id)
    order = balancer_order(request, caller, acceptance, DEPROVISION, balancer_id, balancer.name)
    order = order.model_copy(update={"force": force})
    await begin(caller, acceptance, balancer, order, BalancerStatus.DELETING)
    return await acceptance.answer(show)


async def begin(
    caller: Caller, acceptance: Acceptance, balancer: Any, order: Order, status: BalancerStatus, **values: Any
) -> None:
    """The order's workflow owns the balancer from here on."""
    values |= {"status": status, "workflow_id": order.workflow_id}
    values |= {"version": LoadBalancer.version + 1, "updated_at": func.now()}
    await caller.execute(update(LoadBalancer).where(LoadBalancer.id == balancer.id).values(values))
    data = {"name": balancer.name, "from": balancer.status, "to": status}
    await acceptance.write(order, f"lb.{status}", data, prior_status=balancer.status)


def check_open(balancer: Any) -> None:
    """Raises InvalidState where it can only be deleted, or is being made or deleted."""
    if balancer.status not in OPEN:
        busy = balancer.status not in (BalancerStatus.ERROR, BalancerStatus.DELETED)
        raise InvalidState(
            f"load balancer {balancer.name} is {balancer.status}, not active or updating",
            state=balancer.status,
            **({"workflow_id": str(balancer.workflow_id)} if busy else {}),
        )


def balancer_order(
    request: Request,
    caller: Caller,
    acceptance: Acceptance,
    kind: str,
    balancer_id: UUID,
    name: str,
    drain_seconds: float = 0,
) -> Order:
    settings: Settings = request.app.state.settings
    seconds = {
        PROVISION: settings.deadline_launch + settings.deadline_balancer,
        UPDATE: settings.deadline_balancer + drain_seconds,
        # What is in its way is undone first.
        DEPROVISION: settings.deadline_delete + settings.deadline_balancer,
    }
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=kind,
        resource_type="load_balancer",
        resource_id=balancer_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=seconds[kind],
        grace_seconds=settings.stop_grace,
    )


async def _use(caller: Caller, tls: TlsRef | None) -> SecretUse | None:
    """Raises Forbidden, ValidationFailed."""
    if tls is None:
        return None
    caller.require("secrets:use")
    asked = SecretRef(secret=tls.secret, version=tls.version)
    return await use(caller, "tls", asked)


def _invalid(field: str, said: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {said}", fields=[{"field": field, "message": said}])
