"""How long an instance lives and runs, how it starts, whether it is well: the fields of requests and answers."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator
from sqlalchemy import Row, func, select

from api.caller import Caller
from model.drift import DEAD
from model.errors import ValidationFailed
from model.health import HealthCheck
from model.instances import OnHostLost, Status
from model.lifetimes import LEAST_IDLE, LONGEST
from model.ssh_keys import SshKey

MOST_USER_DATA = 16 * 1024
_SHEBANG = re.compile(r"#![ \t]*/")
#: In these it is on its way to running.
_STARTING = {"pending", "provisioning", "starting", "restarting"}


def _script(value: str) -> str:
    first = value.partition("\n")[0]
    if not _SHEBANG.match(value):
        raise ValueError("expected a script: its first line begins with #!, such as #!/bin/sh")
    if first.endswith("\r"):
        raise ValueError("its lines end as on Windows (CR LF): no engine finds the interpreter of such a script")
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("must not contain half of a surrogate pair") from None
    if size > MOST_USER_DATA:
        raise ValueError(f"it has {size} bytes, and may have {MOST_USER_DATA}")
    return value


Ttl = Annotated[int, Field(strict=True, ge=1, le=LONGEST)]
IdleStop = Annotated[int, Field(strict=True, ge=LEAST_IDLE, le=LONGEST)]
RestartPolicy = Annotated[str, StringConstraints(pattern=r"^(no|always|on-failure(:[1-9][0-9]{0,3})?)$")]
UserData = Annotated[str, AfterValidator(_script)]


class Lifetimes(BaseModel):
    """What a launch may say of it."""

    on_host_lost: OnHostLost = "keep"
    #: It is deleted so many seconds after it was accepted.
    ttl_seconds: Ttl | None = None
    #: It is stopped when it has done nothing for so long.
    idle_stop_seconds: IdleStop | None = None
    #: What its engine does when its program ends: `no`, `on-failure`, `on-failure:N` or `always`.
    restart_policy: RestartPolicy = "no"
    health_check: HealthCheck | None = None
    #: A script that runs in it once, as root, before its own program.
    user_data: UserData | None = None
    #: Whose public half goes into the authorized_keys of its root.
    ssh_key_id: UUID | None = None

    @model_validator(mode="after")
    def _starts_in_one_place(self) -> Lifetimes:
        if self.on_host_lost == "fence" and self.restart_policy != "no":
            raise ValueError(
                "restart_policy must be 'no' with on_host_lost 'fence': its engine would start it again with the "
                "machine, when it may already run elsewhere. What is fenced and ends by itself is started again anyway"
            )
        return self


class LifetimesView(BaseModel):
    ttl_seconds: int | None
    expires_at: dt.datetime | None
    idle_stop_seconds: int | None
    #: Until when it is known to have done something; only kept where it is stopped when idle.
    active_at: dt.datetime | None
    restart_policy: str
    health_check: HealthCheck | None
    #: `starting`, `healthy` or `unhealthy`; null: it has no health check, or does not run.
    health: str | None
    #: SHA-256 of the script, hexadecimal digits; the script itself is not shown.
    user_data_sha256: str | None
    ssh_key_id: str | None


async def columns(caller: Caller, body: Lifetimes) -> dict[str, Any]:
    """The columns of new instances, without when each ends. Raises ValidationFailed where there is no such key."""
    return {
        "ttl_seconds": body.ttl_seconds,
        "restart_policy": body.restart_policy,
        "health_check": body.health_check.model_dump(exclude_defaults=True) if body.health_check else None,
        "user_data_sha256": sha256_of(body.user_data),
        "ssh_key_id": body.ssh_key_id,
        "authorized_key": await _authorized_key(caller, body.ssh_key_id) if body.ssh_key_id else None,
    }


def sha256_of(script: str | None) -> str | None:
    """What is shown of it."""
    return hashlib.sha256(script.encode()).hexdigest() if script else None


async def ttl(caller: Caller, seconds: int | None) -> dict[str, Any]:
    """The columns of a time to live that begins now; None: it has none (any more)."""
    if seconds is None:
        return {"ttl_seconds": None, "expires_at": None}
    now: dt.datetime = (await caller.execute(select(func.now()))).scalar_one()
    return {"ttl_seconds": seconds, "expires_at": now + dt.timedelta(seconds=seconds)}


def idle_stop(seconds: int | None) -> dict[str, Any]:
    """The columns of an idle stop that is asked for later, with an UPDATE; None: it is never stopped for that."""
    return {"idle_stop_seconds": seconds, "active_at": None if seconds is None else func.now()}


async def _authorized_key(caller: Caller, key_id: UUID) -> str:
    mine = (SshKey.project_id == caller.project_id) & (SshKey.id == key_id)
    found: str | None = (await caller.execute(select(SshKey.public_key).where(mine))).scalar_one_or_none()
    if found is None:
        said = "there is no such key: see GET /v1/ssh-keys"
        raise ValidationFailed(f"ssh_key_id: {said}", fields=[{"field": "ssh_key_id", "message": said}])
    return found


def is_dead(row: Row[Any]) -> bool:
    """Whether its program was found to have ended, whatever its state should be."""
    return row.drift is not None and row.drift["kind"] in DEAD


def view(row: Row[Any]) -> dict[str, Any]:
    """The part of an instance's JSON."""
    health = None
    if row.health_check:
        runs = row.status == Status.RUNNING and not is_dead(row)
        health = "starting" if row.status in _STARTING else row.health if runs else None
    return {
        "ttl_seconds": row.ttl_seconds,
        "expires_at": row.expires_at,
        "idle_stop_seconds": row.idle_stop_seconds,
        "active_at": row.active_at,
        "restart_policy": row.restart_policy,
        "health_check": HealthCheck.model_validate(row.health_check).model_dump() if row.health_check else None,
        "health": health,
        "user_data_sha256": row.user_data_sha256,
        "ssh_key_id": row.ssh_key_id,
    }
