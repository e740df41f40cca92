"""Cache volumes as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.instance_schemas import ErrorView, Name, Text
from model.cache_volumes import LONGEST_PATH, MOST_OF_SESSION, check_path

CachePath = Annotated[Text, Field(min_length=2, max_length=LONGEST_PATH), AfterValidator(check_path)]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("one of them is given twice")
    return names


#: Those of a new session, by their names.
CacheNames = Annotated[list[Name], Field(max_length=MOST_OF_SESSION), AfterValidator(_distinct)]


class CacheVolumeCreate(BaseModel):
    """``POST /v1/cache-volumes``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "pip", "path": "/root/.cache/pip"}]}
    )

    name: Name
    #: Where the sandboxes of sessions see it: a folder of its own, below no part of the system.
    path: CachePath


class CacheVolumeView(BaseModel):
    id: str
    project_id: str
    name: str
    path: str
    status: str
    #: Names of those where it is.
    hosts: list[str]
    version: int
    #: Why it could not be emptied everywhere the last time, or not deleted.
    error: ErrorView | None
    #: What works on it, or did last; null: nothing was done to it yet.
    workflow_id: str | None
    cleared_at: dt.datetime | None
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None
