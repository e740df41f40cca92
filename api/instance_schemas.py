"""Instances as clients write and read them."""

from __future__ import annotations

import datetime as dt
import math
import re
import shlex
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from api.lifetimes import IdleStop, Lifetimes, LifetimesView, Ttl
from drivers.images import is_ours
from model.drift import Drift
from model.hosts import Backend
from model.instances import Port
from model.networks import OPEN, Network
from model.vault import Delivery

#: The reference grammar of the OCI distribution specification: [domain/]path[:tag][@digest].
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[a-f0-9]{64})?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LONGEST_TO_SPLIT = 32768
_SECRET_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PORT = re.compile(r"(?:([0-9]{1,5}):)?([0-9]{1,5})(?:/(tcp|udp))?")


def _text(value: str) -> str:
    """What PostgreSQL, JSON and an engine can all hold."""
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain half of a surrogate pair")
    return value


def check_json(value: Any) -> Any:
    """What is sent and stored as it is, whatever a client makes of it. Raises ValueError."""
    try:
        orjson.dumps(value)
    except TypeError as error:  # half a surrogate pair, a number beyond 64 bits, too deep
        raise ValueError(f"cannot be kept as JSON: {error}") from None
    left = [value]
    while left:
        one = left.pop()
        left += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []
        if isinstance(one, str) and "\x00" in one:
            raise ValueError("must not contain a null character")
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError("JSON has no number that is not finite")
    return value


def _short(value: str) -> str:
    """Taking a string apart costs time that all requests wait for."""
    if len(value) > LONGEST_TO_SPLIT:
        raise ValueError(f"longer than {LONGEST_TO_SPLIT} characters: send a list")
    return value


def check_reference(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise ValueError("expected an image reference such as nginx:1.29 or registry.example/team/app@sha256:…")
    if is_ours(value):
        raise ValueError("that is what hosts call an image of the platform: give its name or id")
    return value


def _image(value: str) -> str:
    """The name or id of an image of the project, or a reference of a registry."""
    return value if _NAME.fullmatch(value) else check_reference(value)


def _env(value: Any) -> Any:
    """``["K=V", {"name": "K", "secret": …}, …]`` or ``{"K": "V", "K": {"secret": …}}``."""
    if not isinstance(value, list):
        return value
    pairs: dict[str, Any] = {}
    for entry in value:
        found: Any
        if isinstance(entry, str) and "=" in entry:
            name, _, found = entry.partition("=")
        elif isinstance(entry, dict) and isinstance(entry.get("name"), str) and "secret" in entry:
            name, found = entry["name"], {key: entry[key] for key in entry if key != "name"}
        else:
            raise ValueError('expected entries of the form "K=V" or {"name": "K", "secret": "…"}')
        if name in pairs:
            raise ValueError(f"{name[:40]!r} is given twice")
        pairs[name] = found
    return pairs


def split_words(value: Any) -> Any:
    """A list, or one string that is split as a shell splits words (no shell is run)."""
    return shlex.split(_short(value)) if isinstance(value, str) else value


def _ports(value: Any) -> Any:
    """``"8080:80,53:53/udp"`` or a list of objects; host port 0 or none given: one is chosen."""
    if not isinstance(value, str):
        return value
    ports = []
    for entry in _short(value).split(","):
        found = _PORT.fullmatch(entry.strip())
        if not found:
            raise ValueError(f"{entry.strip()[:40]!r} is not HOST:CONTAINER, CONTAINER, with an optional /tcp or /udp")
        ports.append({"host_port": int(found[1] or 0), "container_port": int(found[2]), "protocol": found[3] or "tcp"})
    return ports


Text = Annotated[str, AfterValidator(_text), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
Name = Annotated[str, StringConstraints(pattern=f"^{_NAME.pattern}$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]{1,256}$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[Text, Field(max_length=255)]


Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}$")]


def _each_once(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


Tags = Annotated[list[Tag], Field(max_length=64), AfterValidator(_each_once)]
MetadataValue = Annotated[Text, Field(max_length=4096)]


class PortIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    host_port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 0
    container_port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"


def _distinct(ports: list[PortIn]) -> list[PortIn]:
    seen: set[tuple[str, int, str]] = set()
    for port in ports:
        places = [("container", port.container_port, port.protocol)]
        if port.host_port:
            places.append(("host", port.host_port, port.protocol))
        for place in places:
            if place in seen:
                raise ValueError(f"{place[0]} port {place[1]}/{place[2]} is given twice")
            seen.add(place)
    return ports


class SecretRef(BaseModel):
    """In the place of a variable's value: a secret of the project."""

    model_config = ConfigDict(extra="forbid")

    #: Its name, or its id.
    secret: Name
    #: Without it, the current one at each start.
    version: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None
    #: `file`: a file in memory, which the variable with `_FILE` behind its name names; `env`: the variable itself,
    #: which who may look into the host's engine can read.
    delivery: Delivery = Field("file", alias="as")


class NamedSecretRef(SecretRef):
    """The same as an entry of a list, which says the variable too."""

    name: Annotated[str, StringConstraints(pattern=f"^{_SECRET_VARIABLE.pattern}$")]


def _distinct_variables(env: dict[str, str | SecretRef]) -> dict[str, str | SecretRef]:
    for name, value in env.items():
        if isinstance(value, str):
            continue
        if not _SECRET_VARIABLE.fullmatch(name):
            raise ValueError(f"{name[:40]!r}: a variable for a secret has letters, digits and _, at most 128")
        if value.delivery == "file" and f"{name}_FILE" in env:
            raise ValueError(f"{name}_FILE is given too: it names the file of {name}")
    return env


ImageName = Annotated[
    str, Field(max_length=255, json_schema_extra={"pattern": f"^{_IMAGE.pattern}$"}), AfterValidator(_image)
]
TypeName = Annotated[Text, Field(max_length=63)]
HostName = Annotated[Text, Field(min_length=1, max_length=63)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=64)]
Ports = Annotated[
    list[PortIn],
    BeforeValidator(_ports, json_schema_input_type=str | list[PortIn]),
    AfterValidator(_distinct),
    Field(max_length=64),
]
Env = Annotated[
    dict[EnvName, Text | SecretRef],
    BeforeValidator(_env, json_schema_input_type=list[str | NamedSecretRef] | dict[str, str | SecretRef]),
    AfterValidator(_distinct_variables),
    Field(max_length=256),
]
Words = Annotated[
    list[Text], BeforeValidator(split_words, json_schema_input_type=str | list[str]), Field(max_length=256)
]


class InstanceCreate(Lifetimes):
    """``POST /v1/instances``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "web", "image": "cairn/base:latest", "instance_type": "basic-1", "ports": "80"}]
        },
    )

    name: Name
    image: ImageName
    #: Name or id of a secret with which the image's registry is asked: `username:password`, or JSON with these two.
    registry_secret: Name | None = None
    instance_type: TypeName = "basic-1"
    ports: Ports = []
    env: Env = {}
    cmd: Words | None = None
    labels: Labels = {}
    tags: Tags = []
    metadata: Annotated[dict[LabelName, MetadataValue], Field(max_length=64)] = {}
    backend: Backend = "docker"
    host: HostName | None = None
    #: Labels that its host must have.
    host_labels: Labels = {}
    #: What it reaches: everything (`open`), nothing (`none`), or the servers of `allow` through a proxy (`allow-list`).
    network: Network | None = None

    @model_validator(mode="after")
    def _is_reached(self) -> InstanceCreate:
        mode = self.wanted_network.mode
        if mode != "open" and self.ports:
            raise ValueError(f"ports: nothing reaches an instance with the network {mode}: publish none, or open it")
        if mode != "open" and self.health_check is not None and self.health_check.type != "exec":
            raise ValueError(
                f"health_check: nothing reaches an instance with the network {mode}: take one of the type exec"
            )
        return self

    @property
    def wanted_network(self) -> Network:
        return self.network or OPEN

    @property
    def needs(self) -> list[str]:
        """What the agent of its host has to be capable of."""
        return self.wanted_network.needs

    def wanted_ports(self) -> list[Port]:
        return [
            Port(host_port=port.host_port or None, container_port=port.container_port, protocol=port.protocol)
            for port in self.ports
        ]

    def plain_env(self) -> dict[str, str]:
        return {name: value for name, value in self.env.items() if isinstance(value, str)}

    def secret_env(self) -> dict[str, SecretRef]:
        return {name: value for name, value in self.env.items() if not isinstance(value, str)}


class InstancePatch(BaseModel):
    """``PATCH /v1/instances/{id}``: what is not named stays; labels and metadata are merged, null removes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "web-2", "labels": {"tier": "web", "old": None}, "tags": ["blue"]}]},
    )

    name: Annotated[Name, Field(json_schema_extra=lambda schema: schema.pop("default", None))] = ""
    labels: Annotated[dict[LabelName, LabelValue | None] | None, Field(max_length=128)] = None
    metadata: Annotated[dict[LabelName, MetadataValue | None] | None, Field(max_length=128)] = None
    tags: Tags | None = None
    #: Anew from now on; null: it lives until it is deleted.
    ttl_seconds: Ttl | None = None
    #: Null: it is not stopped for being idle.
    idle_stop_seconds: IdleStop | None = None


class InstanceResize(BaseModel):
    """``POST /v1/instances/{id}/resize``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"instance_type": "standard-1"}]})

    instance_type: Annotated[Text, Field(max_length=63)]
    #: Where the engine can do it in no other way, another machine takes its place: what this one wrote is lost.
    recreate: Annotated[bool, Field(strict=True)] = False


class ErrorView(BaseModel):
    code: str
    message: str
    step: str | None
    attempt: int | None


class ManagedBy(BaseModel):
    type: str
    id: str


class InstanceView(LifetimesView):
    id: str
    project_id: str
    name: str
    status: str
    image: str
    #: The project's image that it names, where it names one.
    image_id: str | None
    #: The secret with which its image is pulled.
    registry_secret: str | None
    #: What it was found to be at launch: every later machine of the instance is made of just that.
    image_digest: str | None
    instance_type: str
    vcpus: float
    memory_mb: int
    #: A variable that stands for a secret says which: its value is in no answer.
    env: dict[str, str | SecretRef]
    cmd: list[str] | None
    ports: list[Port]
    labels: dict[str, str]
    tags: list[str]
    metadata: dict[str, str]
    backend: str
    host: str | None
    reachable: bool | None
    container_id: str | None
    private_ip: str | None
    #: The group or deployment that it is a member of, which replaces it where it is deleted or fails.
    group_id: str | None
    generation: int
    version: int
    error: ErrorView | None
    on_host_lost: str
    host_labels: dict[str, str]
    network: Network
    drift: Drift | None
    #: What it belongs to, and is changed through.
    managed_by: ManagedBy | None
    workflow_id: str
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None
