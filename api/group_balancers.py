"""Load balancers that groups name."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, select

from api.caller import Caller
from api.group_schemas import Members
from model.balancers import OPEN, BalancerStatus, LoadBalancer
from model.errors import InUse, ValidationFailed
from model.groups import Group, GroupStatus
from model.policies import REQUESTS, Policy

#: Groups that are named.
NAMED = 20


async def check_balancer(caller: Caller, balancer_id: UUID, body: Members) -> None:
    """It cannot be deleted until the commit, and after it the group names it. Raises Forbidden, ValidationFailed."""
    caller.require("lb:update")
    mine = (LoadBalancer.project_id == caller.project_id) & (LoadBalancer.id == balancer_id)
    takes = LoadBalancer.status.in_((*OPEN, BalancerStatus.CREATING))
    held = select(LoadBalancer.id).where(mine, takes).with_for_update(read=True)
    if (await caller.execute(held)).one_or_none() is None:
        raise _invalid("load_balancer_id", "there is no such load balancer: see GET /v1/lb")
    check_port(body)


def check_port(body: Members) -> None:
    """That there is one for a balancer's requests. Raises ValidationFailed."""
    if not any(port.protocol == "tcp" for port in body.ports):
        raise _invalid("ports", "a load balancer sends its requests to the first TCP port: give one")


async def check_needless(caller: Caller, group: Row[Any]) -> None:
    """That no policy of the group goes by what its load balancer counts. Raises Forbidden, ValidationFailed."""
    caller.require("lb:update")
    going = select(Policy.name).where(Policy.group_id == group.id, Policy.metric_type == REQUESTS)
    names = (await caller.execute(going.order_by(Policy.name))).scalars().all()
    if names:
        said = f"policy {', '.join(names)} goes by the requests that the load balancer counts: delete it first"
        raise _invalid("load_balancer_id", said)


async def check_unnamed(caller: Caller, balancer: Row[Any]) -> None:
    """Raises InUse."""
    live = (Group.project_id == caller.project_id) & (Group.status != GroupStatus.DELETED)
    naming = select(Group.name).where(live, Group.load_balancer_id == balancer.id).order_by(Group.name).limit(NAMED)
    groups = list((await caller.execute(naming)).scalars().all())
    if groups:
        said = f"load balancer {balancer.name} is named by {', '.join(groups)}: change or delete these first"
        raise InUse(said, groups=groups)


def _invalid(field: str, said: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {said}", fields=[{"field": field, "message": said}])
