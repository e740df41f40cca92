"""Groups and deployments as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, model_validator

from api.instance_schemas import (
    Env,
    ErrorView,
    HostName,
    ImageName,
    InstanceCreate,
    LabelName,
    Labels,
    MetadataValue,
    Name,
    PortIn,
    Ports,
    SecretRef,
    Tags,
    TypeName,
    Words,
)
from api.lifetimes import RestartPolicy, Ttl, UserData
from model.groups import MOST_MEMBERS, SUFFIX
from model.health import HealthCheck
from model.instances import OnHostLost
from model.networks import OPEN, Network

#: Members are called after it, and a bit more.
GroupName = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{62 - SUFFIX}}}$")]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_MEMBERS)]
#: A number of members, or of those that are desired so many in a hundred.
Amount = Count | Annotated[str, StringConstraints(pattern=r"^([0-9]|[1-9][0-9]|100)%$")]
Seconds = Annotated[int, Field(strict=True, ge=0, le=3600)]
NOTHING = (0, "0%")


class Rollout(BaseModel):
    """How members of another configuration take the place of those that there are."""

    #: So many more than desired, meanwhile.
    max_surge: Amount = "25%"
    #: So many fewer ready ones than desired, meanwhile.
    max_unavailable: Amount = 0
    #: A new member counts as ready when it has been running, and healthy, for so long.
    min_ready_seconds: Seconds = 0
    #: Sends members requests, at the first of their TCP ports: from when they are well until before they go.
    load_balancer_id: UUID | None = None


class Members(InstanceCreate, Rollout):
    """What members are made from, as a launch says it."""

    name: GroupName
    on_host_lost: OnHostLost = "replace"

    @model_validator(mode="after")
    def _of_many(self, info: ValidationInfo) -> Members:
        if self.idle_stop_seconds is not None:
            raise ValueError("idle_stop_seconds: members are not stopped for being idle; scale the group instead")
        if any(port.host_port for port in self.ports):
            if (info.context or {}).get("most", self._most()) > 1:
                raise ValueError("ports: a host port of one's own choice is for a group of at most one member")
            if "max_surge" not in self.model_fields_set:
                self.max_surge, self.max_unavailable = 0, 1
            if self.max_surge not in NOTHING:
                raise ValueError("max_surge must be 0 where a host port is chosen: two members cannot have it")
        if self.max_surge in NOTHING and self.max_unavailable in NOTHING:
            raise ValueError("max_surge and max_unavailable are both 0: no member could ever be replaced")
        return self

    def _most(self) -> int:
        """Where the validation's context does not say ``most``."""
        return MOST_MEMBERS


_EXAMPLE = {"name": "web", "image": "cairn/base:latest", "ports": "80"}


class GroupCreate(Members):
    """``POST /v1/autoscaling/groups``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [_EXAMPLE | {"min_instances": 1, "max_instances": 5, "desired_count": 2}]},
    )

    min_instances: Count = 0
    max_instances: Annotated[int, Field(strict=True, ge=1, le=MOST_MEMBERS)]
    #: As many as the least, where it is not said.
    desired_count: Count | None = None

    @model_validator(mode="after")
    def _within(self) -> GroupCreate:
        check_bounds(self.min_instances, self.max_instances, self.desired_count)
        return self

    def _most(self) -> int:
        return self.max_instances


class DeploymentCreate(Members):
    """``POST /v1/containers/deployments``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE | {"replicas": 2}]})

    replicas: Count = 1


class MembersPatch(BaseModel):
    """What is not named stays; null is the default."""

    name: Annotated[GroupName, Field(json_schema_extra=lambda schema: schema.pop("default", None))] = ""
    image: ImageName | None = None
    registry_secret: Name | None = None
    instance_type: TypeName | None = None
    ports: Ports | None = None
    env: Env | None = None
    cmd: Words | None = None
    labels: Labels | None = None
    tags: Tags | None = None
    metadata: Annotated[dict[LabelName, MetadataValue], Field(max_length=64)] | None = None
    host: HostName | None = None
    host_labels: Labels | None = None
    on_host_lost: OnHostLost | None = None
    ttl_seconds: Ttl | None = None
    restart_policy: RestartPolicy | None = None
    health_check: HealthCheck | None = None
    network: Network | None = None
    user_data: UserData | None = None
    ssh_key_id: UUID | None = None
    max_surge: Amount | None = None
    max_unavailable: Amount | None = None
    min_ready_seconds: Seconds | None = None
    load_balancer_id: UUID | None = None


class GroupPatch(MembersPatch):
    """``PATCH /v1/autoscaling/groups/{id}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image": "cairn/base:latest"}]})

    min_instances: Count | None = None
    max_instances: Annotated[int, Field(strict=True, ge=1, le=MOST_MEMBERS)] | None = None
    desired_count: Count | None = None


class DeploymentPatch(MembersPatch):
    """``PATCH /v1/containers/deployments/{id}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image": "cairn/base:latest"}]})

    replicas: Count | None = None


class GroupScale(BaseModel):
    """``PUT /v1/autoscaling/groups/{id}/scale``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"desired_count": 3}, {"min_instances": 2, "max_instances": 8}]},
    )

    #: Without it, as many as before, as far as the bounds allow that.
    desired_count: Count | None = None
    #: Other bounds: these need `groups:write`.
    min_instances: Count | None = None
    max_instances: Annotated[int, Field(strict=True, ge=1, le=MOST_MEMBERS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> GroupScale:
        if self.desired_count is None and not self.bounds:
            raise ValueError("expected desired_count, min_instances or max_instances")
        return self

    @property
    def bounds(self) -> bool:
        """Whether it says others."""
        return self.min_instances is not None or self.max_instances is not None


class DeploymentScale(BaseModel):
    """``PUT /v1/containers/deployments/{id}/scale``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"replicas": 3}]})

    replicas: Count


class Rollback(BaseModel):
    """``POST …/{id}/rollback``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}, {"revision": 1}]})

    #: Without it, the one that all members had last.
    revision: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None


class MembersView(BaseModel):
    id: str
    project_id: str
    name: str
    status: str
    image: str
    #: The secret with which it is pulled.
    registry_secret: str | None
    instance_type: str
    ports: list[PortIn]
    env: dict[str, str | SecretRef]
    cmd: list[str] | None
    labels: dict[str, str]
    tags: list[str]
    metadata: dict[str, str]
    backend: str
    host: str | None
    host_labels: dict[str, str]
    on_host_lost: str
    ttl_seconds: int | None
    restart_policy: str
    health_check: HealthCheck | None
    network: Network = OPEN
    #: SHA-256 of the script, hexadecimal digits; the script itself is not shown.
    user_data_sha256: str | None
    ssh_key_id: str | None
    max_surge: int | str
    max_unavailable: int | str
    min_ready_seconds: int
    load_balancer_id: str | None
    #: The configuration that members are made from: grows with each change of it.
    revision: int
    #: Members of other configurations are left as they are.
    paused: bool
    #: Runs that failed in a row, and until when the group is left alone for that.
    failures: int
    backoff_until: dt.datetime | None
    error: ErrorView | None
    version: int
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None


class GroupView(MembersView):
    min_instances: int
    max_instances: int
    desired_count: int
    #: Members that are there or on their way; of these those that run and are well, and those of this configuration.
    current_count: int
    ready_count: int
    updated_count: int


class DeploymentView(MembersView):
    replicas: int
    current_replicas: int
    ready_replicas: int
    updated_replicas: int


class ConfigurationView(BaseModel):
    """What members are made from, or were. ``current``: those that are made now."""

    revision: int
    current: bool
    image: str
    registry_secret: str | None = None
    instance_type: str
    ports: list[PortIn]
    env: dict[str, str | SecretRef]
    cmd: list[str] | None
    labels: dict[str, str]
    health_check: HealthCheck | None
    network: Network = OPEN
    created_at: dt.datetime
    #: When all members had it last; null: they never did.
    rolled_out_at: dt.datetime | None


class ActivityView(BaseModel):
    id: str
    action: Literal["create", "scale", "update", "rollback", "replace", "delete"]
    #: Who asked for it, or what was found.
    cause: str
    #: What was measured, where a policy asked for it.
    metric: dict[str, Any] | None
    desired_before: int
    desired_after: int
    revision_before: int
    revision_after: int
    launched: int
    removed: int
    #: Of what it launched.
    failures: int
    rolled_back: bool
    state: Literal["running", "completed", "failed", "cancelled"]
    error: ErrorView | None
    workflow_id: str
    created_at: dt.datetime
    finished_at: dt.datetime | None


def check_bounds(least: int, most: int, desired: int | None) -> None:
    """Raises ValueError."""
    if least > most:
        raise ValueError("min_instances is more than max_instances")
    if desired is not None and not least <= desired <= most:
        raise ValueError(f"desired_count is not within min_instances and max_instances, {least} to {most}")
