"""Health checks: what is asked of a machine, and what is known of it."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, model_validator

from model.base import Frozen

Health = Literal["starting", "healthy", "unhealthy"]
#: What each type of check goes by. A path that is not given is ``/``.
_FIELDS = {"http": {"port", "path"}, "tcp": {"port"}, "exec": {"command"}}
#: Machines that one agent tells of in one request; the API takes no more.
MOST = 500


class HealthCheck(Frozen):
    """How a machine is asked whether it is well. Times in seconds."""

    type: Literal["http", "tcp", "exec"]
    #: Inside the machine.
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    path: Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=1024)] | None = None
    #: Its words: no shell runs it. It is well where that ends with 0.
    command: (
        Annotated[
            list[Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]], Field(min_length=1, max_length=64)
        ]
        | None
    ) = None
    #: Between the end of one look and the next.
    interval_seconds: Annotated[float, Field(strict=True, ge=1, le=3600, allow_inf_nan=False)] = 10
    #: After which a look counts as failed.
    timeout_seconds: Annotated[float, Field(strict=True, ge=0.1, le=60, allow_inf_nan=False)] = 5
    #: Failures in a row that make it unhealthy.
    retries: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    #: After each start failures do not count for so long.
    start_period_seconds: Annotated[float, Field(strict=True, ge=0, le=3600, allow_inf_nan=False)] = 0

    @model_validator(mode="after")
    def _is_whole(self) -> HealthCheck:
        given = {name for name in ("port", "path", "command") if getattr(self, name) is not None}
        wanted = _FIELDS[self.type]
        if missing := wanted - given - {"path"}:
            raise ValueError(f"a check of type {self.type} needs {' and '.join(sorted(missing))}")
        if strange := given - wanted:
            raise ValueError(f"a check of type {self.type} takes no {' and no '.join(sorted(strange))}")
        return self

    def __str__(self) -> str:
        """For people: ``http :80/ready``."""
        if self.type == "exec":
            return f"exec {' '.join(self.command or [])}"[:200]
        return f"{self.type} :{self.port}{(self.path or '/') if self.type == 'http' else ''}"


class Checked(Frozen):
    """A running machine that has a health check."""

    engine_id: str
    id: UUID
    project_id: UUID
    generation: int
    check: HealthCheck


class Look(Frozen):
    """One look at a machine. ``failure`` None: it is well."""

    failure: str | None = None
    #: Of a failure: when the machine was started last, Unix time; None: it does not run, and the look does not count.
    started_at: float | None = None
