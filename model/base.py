"""What all tables share."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, ClassVar
from uuid import UUID

import uuid_utils.compat
from pydantic import BaseModel, ConfigDict
from sqlalchemy import DateTime, MetaData, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

#: The character that PostgreSQL keeps in no text, in what is JSON.
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def new_id() -> UUID:
    """A UUIDv7: ids sort by the time they were made."""
    return uuid_utils.compat.uuid7()


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
        dt.datetime: DateTime(timezone=True),
    }


class Frozen(BaseModel):
    """Base of the values that travel between api, workflows, activities and drivers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Id = Annotated[UUID, mapped_column(primary_key=True)]
Now = Annotated[dt.datetime, mapped_column(server_default=func.now())]
EmptyObject = Annotated[dict[str, Any], mapped_column(server_default=text("'{}'::jsonb"))]
EmptyList = Annotated[list[Any], mapped_column(server_default=text("'[]'::jsonb"))]
