"""Resources as lists and single reads show them: those of the project, and deleted ones for a day."""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Executable, Row, Select, func, text

from api.caller import Caller
from model.chat import WorkAgent
from model.errors import NotFound
from model.resources import Resource
from model.ssh_keys import SshKey
from model.users import ServiceAccount
from model.vault import Secret
from model.webhooks import Webhook
from model.workspaces import Credential

_DELETED = "deleted"
S = TypeVar("S", bound=Select[Any])


def is_readable(resource: type[Resource], gone: str = _DELETED) -> ColumnElement[bool]:
    """It is not deleted, or has been for less than 24 hours. ``gone``: how that state is called."""
    return (resource.status != gone) | (resource.deleted_at > func.now() - text("interval '24 hours'"))


def listed(
    query: S, resource: type[Resource], caller: Caller, *, status: str | None, name: str | None, gone: str = _DELETED
) -> S:
    """``query``, of the caller's project alone; deleted ones only where ``status`` asks for them."""
    query = query.where(resource.project_id == caller.project_id)
    query = query.where(resource.status == status) if status else query.where(resource.status != gone)
    if status == gone:
        query = query.where(is_readable(resource, gone))
    return query if name is None else query.where(resource.name == name)


def named(
    table: type[Credential | Secret | ServiceAccount | SshKey | Webhook | WorkAgent], caller: Caller, name: str | None
) -> list[Any]:
    """Conditions: those of the caller's project, of this name where one is asked for."""
    return [table.project_id == caller.project_id, *([] if name is None else [table.name == name])]


async def one(
    caller: Caller, statement: Executable, noun: str, id: UUID, parameters: dict[str, Any] | None = None
) -> Row[Any]:
    """The row that ``statement`` finds. Raises NotFound."""
    row = (await caller.execute(statement, parameters)).one_or_none()
    if row is None:
        raise NotFound(f"there is no {noun} {id}")
    return row
