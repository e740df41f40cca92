"""What the tables of all resources share that users name and workflows make, change and delete."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from model.base import Id, Now


class Resource:
    """Columns. A table adds ``workflow_id`` (the workflow that owns the row, or owned it last) and its own."""

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    #: Unique in the project among what is not deleted.
    name: Mapped[str]
    status: Mapped[str]
    error: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]
    #: It can be read for a while after that.
    deleted_at: Mapped[dt.datetime | None]


def rules(table: str, states: type[StrEnum], gone: str = "deleted") -> tuple[SchemaItem, ...]:
    """What the database holds such a table to. ``gone``: the one of ``states`` in which its name is free again."""
    return (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            deferrable=True,
            initially="DEFERRED",
        ),
        CheckConstraint("status IN ({})".format(", ".join(f"'{state}'" for state in states)), name="status"),
        Index(f"uq_{table}_live_name", "project_id", "name", unique=True, postgresql_where=text(f"status <> '{gone}'")),
    )
