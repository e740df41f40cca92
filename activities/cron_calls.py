"""What runs of cron jobs call: URLs, and the platform itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aiohttp
import orjson
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import transaction
from activities.secrets import Opened
from activities.shares import Shares
from drivers import outbound
from model.cron import LONGEST_WAIT, MOST_OUTPUT, CronCall, CronJob, CronRun, RunState, idempotency_key
from model.errors import CairnError, Forbidden, ProjectInactive, UrlRefused
from model.keyring import Keyring, KeyUnknown
from model.permissions import effective
from model.vault import SealedValue, SecretUse
from model.webhooks import signature

#: The queue of requests to URLs: a target that is slow keeps nothing else waiting.
CRON = "cron"
#: The queue of requests to the platform, which its APIs take up.
API = "api"
#: Requests of one project that a process makes at once, to URLs and to the platform; another waits so many seconds, and
#: takes no place meanwhile.
CALLS_OF_PROJECT, ACTS_OF_PROJECT, TURN_SECONDS = 20, 15, 2.0
CALL_ENOUGH = "the project's cron jobs call as much as they may at once"
#: Seconds before the first attempt but one; each wait is twice the one before.
FIRST_WAIT = 1.0
#: Not the caller's fault: the same request may succeed later.
_AGAIN = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_RIGHTS = text("SELECT * FROM rights_of_job(:job)")


class CallFailed(CairnError):
    """A cron job's target did not answer, or not with success."""

    code, status = "call_failed", 502


class CallAgain(CairnError):
    """The same, and it is tried again; details: ``retry_after_seconds``."""

    code, status, retryable = "call_again", 502, True


class Request(NamedTuple):
    """One attempt."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None
    timeout: float


class Answer(NamedTuple):
    """What came of it: status and the beginning of the body, or why there is none."""

    status: int | None
    error: str | None
    output: bytes = b""
    truncated: bool = False

    @property
    def may_be_tried_again(self) -> bool:
        return self.status is None or self.status in _AGAIN or self.status >= _SERVER_ERROR


class CronCalls:
    """Runs on a queue of its own, in the control worker."""

    def __init__(self, engine: Engine, keyring: Keyring | None, allow: outbound.Networks) -> None:
        self._engine = engine
        self._keyring = keyring
        self._allow = allow
        self._places = Shares(CALLS_OF_PROJECT, TURN_SECONDS, CALL_ENOUGH)

    @activity.defn(name="cron.request")
    async def request(self, call: CronCall) -> None:
        """Send the request of a run, at least once, under the same Idempotency-Key at every attempt.

        Raises CallFailed, Forbidden, ProjectInactive, SecretUnusable, UrlRefused; CallAgain, OthersFirst.
        """
        with self._places.one(call.project_id):
            request = await asyncio.to_thread(self._load, call)
            if request is None:
                return
            answer = await self._send(call, request)
            wait = await asyncio.to_thread(self._record, call, answer)
        if wait is not None:
            raise CallAgain(answer.error or "no answer", retry_after_seconds=wait)
        if answer.error is not None:
            raise CallFailed(answer.error)

    def _load(self, call: CronCall) -> Request | None:
        """None: it was answered well, or is not to be made any more."""
        with transaction(self._engine, call.project_id) as session:
            job, run = session.get(CronJob, call.job_id), session.get(CronRun, call.run_id)
            if job is None or run is None or run.state != RunState.RUNNING or "http" not in job.target:
                return None
            if run.attempts and run.error is None:
                return None
            target = job.target["http"]
            _check_may(session, job, target)
            body = _body(target["body"])

            def opened(value: Any) -> str:
                if isinstance(value, str):
                    return value
                if self._keyring is None:
                    raise KeyUnknown("this worker has no CAIRN_MASTER_KEYS: it cannot open secrets")
                return Opened(session, self._keyring, job.project_id).value(SecretUse.model_validate(value)).decode()

            headers = {name: opened(value) for name, value in target["headers"].items()}
            secret = opened(target["secret"]) if target["secret"] else self._own(session, job)
            return Request(
                target["method"],
                target["url"],
                _of_run(job, run, target["body"]) | headers | _signed(secret, body or b""),
                body,
                target["timeout"],
            )

    def _own(self, session: Session, job: CronJob) -> str:
        """What signs the requests of a job that names no secret for it. Raises KeyUnknown, EnvelopeBroken."""
        row = session.scalars(select(SealedValue).where(SealedValue.cron_job_id == job.id)).one()
        return Opened(session, self._keyring, job.project_id).sealed(row).decode()

    async def _send(self, call: CronCall, request: Request) -> Answer:
        timeout = aiohttp.ClientTimeout(total=request.timeout, connect=min(5.0, request.timeout))
        try:
            async with (
                outbound.session(self._allow, timeout=timeout, owner=call.project_id) as client,
                client.request(
                    request.method, request.url, data=request.body, headers=request.headers, allow_redirects=False
                ) as response,
            ):
                output, truncated = await _beginning(response)
                return Answer(response.status, _problem(response.status), output, truncated)
        except UrlRefused:
            raise
        except aiohttp.ClientResponseError:  # whose text repeats the URL, and what may be a signature in it
            return Answer(None, "what it answered is no HTTP")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            said = f"no answer within {request.timeout:g} s" if late else (str(error) or type(error).__name__)[:200]
            return Answer(None, said)

    def _record(self, call: CronCall, answer: Answer) -> float | None:
        """Write down what came of it; seconds until it is tried again, None: not."""
        with transaction(self._engine, call.project_id) as session:
            job, run = session.get(CronJob, call.job_id), session.get(CronRun, call.run_id, with_for_update=True)
            if job is None or run is None or run.state != RunState.RUNNING:
                return None
            run.attempts += 1
            run.status_code = answer.status
            run.output, run.truncated = _text(answer.output), answer.truncated
            run.error = None if answer.error is None else {"code": CallFailed.code, "message": answer.error}
            retries = job.target.get("http", {}).get("retries", 0)
            if answer.error is None or not answer.may_be_tried_again or run.attempts > retries:
                return None
            return min(FIRST_WAIT * 2.0 ** (run.attempts - 1), LONGEST_WAIT)


class CronActs:
    """What a run asks of the platform, as whoever said what its job does. Runs on the APIs' queue."""

    def __init__(self, act: Callable[[CronCall], Awaitable[bool]]) -> None:
        self._act = act
        self._places = Shares(ACTS_OF_PROJECT, TURN_SECONDS, CALL_ENOUGH)

    @activity.defn(name="cron.act")
    async def act(self, call: CronCall) -> bool:
        """Whether it started a workflow. Raises what the request was refused for; OthersFirst."""
        with self._places.one(call.project_id):
            return await self._act(call)


def kept(output: bytes) -> tuple[str, bool]:
    """What is stored of an output, and whether there was more."""
    return _text(output[:MOST_OUTPUT]), len(output) > MOST_OUTPUT


def _check_may(session: Session, job: CronJob, target: dict[str, Any]) -> None:
    """Whether its owner may still have it done. Raises Forbidden, ProjectInactive."""
    row = session.execute(_RIGHTS, {"job": job.id}).one_or_none()
    if row is None:
        raise Forbidden("nobody is left in whose name this cron job could act: change it, and it acts in yours")
    if not row.is_active:
        raise ProjectInactive("the project is deactivated: ask an administrator of the platform")
    names_secrets = isinstance(target["secret"], dict) or any(isinstance(v, dict) for v in target["headers"].values())
    has = effective(row.roles or [], row.permissions or [], is_admin=False, scopes=row.scopes)
    for permission in ("cron:write", *(["secrets:use"] if names_secrets else [])):
        if permission not in has:
            raise Forbidden(f"this needs the permission '{permission}', which {job.owner} does not have here any more")


def _text(output: bytes) -> str:
    """As PostgreSQL holds it: what is no text is shown as such."""
    return output.decode(errors="replace").replace("\x00", "\ufffd")


def _body(body: Any) -> bytes | None:
    return body.encode() if isinstance(body, str) else None if body is None else orjson.dumps(body)


def _of_run(job: CronJob, run: CronRun, body: Any) -> dict[str, str]:
    kind = {} if body is None else {"Content-Type": "text/plain" if isinstance(body, str) else "application/json"}
    return kind | {
        "User-Agent": "Cairn",
        "Idempotency-Key": idempotency_key(run),
        "X-Cairn-Job": str(job.id),
        "X-Cairn-Run": str(run.id),
        "X-Cairn-Scheduled-At": run.scheduled_at.astimezone(dt.UTC).isoformat(timespec="seconds"),
    }


def _signed(secret: str, body: bytes) -> dict[str, str]:
    now = int(time.time())
    return {"X-Cairn-Timestamp": str(now), "X-Cairn-Signature": signature(secret, now, body)}


def _problem(status: int) -> str | None:
    if 200 <= status < 300:  # noqa: PLR2004 - 2xx
        return None
    redirects = 300 <= status < 400  # noqa: PLR2004 - 3xx
    return "it redirects, which is not followed" if redirects else f"it answered {status}"


async def _beginning(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """The first bytes of a body; the connection is closed then."""
    found = bytearray()
    async for part in response.content.iter_any():
        found += part
        if len(found) > MOST_OUTPUT:
            break
    return bytes(found[:MOST_OUTPUT]), len(found) > MOST_OUTPUT
