"""Load balancers as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.instance_schemas import ErrorView, LabelName, LabelValue, Name, Text
from model.balancers import MOST_WEIGHT, Algorithm, Mode, TargetCheck
from model.hosts import Backend
from model.instances import Port

Cookie = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
PortNumber = Annotated[int, Field(strict=True, ge=1, le=65535)]
Weight = Annotated[int, Field(strict=True, ge=0, le=MOST_WEIGHT)]
DrainSeconds = Annotated[int, Field(strict=True, ge=0, le=3600)]


class TlsRef(BaseModel):
    """The secret that holds the certificate, those between it and its root, and its key, as PEM one after the other."""

    model_config = ConfigDict(extra="forbid")

    #: Its name, or its id.
    secret: Name
    #: Without it the current one, also when there is a newer.
    version: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None


class BalancerCreate(BaseModel):
    """``POST /v1/lb``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "front", "port": 8443, "health_check": {"type": "http", "path": "/ready"}}]
        },
    )

    name: Name
    #: Where it listens: on its own address, and on its host's.
    port: PortNumber
    #: On its host's, where that is another; 0: one is chosen.
    host_port: Annotated[int, Field(strict=True, ge=0, le=65535)] | None = None
    mode: Mode = "http"
    algorithm: Algorithm = "round-robin"
    health_check: TargetCheck = TargetCheck()
    #: Binds a user to the target that answered first, where the mode is http.
    cookie: Cookie | None = None
    tls: TlsRef | None = None
    #: How long a target that leaves may take to end what it has begun.
    drain_seconds: DrainSeconds = 30
    #: Of the instance that it runs in.
    instance_type: Annotated[Text, Field(max_length=63)] = "basic-1"
    backend: Backend = "docker"
    host: Annotated[Text, Field(min_length=1, max_length=63)] | None = None
    host_labels: dict[LabelName, LabelValue] = Field(default={}, max_length=64)

    @model_validator(mode="after")
    def _cookies_are_of_http(self) -> BalancerCreate:
        if self.cookie is not None and self.mode != "http":
            raise ValueError("a cookie needs the mode http")
        return self


class BalancerPatch(BaseModel):
    """``PATCH /v1/lb/{id}``: what is not named stays."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"algorithm": "least-conn", "drain_seconds": 60}]}
    )

    name: Annotated[Name, Field(json_schema_extra=lambda schema: schema.pop("default", None))] = ""
    algorithm: Algorithm | None = None
    health_check: TargetCheck | None = None
    #: Null: users are bound to no target.
    cookie: Cookie | None = None
    #: Another secret, or another version of it.
    tls: TlsRef | None = None
    drain_seconds: DrainSeconds | None = None


class BalancerView(BaseModel):
    id: str
    project_id: str
    name: str
    status: str
    mode: str
    port: int
    algorithm: str
    health_check: TargetCheck
    cookie: str | None
    tls: TlsRef | None
    drain_seconds: int
    #: Its own instance, which is changed through it alone; where that is, and the ports of its host that lead to it.
    instance_id: str
    instance_type: str
    backend: str
    host: str | None
    reachable: bool | None
    private_ip: str | None
    ports: list[Port]
    #: How many targets it has, and how many of them take requests.
    targets: int
    targets_up: int
    #: Of its configuration, and of the one that it runs with.
    revision: int
    applied_revision: int
    version: int
    error: ErrorView | None
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None


class TargetCreate(BaseModel):
    """``POST /v1/lb/{id}/targets``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"instance_id": "0199b3f0-0000-7000-8000-000000000001", "port": 80}]},
    )

    instance_id: UUID
    #: Inside the instance.
    port: PortNumber
    #: Its share of the requests among those of the others; 0: it takes no new users.
    weight: Weight = 100


class TargetPatch(BaseModel):
    """``PATCH /v1/lb/{id}/targets/{instance_id}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"weight": 10}]})

    weight: Weight


class TargetView(BaseModel):
    load_balancer_id: str
    instance_id: str
    #: Of the instance.
    name: str
    status: str
    port: int
    weight: int
    #: `adding`, `in`, `draining`, `drained`; `removed`: it was one.
    state: str
    #: As the balancer's own checks say: `up`, `down`, `draining`, `maint`; `unknown`: nobody has told it yet, or not
    #: since its instance was started elsewhere. Since then, and what the last check said.
    health: str
    health_at: dt.datetime | None
    check: str | None
    workflow_id: str | None
    created_at: dt.datetime
    updated_at: dt.datetime


class BalancerSampleView(BaseModel):
    """The ten seconds from ``at`` on."""

    at: str
    seconds: int
    #: A second, on average.
    requests_per_second: float
    requests: int
    #: Open at the end.
    sessions: int
    bytes_in: int
    bytes_out: int
    errors: int
    #: The same of each target: ``{instance_id, requests, sessions, bytes_in, bytes_out, errors}``.
    targets: list[dict[str, str | int]]
