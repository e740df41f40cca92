"""What a group's members are made from, and were, as a list."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response
from sqlalchemy import Row, text

from api.caller import Caller
from api.envelope import answer
from api.group_rows import find
from api.group_schemas import ConfigurationView
from model.groups import REACHABLE, Kind

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
