"""What cron jobs ask of the platform: requests like any other, made in this process, as whoever said what they do."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import orjson
from fastapi import FastAPI
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from activities.cron_calls import kept
from api.authentication import JOB
from api.caller import ENTER
from api.cron_targets import Call, call_of
from model.cron import CronCall, CronJob, CronRun, RunState, idempotency_key
from model.errors import CairnError, NotFound, RateLimited, TooManyStreams, Unavailable

#: What is answered so is asked for again.
_AGAIN = {RateLimited.code, TooManyStreams.code}
_UNAVAILABLE = 503
_REFUSED = 400
_columns = [c for c in CronJob.__table__.columns if c.name in ("id", "name", "target")]


class Refused(CairnError):
    """What the platform answered."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # each has that of the answer


class Acting:
    """Of one API process."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._engine: AsyncEngine = app.state.engine

    async def act(self, call: CronCall) -> bool:
        """Make the request of a run, under its Idempotency-Key: whether that started a workflow. What a command wrote
        is kept. Raises what the request was refused for."""
        async with self._engine.begin() as connection:
            await connection.execute(ENTER, {"project": str(call.project_id)})
            run = (await connection.execute(select(CronRun.__table__).where(CronRun.id == call.run_id))).one_or_none()
            job = (await connection.execute(select(*_columns).where(CronJob.id == call.job_id))).one_or_none()
        if job is None or run is None or run.state != RunState.RUNNING:
            return False
        if "exec" in job.target:
            await self._exec(call, job.target["exec"])
            return False
        if "workflow" not in job.target:  # another since the run began
            return False
        this: Any = run
        asked = call_of(job.target["workflow"], this)
        # What deletes is the same, however often it is said.
        headers = {} if asked.method == "DELETE" else {"Idempotency-Key": idempotency_key(this)}
        answer = await self._request(call.job_id, asked, headers)
        started = answer["meta"].get("workflow_id")
        await self._note(call, attempts=1, workflow_id=None if started is None else UUID(started))
        return started is not None

    async def _exec(self, call: CronCall, target: dict[str, Any]) -> None:
        instance = target.get("instance_id") or await self._named(call.job_id, target["name"])
        body = {"cmd": target["cmd"], "timeout": target["timeout"]}
        seconds = target["timeout"] + call.seconds
        asked = Call("POST", f"/v1/instances/{instance}/exec", body)
        data = (await self._request(call.job_id, asked, {}, seconds))["data"]
        output, more = kept((data["stdout"] + data["stderr"]).encode())
        code = data["exit_code"]
        error = None if code == 0 else {"code": "call_failed", "message": f"the command ended with {code}"}
        truncated = more or data["truncated"]
        await self._note(call, attempts=1, status_code=code, output=output, truncated=truncated, error=error)
        if error is not None:
            raise Refused(**error)

    async def _named(self, job_id: UUID, name: str) -> str:
        found = await self._request(job_id, Call("GET", f"/v1/instances?name={name}&limit=1", None), {})
        if not found["data"]:
            raise NotFound(f"there is no instance named '{name}'")
        return str(found["data"][0]["id"])

    async def _request(
        self, job_id: UUID, call: Call, headers: dict[str, str], seconds: float | None = 60.0
    ) -> dict[str, Any]:
        """The answer, whole. Raises Unavailable where it may be asked for again, Refused."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            # The application's own host: by which names others may call it is nothing to a call from within.
            await self._app({**scope, JOB: job_id, "app": self._app}, receive, send)

        transport = httpx.ASGITransport(app, client=("cron", 0))
        async with httpx.AsyncClient(transport=transport, base_url=self._base(), timeout=seconds) as client:
            answer = await client.request(call.method, call.path, json=call.body, headers=headers)
        told: dict[str, Any] = orjson.loads(answer.content)
        if answer.status_code < _REFUSED:
            return told
        error = told["error"]
        if answer.status_code == _UNAVAILABLE or error["code"] in _AGAIN:
            raise Unavailable(error["message"])
        raise Refused(error["code"], error["message"])

    def _base(self) -> str:
        allowed = self._app.state.settings.allowed_hosts
        return f"http://{allowed[0].removeprefix('*.') if allowed else 'localhost'}"

    async def _note(self, call: CronCall, **values: Any) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(ENTER, {"project": str(call.project_id)})
            await connection.execute(update(CronRun).where(CronRun.id == call.run_id).values(**values))
