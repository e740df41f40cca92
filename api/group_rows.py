"""Groups and deployments as the API reads them: found, locked, shown."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, bindparam, case, func, select, true

from api.accept import Show
from api.caller import Caller
from api.group_schemas import MembersView
from api.paging import labelled
from api.pool_schemas import pool_view
from api.resources import is_readable, listed, one
from model.errors import InvalidState
from model.groups import Configuration, Group, GroupStatus, Kind
from model.instances import Instance, Status
from model.networks import OPEN
from model.sessions import SessionStatus, WorkSession

_members = (
    select(
        func.count().label("current"),
        func.count()
        .filter(
            Instance.status == Status.RUNNING,
            Instance.health_check.is_(None) | (Instance.health == "healthy"),
            func.coalesce(Instance.drift["kind"].astext, "changed") == "changed",
        )
        .label("ready"),
        func.count().filter(Instance.group_revision == Group.revision).label("updated"),
    )
    .where(Instance.group_id == Group.id, Instance.status.not_in((Status.DELETED, Status.DELETING, Status.ERROR)))
    .correlate(Group)
    .lateral("members")
)
_has = (WorkSession.pool_id == Group.id) & (WorkSession.start == "warm")
_sandboxes = (
    select(func.count())
    .select_from(WorkSession)
    .where(_has, WorkSession.status != SessionStatus.REMOVED)
    .correlate(Group)
    .scalar_subquery()
)
#: Of a pool.
_claimed = case((Group.kind == "pool", _sandboxes)).label("claimed")
_now = (Configuration.group_id == Group.id) & (Configuration.revision == Group.revision)
query = (
    select(
        *Group.__table__.c,
        Configuration.asked,
        Configuration.template["user_data_sha256"].astext.label("user_data_sha256"),
        Configuration.template["registry_secret"]["secret"].astext.label("registry_secret"),
        *_members.c,
        _claimed,
    )
    .select_from(Group)
    .join(Configuration, _now)
    .join(_members, true())
)
_MINE = (
    (Group.project_id == bindparam("project_id"))
    & (Group.id == bindparam("group_id"))
    & (Group.kind == bindparam("kind"))
    & is_readable(Group)
)
_BY_ID = query.where(_MINE)

_LOCK = select(*Group.__table__.c).where(_MINE).with_for_update()
#: Under which name each number is known.
_NAMES: dict[Kind, dict[str, str]] = {
    "group": {
        "desired": "desired_count",
        "current": "current_count",
        "ready": "ready_count",
        "updated": "updated_count",
    },
    # Those of pools are apart.
    "deployment": {
        "desired": "replicas",
        "current": "current_replicas",
        "ready": "ready_replicas",
        "updated": "updated_replicas",
    },
}


async def lock(caller: Caller, kind: Kind, group_id: UUID) -> Row[Any]:
    """Its row, which nobody else changes until the commit. Raises NotFound."""
    asked = {"project_id": caller.project_id, "group_id": group_id, "kind": kind}
    return await one(caller, _LOCK, kind, group_id, asked)


async def find(caller: Caller, kind: Kind, group_id: UUID) -> Row[Any]:
    """Raises NotFound."""
    asked = {"project_id": caller.project_id, "group_id": group_id, "kind": kind}
    return await one(caller, _BY_ID, kind, group_id, asked)


def of_kind(
    kind: Kind, caller: Caller, status: GroupStatus | None, name: str | None, label: str | None = None
) -> Select[Any]:
    found = listed(query, Group, caller, status=status, name=name).where(Group.kind == kind)
    return found if label is None else found.where(Configuration.asked["labels"].contains(labelled(label)))


def showing(kind: Kind) -> Show:
    """Its JSON."""

    async def show(caller: Caller, group_id: UUID) -> dict[str, Any]:
        return view(kind, await find(caller, kind, group_id))

    return show


def view(kind: Kind, row: Row[Any]) -> dict[str, Any]:
    """The JSON of a row of ``query``."""
    if kind == "pool":
        return pool_view(row)
    own = {name: getattr(row, name) for name in MembersView.model_fields if hasattr(row, name)}
    asked = {name: value for name, value in row.asked.items() if name in MembersView.model_fields and name not in own}
    numbers = {"desired": row.desired_count, "current": row.current, "ready": row.ready, "updated": row.updated}
    # Of what was asked before there were classes of networks, the one that there was.
    asked = {"network": OPEN.model_dump()} | asked
    data = asked | own | {_NAMES[kind][name]: number for name, number in numbers.items()}
    if kind == "group":
        more = ("min_instances", "max_instances")
        data |= {name: getattr(row, name) for name in more}
    return data


view_of_group, view_of_deployment = partial(view, "group"), partial(view, "deployment")


def check_live(group: Row[Any]) -> None:
    """Raises InvalidState."""
    if group.status in (GroupStatus.DELETING, GroupStatus.DELETED):
        raise InvalidState(
            f"{group.kind} {group.name} is {group.status}", state=group.status, workflow_id=str(group.workflow_id)
        )
