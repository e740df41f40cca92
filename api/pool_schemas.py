"""Pools as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.group_schemas import Count, GroupName, Members
from api.instance_schemas import ErrorView, HostName, ImageName, TypeName
from model.groups import MOST_MEMBERS
from model.networks import Network
from model.pools import CAPABILITY, SURGE, UNAVAILABLE
from model.sessions import IDLE

Most = Annotated[int, Field(strict=True, ge=1, le=MOST_MEMBERS)]


class PoolCreate(BaseModel):
    """``POST /v1/pools``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "python", "image": "python:3.13-slim", "size": 3}]}
    )

    name: GroupName
    #: Of sessions that name the same, or none here either: the platform's (CAIRN_SESSION_IMAGE).
    image: ImageName | None = None
    #: Likewise.
    instance_type: TypeName = "basic-1"
    network: Network | None = None
    #: Where workspaces are; null: on any host that can.
    host: HostName | None = None
    #: Sandboxes that are kept ready, also where nobody asks for one.
    size: Count
    #: As many are kept ready where they are asked for; as many as `size`, where it is not said.
    max_size: Most | None = None

    @model_validator(mode="after")
    def _within(self) -> PoolCreate:
        check_sizes(self.size, self.most)
        return self

    @property
    def most(self) -> int:
        return max(1, self.size) if self.max_size is None else self.max_size

    def members(self, image: str, backend: str) -> PoolMembers:
        """What its sandboxes are launched as: nobody's yet, so with nothing of anybody's."""
        return PoolMembers(
            name=self.name,
            image=self.image or image,
            instance_type=self.instance_type,
            network=self.network,
            host=self.host,
            cmd=IDLE,
            backend=backend,
            # Files of sessions are on one host.
            on_host_lost="keep",
            max_surge=SURGE,
            max_unavailable=UNAVAILABLE,
        )


class PoolMembers(Members):
    @property
    def needs(self) -> list[str]:
        return [*super().needs, CAPABILITY]


class PoolPatch(BaseModel):
    """``PATCH /v1/pools/{id}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"size": 5, "max_size": 20}]})

    size: Count | None = None
    #: At least ``size``: a larger ``size`` alone takes it along.
    max_size: Most | None = None

    @model_validator(mode="after")
    def _says_something(self) -> PoolPatch:
        if self.size is None and self.max_size is None:
            raise ValueError("expected size or max_size")
        return self


class PoolView(BaseModel):
    id: str
    project_id: str
    name: str
    #: As of a group: `scaling` while sandboxes are launched or replaced.
    status: str
    image: str
    instance_type: str
    network: Network
    host: str | None
    size: int
    max_size: int
    #: As many as there should be ready now: from `size` to `max_size`, as sessions ask for them.
    wanted: int
    #: Sandboxes that run and wait for a session; those that are missing to `wanted`; those that sessions have.
    ready: int
    filling: int
    claimed: int
    #: Until when it is left alone after runs that failed.
    backoff_until: dt.datetime | None
    error: ErrorView | None
    version: int
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None


def pool_view(row: Any) -> dict[str, Any]:
    """The JSON of a row of ``api.group_rows.query``."""
    own = ("id", "project_id", "name", "status", "backoff_until", "error", "version", "workflow_id")
    times = ("created_at", "updated_at", "deleted_at")
    return {name: getattr(row, name) for name in (*own, *times)} | {
        **{name: row.asked[name] for name in ("image", "instance_type", "network", "host")},
        "size": row.min_instances,
        "max_size": row.max_instances,
        "wanted": row.desired_count,
        "ready": row.ready,
        "filling": max(0, row.desired_count - row.ready),
        "claimed": row.claimed,
    }


def check_sizes(size: int, most: int) -> None:
    """Raises ValueError."""
    if size > most:
        raise ValueError(f"max_size is {most}, less than the size of {size}")
