"""Accepting groups and deployments, and what is to become of them. Each wish is a run of its own, before which an
earlier one, still under way, is called off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy import Row, func, insert, select, text, update

from activities.group_orders import close_activities, forget_low
from api import lifetimes, vault
from api.accept import Acceptance, Answered, check_if_match, etag
from api.caller import Caller
from api.envelope import answer
from api.group_balancers import check_balancer, check_needless
from api.group_configurations import ROLLOUT, asked_of, check_fits, configure, merged_with, with_script
from api.group_numbers import NUMBERS, check_numbers, scaled
from api.group_rows import check_live, find, lock, showing
from api.group_schemas import Members, MembersPatch
from api.instance_changes import cancel_others
from api.launches import template_of
from api.resources import unique_name
from model.base import new_id
from model.errors import InvalidState, NotFound, QuotaExceeded
from model.groups import (
    DELETE,
    REACHABLE,
    REMEMBERED,
    RUN_SECONDS,
    SCALE,
    Activity,
    Configuration,
    Group,
    GroupStatus,
    Kind,
    Template,
)
from model.settings import Settings
from model.workflows import TERMINAL, Event, Order, Workflow

_COUNT = text("SELECT count(*) FROM scaling_groups WHERE project_id = :project AND status <> 'deleted'")
_KNOWN = text(
    "SELECT c.revision, c.rolled_out_at, c.asked FROM scaling_groups g JOIN group_configurations c ON c.group_id = g.id"  # noqa: S608 - nothing but text of this program
    f" AND {REACHABLE} WHERE g.id = :group ORDER BY c.rolled_out_at DESC NULLS LAST"
)
_HOLD_QUOTA = text("SELECT FROM quotas WHERE project_id = :project FOR UPDATE")


class Wished(NamedTuple):
    """What a request makes of a group: columns of its row, and what a run does for that."""

    action: str
    values: dict[str, Any] = {}
    status: GroupStatus = GroupStatus.SCALING


async def create(request: Request, caller: Caller, kind: Kind, body: Members, numbers: dict[str, int]) -> Response:
    """Accept a new one; ``numbers``: least, most and desired."""
    acceptance = Acceptance(request, caller, created=True)
    group_id, show = new_id(), showing(kind)
    asked = [body.model_dump(mode="json", exclude_unset=True)]
    if body.user_data is not None:
        asked = vault.fingerprinted(vault.keyring(request), caller, asked[0], "user_data")
    if answered := await acceptance.answered_before(group_id, *asked):
        return await acceptance.answer(show, answered)
    template = await template_of(request, caller, body)
    if body.load_balancer_id is not None:
        await check_balancer(caller, body.load_balancer_id, body)
    order = _order(request, caller, acceptance, kind, SCALE, group_id, body.name)
    values = {
        "id": group_id,
        "project_id": caller.project_id,
        "name": body.name,
        "kind": kind,
        "status": GroupStatus.PENDING,
        "workflow_id": order.workflow_id,
        **numbers,
        **{name: getattr(body, name) for name in ROLLOUT},
    }
    with unique_name("a group, deployment or pool", body.name):
        await caller.execute(insert(Group).values(**values))
    template = await with_script(request, caller, group_id, body.user_data, template)
    await configure(caller, group_id, 1, asked_of(body), template)
    told = {"image": body.image, "instance_type": body.instance_type, **numbers}
    caller.changed(kind, group_id, after=told)
    desired = numbers["desired_count"]
    await _begin(caller, order, "create", (0, desired), (0, 1))
    data = {"name": body.name, "from": None, "to": GroupStatus.PENDING, "desired_count": desired}
    await acceptance.write(order, f"{kind}.pending", data)
    await _check_quota(request, caller)
    return await acceptance.answer(show)


async def scale(request: Request, caller: Caller, kind: Kind, group_id: UUID, wanted: dict[str, int]) -> Response:
    """Accept other numbers; under an Idempotency-Key once. 200 where nothing has to be done for it: who asks for what
    there is, or is on its way, disturbs no run."""
    acceptance = Acceptance(request, caller)
    group = await lock(caller, kind, group_id)
    if answered := await acceptance.answered_before(group_id, wanted):
        return await _answer_again(request, caller, group, acceptance, answered)
    check_live(group)
    numbers = scaled(group, wanted)
    if wanted.keys() != {"desired_count"}:
        return await patch(request, caller, kind, group_id, MembersPatch(), numbers, acceptance)
    check_if_match(request, group.version)
    if numbers["desired_count"] == group.desired_count and await _is_on_its_way(caller, group):
        return await _change_row(request, caller, group, {})
    return await _accept(request, caller, group, Wished("scale", wanted), acceptance)


async def resize(
    request: Request, caller: Caller, kind: Kind, group_id: UUID, numbers: Callable[[Row[Any]], dict[str, int]]
) -> Response:
    """Accept what ``numbers`` makes of the group; 200 where its members are as many as before."""
    group = await lock(caller, kind, group_id)
    check_live(group)
    check_if_match(request, group.version)
    values = {name: value for name, value in numbers(group).items() if value != getattr(group, name)}
    if "desired_count" in values:
        return await _accept(request, caller, group, Wished("scale", values))
    return await _change_row(request, caller, group, values)


async def patch(
    request: Request,
    caller: Caller,
    kind: Kind,
    group_id: UUID,
    body: MembersPatch,
    numbers: dict[str, int],
    acceptance: Acceptance | None = None,
) -> Response:
    """Change what is named: 200 where only the row changes, else 202. Members of another configuration are replaced."""
    group = await lock(caller, kind, group_id)
    check_live(group)
    check_if_match(request, group.version)
    known = {name: getattr(group, name) for name in NUMBERS} | numbers
    check_numbers(*(known[name] for name in NUMBERS))
    now = select(Configuration.__table__).where(
        Configuration.group_id == group_id, Configuration.revision == group.revision
    )
    before = (await caller.execute(now)).one()
    asked = body.model_dump(mode="json", by_alias=True, exclude_unset=True, include=set(MembersPatch.model_fields))
    merged = merged_with(before.asked | {name: getattr(group, name) for name in ROLLOUT}, group, known, asked)
    values: dict[str, Any] = {name: value for name, value in numbers.items() if value != getattr(group, name)}
    values |= {name: new for name in ROLLOUT if (new := getattr(merged, name)) != getattr(group, name)}
    if merged.load_balancer_id is not None and (asked.keys() & {"load_balancer_id", "ports"}):
        await check_balancer(caller, merged.load_balancer_id, merged)
    elif "load_balancer_id" in values and merged.load_balancer_id is None:
        await check_needless(caller, group)
    if merged.name != group.name:
        values["name"] = merged.name
    new = asked_of(merged)
    script = lifetimes.sha256_of(body.user_data) if "user_data" in asked else before.template["user_data_sha256"]
    status = GroupStatus.SCALING
    if new != before.asked or script != before.template["user_data_sha256"]:
        template = await template_of(request, caller, merged)
        if script == before.template["user_data_sha256"]:
            kept = {name: before.template[name] for name in ("user_data_id", "user_data_sha256")}
            template = Template.model_validate(template.model_dump() | kept)
        else:
            template = await with_script(request, caller, group_id, body.user_data, template)
        newest = select(func.max(Configuration.revision)).where(Configuration.group_id == group_id)
        values["revision"] = (await caller.execute(newest)).scalar_one() + 1
        await configure(caller, group_id, values["revision"], new, template)
        status = GroupStatus.UPDATING
    action = "update" if status is GroupStatus.UPDATING else "scale"
    if status is GroupStatus.UPDATING or "desired_count" in values:
        return await _accept(request, caller, group, Wished(action, values, status), acceptance)
    return await _change_row(request, caller, group, values)


async def roll_back(
    request: Request, caller: Caller, kind: Kind, group_id: UUID, revision: int | None, body: BaseModel
) -> Response:
    """Accept the return to an earlier configuration."""
    acceptance = Acceptance(request, caller)
    group = await lock(caller, kind, group_id)
    if answered := await acceptance.answered_before(group_id, body.model_dump(mode="json", exclude_unset=True)):
        return await acceptance.answer(showing(kind), answered)
    check_live(group)
    check_if_match(request, group.version)
    known = (await caller.execute(_KNOWN, {"group": group_id})).all()
    if revision is None:
        revision = next((row.revision for row in known if row.rolled_out_at and row.revision != group.revision), None)
        if revision is None:
            raise InvalidState(f"{kind} {group.name} has had no other configuration", state=group.status)
    elif revision not in [row.revision for row in known]:
        said = f"the newest {REMEMBERED} are remembered, and that which all members had last"
        raise NotFound(f"{kind} {group.name} has no configuration {revision} to go back to: {said}")
    (before,) = (row.asked for row in known if row.revision == revision)
    check_fits(group, before)
    values = {"revision": revision, "paused": False}
    return await _accept(request, caller, group, Wished("rollback", values, GroupStatus.UPDATING), acceptance)


async def pause(request: Request, caller: Caller, kind: Kind, group_id: UUID) -> Response:
    """From here on no member is replaced for its configuration; what is under way ends."""
    group = await lock(caller, kind, group_id)
    check_live(group)
    check_if_match(request, group.version)
    return await _change_row(request, caller, group, {} if group.paused else {"paused": True})


async def resume(request: Request, caller: Caller, kind: Kind, group_id: UUID) -> Response:
    """Accept that members are replaced again."""
    acceptance = Acceptance(request, caller)
    group = await lock(caller, kind, group_id)
    if answered := await acceptance.answered_before(group_id, None):
        return await acceptance.answer(showing(kind), answered)
    check_live(group)
    check_if_match(request, group.version)
    wished = Wished("update", {"paused": False}, GroupStatus.UPDATING)
    return await _accept(request, caller, group, wished, acceptance)


async def delete(request: Request, caller: Caller, kind: Kind, group_id: UUID) -> Response:
    """Accept the deletion of it and all its members."""
    group = await lock(caller, kind, group_id)
    show = showing(kind)
    if group.status == GroupStatus.DELETED:
        return answer(request, await show(caller, group_id), headers={"ETag": etag(group.version)})
    if group.status == GroupStatus.DELETING:
        check_if_match(request, group.version, group.version - 1)
        return await Acceptance(request, caller).answer(show, Answered(group_id, group.workflow_id))
    check_if_match(request, group.version)
    return await _accept(request, caller, group, Wished("delete", {}, GroupStatus.DELETING))


async def _accept(
    request: Request, caller: Caller, group: Row[Any], wished: Wished, acceptance: Acceptance | None = None
) -> Response:
    """Accept a run that makes the group what is wished; one that is under way is called off for it."""
    acceptance = acceptance or Acceptance(request, caller)
    run = DELETE if wished.status is GroupStatus.DELETING else SCALE
    await cancel_others(caller, acceptance, group.id)
    name = wished.values.get("name", group.name)
    order = _order(request, caller, acceptance, group.kind, run, group.id, name)
    await _update(
        caller,
        group,
        {
            **wished.values,
            "status": wished.status,
            "workflow_id": order.workflow_id,
            # Whatever failed so far: this was not asked for then.
            "failures": 0,
            "backoff_until": None,
        },
    )
    desired = wished.values.get("desired_count", group.desired_count)
    revision = wished.values.get("revision", group.revision)
    after = 0 if run == DELETE else desired
    await caller.execute(close_activities(group.id))
    await caller.execute(forget_low(group.id))
    await _begin(caller, order, wished.action, (group.desired_count, after), (group.revision, revision))
    told = {name: value for name, value in wished.values.items()}
    caller.changed(group.kind, group.id, {name: getattr(group, name) for name in told}, told)
    data = {"name": name, "from": group.status, "to": wished.status, "desired_count": desired}
    await acceptance.write(order, f"{group.kind}.{wished.status}", data, prior_status=group.status)
    return await acceptance.answer(showing(group.kind))


async def _is_on_its_way(caller: Caller, group: Row[Any]) -> bool:
    """Whether it has as many members as it should, or a run that nobody calls off sees to that."""
    if group.status == GroupStatus.ACTIVE:
        row = await find(caller, group.kind, group.id)
        return group.backoff_until is None and row.current == group.desired_count
    open_one = (Workflow.id == group.workflow_id) & Workflow.state.not_in(TERMINAL)
    run = select(Workflow.id).where(open_one, Workflow.cancel_requested_at.is_(None))
    return (await caller.execute(run)).one_or_none() is not None


async def _answer_again(
    request: Request, caller: Caller, group: Row[Any], acceptance: Acceptance, answered: Answered
) -> Response:
    """As it was answered before: with its run, where it began one."""
    begun = select(Workflow.id).where(Workflow.id == answered.workflow_id)
    if (await caller.execute(begun)).one_or_none() is not None:
        return await acceptance.answer(showing(group.kind), answered)
    data = await showing(group.kind)(caller, group.id)
    return answer(request, data, headers={"ETag": etag(data["version"])})


async def _change_row(request: Request, caller: Caller, group: Row[Any], values: dict[str, Any]) -> Response:
    """Nothing is to be done for it. What changes nothing leaves the version as it is."""
    if values:
        await _update(caller, group, values)
        caller.changed(group.kind, group.id, {name: getattr(group, name) for name in values}, values)
        await caller.execute(
            insert(Event).values(
                project_id=caller.project_id,
                type=f"{group.kind}.updated",
                resource_type=group.kind,
                resource_id=group.id,
                data={"name": values.get("name", group.name), "changed": sorted(values)},
            )
        )
    data = await showing(group.kind)(caller, group.id)
    await caller.commit()
    request.app.state.bells.ring("")
    return answer(request, data, headers={"ETag": etag(data["version"])})


async def _update(caller: Caller, group: Row[Any], values: dict[str, Any]) -> None:
    more = {"version": Group.version + 1, "updated_at": func.now()}
    with unique_name("a group, deployment or pool", values.get("name", group.name)):
        await caller.execute(update(Group).where(Group.id == group.id).values(**values, **more))


async def _begin(
    caller: Caller, order: Order, action: str, desired: tuple[int, int], revision: tuple[int, int]
) -> None:
    """The activity of a run."""
    row = {
        "id": new_id(),
        "project_id": caller.project_id,
        "group_id": order.resource_id,
        "workflow_id": order.workflow_id,
        "action": action,
        "cause": caller.actor,
        "desired_before": desired[0],
        "desired_after": desired[1],
        "revision_before": revision[0],
        "revision_after": revision[1],
    }
    await caller.execute(insert(Activity).values(**row))


def _order(
    request: Request, caller: Caller, acceptance: Acceptance, kind: Kind, run: str, group_id: UUID, name: str
) -> Order:
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind=run,
        resource_type=kind,
        resource_id=group_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=RUN_SECONDS,
    )


async def _check_quota(request: Request, caller: Caller) -> None:
    """Raises QuotaExceeded. Last in a transaction: all that begins in the project waits for this row."""
    settings: Settings = request.app.state.settings
    await caller.execute(_HOLD_QUOTA, {"project": caller.project_id})
    if (await caller.execute(_COUNT, {"project": caller.project_id})).scalar_one() > settings.project_groups:
        said = f"the project may have {settings.project_groups} groups, deployments and pools: delete one first"
        raise QuotaExceeded(said, limit=settings.project_groups)
