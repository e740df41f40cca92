"""What was done to a group, as a list."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response
from sqlalchemy import Row, select

from api.caller import Caller
from api.group_rows import find
from api.group_schemas import ActivityView
from api.paging import Page, page_of
from model.groups import Activity, Kind


async def activities_of(request: Request, caller: Caller, kind: Kind, group_id: UUID, page: Page) -> Response:
    """One page. Raises NotFound."""
    await find(caller, kind, group_id)
    table = Activity.__table__
    query = select(*table.c).where(table.c.project_id == caller.project_id, table.c.group_id == group_id)
    return await page_of(request, caller, query, table.c.id, page, _view)


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ActivityView.model_fields}
