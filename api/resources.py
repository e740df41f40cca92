"""Resources as lists and single reads show them: those of the project, and deleted ones for a day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from psycopg.errors import UniqueViolation
from sqlalchemy import ColumnElement, Executable, Row, Select, func, insert, text, update
from sqlalchemy.exc import IntegrityError

from api.caller import Caller
from model.chat import WorkAgent
from model.errors import NameTaken, NotFound
from model.resources import Resource
from model.ssh_keys import SshKey
from model.users import ServiceAccount
from model.vault import Secret
from model.webhooks import Webhook
from model.workflows import Event
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


def violated(error: IntegrityError) -> str | None:
    """The name of the unique constraint that stands against it."""
    return error.orig.diag.constraint_name if isinstance(error.orig, UniqueViolation) else None


@contextmanager
def unique_name(what: str, name: str | None) -> Iterator[None]:
    """What is written here may be refused as another has its name: raises NameTaken then. ``what``: ``a webhook``."""
    try:
        yield
    except IntegrityError as error:
        if not (violated(error) or "").endswith("_name"):
            raise
        raise NameTaken(f"there is {what} named '{name}' already", name=name) from error


async def rename(
    caller: Caller, table: type[Resource], row: Row[Any], name: str, *, resource_type: str, topic: str
) -> None:
    """Give it another name, and say so. ``topic``: how its events begin. Raises NameTaken."""
    values = {"name": name, "version": table.version + 1, "updated_at": func.now()}
    with unique_name(f"a {resource_type.replace('_', ' ')}", name):
        await caller.execute(update(table).where(table.id == row.id).values(values))
    caller.changed(resource_type, row.id, {"name": row.name}, {"name": name})
    await caller.execute(
        insert(Event).values(
            project_id=caller.project_id,
            type=f"{topic}.updated",
            resource_type=resource_type,
            resource_id=row.id,
            data={"name": name, "from": row.name, "changed": ["name"]},
        )
    )


async def one(
    caller: Caller, statement: Executable, noun: str, id: UUID, parameters: dict[str, Any] | None = None
) -> Row[Any]:
    """The row that ``statement`` finds. Raises NotFound."""
    row = (await caller.execute(statement, parameters)).one_or_none()
    if row is None:
        raise NotFound(f"there is no {noun} {id}")
    return row
