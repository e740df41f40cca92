"""Cron jobs as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.instance_schemas import ErrorView, LabelName, LabelValue, Name, Text, check_json
from api.streams import Exec
from api.webhooks import Secret, Url
from model import cron_times
from model.cron import Overlap, RunState

#: What says who sends it, or how: the platform's own.
_OURS = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "idempotency-key"}
#: Nothing is made up for that was before.
_FIRST = dt.datetime(1971, 1, 1, tzinfo=dt.UTC)
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"
_VALUE = r"^[ -~]*$"
#: Workflows that a job can start: those that a request can.
Kind = Literal[
    "ProvisionInstance",
    "StartInstance",
    "StopInstance",
    "RestartInstance",
    "PauseInstance",
    "ResumeInstance",
    "ResizeInstance",
    "DeprovisionInstance",
    "ScaleGroup",
    "ImportImage",
    "DeleteImage",
]


def _schedule(value: str) -> str:
    value = " ".join(value.split())
    cron_times.check(value)
    return value


def _zone(value: str) -> str:
    cron_times.check_zone(value)
    return value


def _header_name(value: str) -> str:
    if value.lower() in _OURS or value.lower().startswith("x-cairn-"):
        raise ValueError(f"{value}: the platform sets this header")
    return value


class NamedSecret(BaseModel):
    """A secret of the project, as it is when it is needed."""

    model_config = ConfigDict(extra="forbid")

    #: Its name, or its id.
    secret: Name


Json = Annotated[dict[str, Any] | list[Any], AfterValidator(check_json)]
HeaderName = Annotated[str, StringConstraints(pattern=_HEADER), AfterValidator(_header_name)]
HeaderValue = Annotated[str, StringConstraints(max_length=4096, pattern=_VALUE)]


class HttpTarget(BaseModel):
    """A request, signed as those of webhooks are."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: Annotated[dict[HeaderName, HeaderValue | NamedSecret], Field(max_length=32)] = {}
    #: Text, or what is sent as JSON.
    body: Annotated[Text, Field(max_length=65536)] | Json | None = None
    #: What signs it. Without one, one is made, and shown in the answer, once.
    secret: Secret | NamedSecret | None = None
    #: Seconds, of one attempt.
    timeout: Annotated[float, Field(gt=0, le=300, strict=True)] = 30
    #: After no answer, 408, 425, 429 or 5xx.
    retries: Annotated[int, Field(ge=0, le=10, strict=True)] = 2


class ExecTarget(Exec):
    """A command in an instance, which runs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": []})

    instance_id: UUID | None = None
    #: Instead of its id: whichever is called so then.
    name: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> ExecTarget:
        if (self.instance_id is None) == (self.name is None):
            raise ValueError("expected instance_id or name")
        return self


class WorkflowTarget(BaseModel):
    """What a request would start; ``parameters``: that request's body."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    #: The instance, image, group or deployment, of what does not make one.
    resource_id: UUID | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(check_json)] = {}

    @model_validator(mode="after")
    def _about(self) -> WorkflowTarget:
        if (self.kind in ("ProvisionInstance", "ImportImage")) == (self.resource_id is not None):
            said = "makes a resource: it takes no" if self.resource_id else "needs a"
            raise ValueError(f"{self.kind} {said} resource_id")
        return self


class Target(BaseModel):
    """One of these."""

    model_config = ConfigDict(extra="forbid")

    http: HttpTarget | None = None
    exec: ExecTarget | None = None
    workflow: WorkflowTarget | None = None

    @model_validator(mode="after")
    def _one(self) -> Target:
        if sum(one is not None for one in (self.http, self.exec, self.workflow)) != 1:
            raise ValueError("expected one of http, exec, workflow")
        return self


class CronWrite(BaseModel):
    """``POST /v1/cron/jobs`` and, with all that the job is to be, ``PUT /v1/cron/jobs/{id}``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "nightly",
                    "schedule": "30 2 * * *",
                    "time_zone": "Europe/Berlin",
                    "target": {"http": {"url": "https://example.com/nightly"}},
                }
            ]
        },
    )

    name: Name
    #: Five fields as in crontab(5), ``@hourly`` and the like, or ``@every 10s``.
    schedule: Annotated[str, Field(min_length=1, max_length=cron_times.LONGEST), AfterValidator(_schedule)]
    time_zone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] = "UTC"
    target: Target
    overlap: Overlap = Overlap.SKIP
    #: A time that was missed by more is left out.
    catchup_window_seconds: Annotated[int, Field(ge=10, le=86400, strict=True)] = 60
    paused: Annotated[bool, Field(strict=True)] = False
    labels: dict[LabelName, LabelValue] = Field(default={}, max_length=64)


class Backfill(BaseModel):
    """``POST /v1/cron/jobs/{id}/backfill``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}]},
    )

    #: Times from here,
    start: dt.datetime
    #: up to here, which is past.
    end: dt.datetime

    @model_validator(mode="after")
    def _order(self) -> Backfill:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("expected times with their offset, as 2026-11-01T00:00:00Z")
        if not _FIRST <= self.start < self.end <= dt.datetime.now(dt.UTC):
            raise ValueError("expected start before end, and both in the past, after 1970")
        return self


class CronView(BaseModel):
    id: str
    project_id: str
    name: str
    schedule: str
    time_zone: str
    #: As it was given; secrets by their names.
    target: dict[str, Any]
    overlap: Overlap
    catchup_window_seconds: int
    paused: bool
    labels: dict[str, str]
    #: On whose behalf it runs: who said last what it does.
    owner: str
    #: The next 10 times, in UTC; none while it is paused.
    next_runs: list[dt.datetime]
    #: Whether the scheduler has it as it is here.
    applied: bool
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: What signs its requests: only in the answer that made it, where it was not given.
    secret: str | None = None


class RunView(BaseModel):
    id: str
    job_id: str
    scheduled_at: dt.datetime
    #: Asked for out of turn.
    manual: bool
    state: RunState
    #: What the request carried, and a workflow was started under.
    idempotency_key: str
    #: Calls whose outcome is known.
    attempts: int
    #: Of HTTP, or a command's exit code.
    status_code: int | None
    error: ErrorView | None
    #: What it started.
    workflow_id: str | None
    #: Whether more was written than is kept.
    truncated: bool
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None


class RunWithOutput(RunView):
    #: The first 64 KiB of what was answered or written.
    output: str | None


class Backfilled(BaseModel):
    #: Times that are made up for: those of which there was no run.
    runs: int
