"""What a group's members are made from, and were: how it is written, and as a list."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response
from pydantic import ValidationError
from sqlalchemy import Row, insert, text

from api import vault
from api.caller import Caller
from api.envelope import answer
from api.group_balancers import check_port
from api.group_numbers import NUMBERS
from api.group_rows import find
from api.group_schemas import ConfigurationView, Members
from api.instance_schemas import InstanceCreate
from model.errors import ValidationFailed
from model.groups import REACHABLE, Configuration, Kind, Template

#: Of the whole group, and not of its members.
ROLLOUT = ("max_surge", "max_unavailable", "min_ready_seconds", "load_balancer_id")
_KNOWN = text(
    "SELECT c.*, c.revision = g.revision AS current FROM scaling_groups g"  # noqa: S608 - nothing but text of this program
    f" JOIN group_configurations c ON c.group_id = g.id AND {REACHABLE}"
    " WHERE g.project_id = :project AND g.id = :group ORDER BY c.revision DESC"
)


async def configurations_of(request: Request, caller: Caller, kind: Kind, group_id: UUID) -> Response:
    """All that are remembered, which are few. Raises NotFound."""
    await find(caller, kind, group_id)
    rows = (await caller.execute(_KNOWN, {"project": caller.project_id, "group": group_id})).all()
    return answer(request, [_view(row) for row in rows])


def _view(row: Row[Any]) -> dict[str, Any]:
    asked = {name: value for name, value in row.asked.items() if name in ConfigurationView.model_fields}
    own = {name: getattr(row, name) for name in ("revision", "current", "created_at", "rolled_out_at")}
    return asked | own


async def with_script(
    request: Request, caller: Caller, group_id: UUID, script: str | None, template: Template
) -> Template:
    """The same, with what its members run first: sealed, once for all of them. Raises Unavailable."""
    if script is None:
        return template
    kept = await vault.keep_of_group(caller, vault.keyring(request), script, group_id)
    return template.model_copy(update={"user_data_id": kept})


async def configure(caller: Caller, group_id: UUID, revision: int, asked: dict[str, Any], template: Template) -> None:
    row = {
        "group_id": group_id,
        "revision": revision,
        "project_id": caller.project_id,
        "asked": asked,
        "template": template.model_dump(mode="json"),
    }
    await caller.execute(insert(Configuration).values(**row))


def asked_of(body: InstanceCreate) -> dict[str, Any]:
    """Of a request what members are made from, so that another can change a part of it: all but the script, which is
    not kept in clear."""
    asked: dict[str, Any] = body.model_dump(mode="json", by_alias=True, include=set(InstanceCreate.model_fields))
    del asked["name"], asked["user_data"]
    asked["network"] = body.wanted_network.model_dump()
    return asked


def check_fits(group: Row[Any], before: dict[str, Any]) -> None:
    """That members may be made from what was asked for then: the group may have another balancer, and other numbers,
    by now. Raises ValidationFailed."""
    known = {name: getattr(group, name) for name in NUMBERS}
    merged = merged_with(before, group, known, {name: getattr(group, name) for name in ROLLOUT})
    if merged.load_balancer_id is not None:
        check_port(merged)


def merged_with(before: dict[str, Any], group: Row[Any], known: dict[str, int], asked: dict[str, Any]) -> Members:
    """The fields that there are, with those that are named in their place. Raises ValidationFailed."""
    together = {"name": group.name} | before | asked
    try:
        named = {name: value for name, value in together.items() if value is not None}
        return Members.model_validate(named, context={"most": known["max_instances"]})
    except ValidationError as error:
        fields = [
            {"field": ".".join(str(part) for part in one["loc"]) or "body", "message": one["msg"]}
            for one in error.errors(include_url=False)
        ]
        raise ValidationFailed(f"{fields[0]['field']}: {fields[0]['message']}", fields=fields) from None
