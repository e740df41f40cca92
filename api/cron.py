"""``/v1/cron/jobs``: what runs when, in whose name."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import ARRAY, Row, String, delete, func, insert, or_, select, text, update

from api import user_urls, vault
from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.cron_schemas import CronView, CronWrite, NamedSecret
from api.cron_targets import checked, naming, shown
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.paging import OfName, Paging, page_of
from api.resources import unique_name
from model import cron_times
from model.base import new_id
from model.cron import MOST_JOBS, CronJob
from model.errors import NotFound, QuotaExceeded
from model.secrets import new_webhook_secret
from model.vault import SealedValue

router = APIRouter(prefix="/v1/cron/jobs", tags=["cron"], responses=RESPONSES)

#: All but what only the workers need.
shown_columns = [c for c in CronJob.__table__.columns if c.name not in ("in_hand_until", "good_until")]
#: Whoever tells Temporal of it looks at once.
CALL = text("SELECT pg_notify('cairn', 'cron')")
#: One project's jobs are counted and added to by one request at a time.
_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended('cron_jobs ' || :project, 0))")
#: What the key may that speaks now; the job may no more.
_SCOPES = text("SELECT scopes FROM api_keys WHERE id = :key").columns(scopes=ARRAY(String))


@router.post("", status_code=201, responses=also(429), response_model=Envelope[CronView])
async def create(request: Request, caller: Annotated[Caller, may("cron:write")], body: CronWrite) -> Response:
    """Run something at certain times, in the caller's name. What it does needs that permission too.

    422 `url_refused` where a URL leads to no public address.
    """
    url = body.target.http.url if body.target.http else None
    async with user_urls.looked_up(request, caller, url) as again:
        job_id = new_id()
        acceptance = Acceptance(request, again)
        asked = [body.model_dump(mode="json", exclude_unset=True)]
        if body.target.http is not None and isinstance(body.target.http.secret, str):
            asked = vault.fingerprinted(vault.keyring(request), again, asked[0], "target.http.secret")
        if answered := await acceptance.answered_before(job_id, *asked):
            return _answer(request, await find(again, answered.resource_id), 201)
        await again.execute(_ALONE, {"project": str(again.project_id)})
        mine = select(func.count()).select_from(CronJob).where(*_live(again))
        if (await again.execute(mine)).scalar_one() >= MOST_JOBS:
            raise QuotaExceeded(f"a project has at most {MOST_JOBS} cron jobs", cron_jobs=MOST_JOBS)
        values, secret = await _values(again, body), _secret(body, anew=True)
        made = insert(CronJob).values(id=job_id, project_id=again.project_id, **values)
        row = await _write(again, body.name, made.returning(*shown_columns))
        if secret is not None:
            await vault.keep(again, vault.keyring(request), secret, cron_job_id=job_id)
        await _record(acceptance, again, row, "created", after=_told(row))
        given = body.target.http is not None and body.target.http.secret is not None
        return _answer(request, row, 201, {} if given or secret is None else {"secret": secret})


@router.get("", response_model=Envelope[list[CronView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("cron:read")],
    page: Paging,
    name: OfName = None,
    label: Annotated[str | None, Query(max_length=320, pattern=r"^[^=\x00]+=[^\x00]*$")] = None,
    paused: bool | None = None,
    resource_id: UUID | None = None,
) -> Response:
    """The project's cron jobs, newest first; `?resource_id=`: those that name this instance, image, group or
    deployment."""
    query = select(*shown_columns).where(*_live(caller))
    if name is not None:
        query = query.where(CronJob.name == name)
    if label is not None:
        key, _, value = label.partition("=")
        query = query.where(CronJob.labels.contains({key: value}))
    if paused is not None:
        query = query.where(CronJob.paused == paused)
    if resource_id is not None:
        query = query.where(or_(*(CronJob.target.contains(one) for one in naming(resource_id))))
    return await page_of(request, caller, query, CronJob.__table__.c.id, page, view)


@router.get("/{job_id}", response_model=Envelope[CronView])
async def show(request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:read")]) -> Response:
    """One cron job, with its next 10 times."""
    return _answer(request, await find(caller, job_id))


@router.put("/{job_id}", response_model=Envelope[CronView])
async def put(
    request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:write")], body: CronWrite
) -> Response:
    """Make it what is said here, from now on in the caller's name. What signs its requests stays, where nothing else
    is said; runs that have begun go on as they were."""
    url = body.target.http.url if body.target.http else None
    async with user_urls.looked_up(request, caller, url) as again:
        before = await find(again, job_id, lock=True)
        check_if_match(request, before.version)
        values: dict[str, Any] = await _values(again, body)
        anew = "http" not in before.target or bool(before.target["http"]["secret"])
        secret = _secret(body, anew=anew)
        if secret is not None:
            await vault.keep(again, vault.keyring(request), secret, cron_job_id=job_id)
        elif not _signs_itself(body):
            await again.execute(delete(SealedValue).where(SealedValue.cron_job_id == job_id))
        row = await _change(again, body.name, job_id, **values)
        await _record(Acceptance(request, again), again, row, "updated", before=_told(before), after=_told(row))
        made = secret is not None and body.target.http is not None and body.target.http.secret is None
        return _answer(request, row, more={"secret": secret} if made else {})


@router.delete("/{job_id}", status_code=204)
async def remove(request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:write")]) -> Response:
    """Forget a cron job and its runs. One that is under way at this moment goes on."""
    row = await find(caller, job_id, lock=True)
    check_if_match(request, row.version)
    await _change(caller, row.name, job_id, deleted_at=func.now())
    await _record(Acceptance(request, caller), caller, row, "deleted", before=_told(row))
    return Response(status_code=204)


@router.post("/{job_id}/pause", response_model=Envelope[CronView])
async def pause(
    request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:write")], body: Nothing | None = None
) -> Response:
    """Begin no more runs by the schedule, until it is resumed."""
    return await _pause(request, caller, job_id, True)


@router.post("/{job_id}/resume", response_model=Envelope[CronView])
async def resume(
    request: Request, job_id: UUID, caller: Annotated[Caller, may("cron:write")], body: Nothing | None = None
) -> Response:
    """Go on with the times that come. Those that passed meanwhile are made up for by a back-fill alone."""
    return await _pause(request, caller, job_id, False)


async def find(caller: Caller, job_id: UUID, *, lock: bool = False) -> Row[Any]:
    """Raises NotFound."""
    query = select(*shown_columns).where(*_live(caller), CronJob.id == job_id)
    row = (await caller.execute(query.with_for_update(of=CronJob) if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no cron job {job_id}")
    return row


def view(row: Row[Any]) -> dict[str, Any]:
    """A row as it is shown."""
    same = ("id", "project_id", "name", "schedule", "time_zone", "overlap", "paused", "labels", "owner", "version")
    now = dt.datetime.now(dt.UTC)
    return {
        **{name: getattr(row, name) for name in (*same, "created_at", "updated_at")},
        "target": shown(row.target),
        "catchup_window_seconds": row.catchup_seconds,
        "next_runs": [] if row.paused else cron_times.next_runs(row.schedule, row.time_zone, now),
        "applied": row.applied_version == row.version,
    }


async def _pause(request: Request, caller: Caller, job_id: UUID, paused: bool) -> Response:
    row = await find(caller, job_id, lock=True)
    check_if_match(request, row.version)
    if row.paused != paused:
        before, row = row, await _change(caller, row.name, job_id, paused=paused)
        what = "paused" if paused else "resumed"
        await _record(Acceptance(request, caller), caller, row, what, before=_told(before), after=_told(row))
    return _answer(request, row)


async def _values(caller: Caller, body: CronWrite) -> dict[str, Any]:
    """Columns, with whose name it acts in. Raises Forbidden, ValidationFailed."""
    who = caller.who
    scopes = None
    if who.key_id is not None:
        scopes = (await caller.execute(_SCOPES, {"key": who.key_id})).scalar_one_or_none()
    return {
        **body.model_dump(include={"name", "schedule", "time_zone", "overlap", "paused", "labels"}),
        "target": await checked(caller, body.target),
        "catchup_seconds": body.catchup_window_seconds,
        "user_id": who.user_id,
        "service_account_id": who.service_account_id,
        "scopes": scopes,
        "owner": who.actor,
    }


def _signs_itself(body: CronWrite) -> bool:
    """Whether what signs its requests is the job's own, and no secret of the project."""
    return body.target.http is not None and not isinstance(body.target.http.secret, NamedSecret)


def _secret(body: CronWrite, *, anew: bool) -> str | None:
    """What is to sign its requests: what is given, else (``anew``) a new one."""
    http = body.target.http
    if http is None or isinstance(http.secret, NamedSecret):
        return None
    return http.secret or (new_webhook_secret() if anew else None)


async def _change(caller: Caller, called: str, job_id: UUID, **values: Any) -> Row[Any]:
    values |= {"version": CronJob.version + 1, "updated_at": func.now()}
    changing = update(CronJob).where(CronJob.id == job_id).values(**values).returning(*shown_columns)
    return await _write(caller, called, changing)


async def _write(caller: Caller, name: str, statement: Any) -> Row[Any]:
    with unique_name("a cron job", name):
        return (await caller.execute(statement)).one()


async def _record(
    acceptance: Acceptance,
    caller: Caller,
    row: Row[Any],
    what: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    await acceptance.record(f"cron_job.{what}", "cron_job", row.id, None, {"name": row.name})
    caller.changed("cron_job", row.id, before, after)
    await caller.execute(CALL)


def _live(caller: Caller) -> list[Any]:
    return [CronJob.project_id == caller.project_id, CronJob.deleted_at.is_(None)]


def _told(row: Row[Any]) -> dict[str, Any]:
    """What the audit log shows of it. Of what a target is given, what can hold secrets is left out."""
    ((kind, target),) = row.target.items()
    what = {name: target[name] for name in ("url", "method", "instance_id", "name", "resource_id") if name in target}
    if target.get("kind") == "ScaleGroup":  # numbers
        what |= {"parameters": target["parameters"]}
    does = {"target": f"{kind} {target['kind']}" if kind == "workflow" else kind, **what, "owner": row.owner}
    return {name: getattr(row, name) for name in ("name", "schedule", "time_zone", "overlap", "paused")} | {
        "does": does
    }


def _answer(request: Request, row: Row[Any], status: int = 200, more: dict[str, Any] | None = None) -> Response:
    return answer(request, view(row) | (more or {}), status, headers={"ETag": etag(row.version)})
