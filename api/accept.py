"""Accepting: one transaction that writes what is wanted, then the commit, then the answer.

A handler opens an ``Acceptance``, asks it whether the same request was answered before, writes its
resource, and ends with ``answer``: the workflow's row and event, the commit, the hand-over to the
dispatcher, and, with ``Prefer: wait``, the wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog
from fastapi import Request, Response
from sqlalchemy import Row, bindparam, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from api.authentication import idempotency_key
from api.bells import Bells, wait_for
from api.caller import Caller
from api.dispatcher import Dispatcher
from api.envelope import answer
from model import metrics, tracing
from model.base import new_id
from model.errors import IdempotencyMismatch, PreconditionFailed, Unavailable, WorkflowFailed
from model.workflows import TERMINAL, Event, IdempotencyKey, Order, State, Workflow

_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)\"?(?:$|[,;\s])", re.IGNORECASE)
MAX_WAIT = 60
KEY_LIFE = text("interval '24 hours'")
log = structlog.get_logger()

# Statements are built once: on this path building them costs more than running them.
_INSERT_WORKFLOW = insert(Workflow.__table__)  # type: ignore[arg-type]  # a Table, typed as FromClause
_INSERT_EVENT = insert(Event.__table__)  # type: ignore[arg-type]
_held = upsert(IdempotencyKey.__table__)  # type: ignore[arg-type]
_HOLD_KEY = _held.on_conflict_do_update(
    index_elements=["project_id", "key"],
    set_={name: _held.excluded[name] for name in ("fingerprint", "resource_id", "workflow_id")}
    | {"created_at": func.now()},
    where=IdempotencyKey.created_at < func.now() - KEY_LIFE,
).returning(IdempotencyKey.key)
_HELD_KEY = select(IdempotencyKey.__table__).where(
    IdempotencyKey.project_id == bindparam("project_id"), IdempotencyKey.key == bindparam("key")
)

#: The current view of a resource, read in the caller's project.
Show = Callable[[Caller, UUID], Awaitable[dict[str, Any]]]


class Answered(NamedTuple):
    """What an earlier request with the same Idempotency-Key was answered."""

    resource_id: UUID
    workflow_id: UUID


class Acceptance:
    """One mutating request on its way to 202."""

    def __init__(self, request: Request, caller: Caller, *, created: bool = False) -> None:
        self._request = request
        self._caller = caller
        self._created = created
        self.workflow_id = new_id()
        self._cancels: list[UUID] = []
        self._ended: list[Row[Any]] = []
        self._order: Order | None = None
        self._then: list[Callable[[], None]] = []

    async def answered_before(self, resource_id: UUID, body: Any, *also: Any) -> Answered | None:
        """Hold the request's Idempotency-Key; the earlier answer, where it was held before, for this body or one of
        ``also``.

        Of many at once with one key, the first holds it and the others wait here for its commit.
        Raises IdempotencyMismatch where the key came with another request.
        """
        key = idempotency_key(self._request)
        if key is None:
            return None
        fingerprint, *others = (self._fingerprint(each) for each in (body, *also))
        held = await self._caller.execute(
            _HOLD_KEY,
            {
                "project_id": self._caller.project_id,
                "key": key,
                "fingerprint": fingerprint,
                "resource_id": resource_id,
                "workflow_id": self.workflow_id,
            },
        )
        if held.one_or_none() is not None:
            return None
        earlier = (await self._caller.execute(_HELD_KEY, {"project_id": self._caller.project_id, "key": key})).one()
        if earlier.fingerprint not in (fingerprint, *others):
            raise IdempotencyMismatch("this Idempotency-Key was used for another request; take a new one")
        return Answered(earlier.resource_id, earlier.workflow_id)

    def _fingerprint(self, body: Any) -> bytes:
        asked = [self._request.method, self._request.url.path, body]
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).digest()

    def cancels(self, workflow_id: UUID) -> None:
        """A running workflow whose row this transaction asks to cancel."""
        self._cancels.append(workflow_id)

    def then(self, do: Callable[[], None]) -> None:
        """Do this as soon as it is accepted; it neither blocks nor fails."""
        self._then.append(do)

    async def write(
        self,
        order: Order,
        event: str,
        data: dict[str, Any],
        prior_status: str | None = None,
        retry_of: UUID | None = None,
    ) -> None:
        """Write the workflow's row and its event."""
        self._order = order = order.model_copy(update={"traceparent": tracing.traceparent()})
        await self._caller.execute(_INSERT_WORKFLOW, self._row(order, prior_status=prior_status, retry_of=retry_of))
        told = {"name": data.get("name", order.name)}
        self._caller.changed(
            order.resource_type,
            order.resource_id,
            told | {"status": data["from"]} if data.get("from") else None,
            told | {"status": data["to"]} if "to" in data else told,
            workflow_id=order.workflow_id,
        )
        row = self._event(event, order.resource_type, order.resource_id, order.workflow_id, data)
        await self._caller.audit(row)

    async def write_child(self, child: Order, parent: Order) -> None:
        """Write the row of a run that ``parent``'s begins. Events and the audit log tell of the parent."""
        await self._caller.execute(_INSERT_WORKFLOW, self._row(child, parent_id=parent.workflow_id))

    def _row(self, order: Order, **more: Any) -> dict[str, Any]:
        return {
            "id": order.workflow_id,
            "project_id": order.project_id,
            "kind": order.kind,
            "resource_type": order.resource_type,
            "resource_id": order.resource_id,
            "actor": self._caller.actor,
            "order": order.written(),
            **more,
        }

    async def ended(self, workflow: Row[Any]) -> None:
        """Write the event of another workflow that this transaction ended before it had started."""
        data = {"kind": workflow.kind, "error": workflow.error}
        await self.record(f"workflow.{workflow.state}", workflow.resource_type, workflow.resource_id, workflow.id, data)
        self._ended.append(workflow)

    async def record(
        self, event: str, resource_type: str, resource_id: UUID, workflow_id: UUID | None, data: dict[str, Any]
    ) -> None:
        """Write an event of this transaction."""
        row = self._event(event, resource_type, resource_id, workflow_id, data)
        await self._caller.execute(_INSERT_EVENT, row)

    def _event(
        self, event: str, resource_type: str, resource_id: UUID, workflow_id: UUID | None, data: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "project_id": self._caller.project_id,
            "type": event,
            "resource_type": resource_type,
            "resource_id": resource_id,
            "workflow_id": workflow_id,
            "data": data,
        }

    async def answer(
        self, show: Show, answered: Answered | None = None, view: dict[str, Any] | None = None
    ) -> Response:
        """Commit, hand over, and answer: 202, or what ``Prefer: wait`` makes of it.

        ``view``: the resource as it was just written, where the handler has it already.

        From the commit on the request is accepted: nothing here turns it into an error of ours.
        """
        if self._order is not None:
            answered = Answered(self._order.resource_id, self._order.workflow_id)
        if answered is None:
            raise RuntimeError("an acceptance ends with an order, or with what was answered before")
        if view is None:
            view = await show(self._caller, answered.resource_id)
        await self._commit()
        self._hand_over(answered.workflow_id)
        status = 202
        seconds = wait_seconds(self._request)
        if seconds:
            try:
                row = await wait_for_end(self._request, self._caller, answered.workflow_id, seconds)
                if row is not None and row.state in TERMINAL:
                    view = await self._show_again(show, answered.resource_id)
                    if row.state != State.COMPLETED:
                        error = row.error or {"code": row.state, "message": f"the workflow was {row.state}"}
                        raise WorkflowFailed(
                            f"{row.kind} {row.state}: {error['message']}",
                            workflow_id=str(row.id),
                            error=error,
                            resource=view,
                        )
                    status = 201 if self._created else 200
            except (SQLAlchemyError, OSError, TimeoutError):
                log.info("accept.wait_lost", workflow_id=str(answered.workflow_id))
        headers = {"Location": f"/v1/workflows/{answered.workflow_id}"}
        if "version" in view:
            headers["ETag"] = etag(view["version"])
        if seconds:
            headers["Preference-Applied"] = f"wait={seconds}"
        return answer(self._request, view, status, headers=headers, workflow_id=str(answered.workflow_id))

    def _hand_over(self, workflow_id: UUID) -> None:
        state = self._request.app.state
        for do in self._then:
            do()
        dispatcher: Dispatcher = state.dispatcher
        if self._order is not None:
            dispatcher.start(self._order)
        for cancelled in self._cancels:
            dispatcher.cancel(cancelled)
        bells: Bells = state.bells
        for ended in (workflow_id, *(row.id for row in self._ended)):
            bells.ring(str(ended))
        self._count()

    def _count(self) -> None:
        if self._order is not None:
            metrics.ACCEPTED.labels(self._order.kind).inc()
        for ended in self._ended:
            metrics.ended(ended.kind, ended.state, ended.created_at, ended.finished_at)

    async def _show_again(self, show: Show, resource_id: UUID) -> dict[str, Any]:
        async with self._caller.again() as connection:
            return await show(self._caller.on(connection), resource_id)

    async def _commit(self) -> None:
        try:
            await self._caller.commit()
        except DBAPIError:
            # The answer to COMMIT was lost: the row tells whether it happened.
            await self._caller.connection.close()
            if self._order is None or not await self._was_committed(self._order.workflow_id):
                raise

    async def _was_committed(self, workflow_id: UUID) -> bool:
        for _ in range(10):
            try:
                async with self._caller.again() as connection:
                    found = await connection.execute(select(Workflow.id).where(Workflow.id == workflow_id))
                    return found.one_or_none() is not None
            except (SQLAlchemyError, OSError, TimeoutError):
                await asyncio.sleep(0.5)
        raise Unavailable("the database went away during the commit; repeat the request with an Idempotency-Key")


async def was_answered(request: Request, caller: Caller, resource_id: UUID) -> bool:
    """Whether a request about the resource was answered under this request's Idempotency-Key."""
    key = idempotency_key(request)
    if key is None:
        return False
    held = await caller.execute(_HELD_KEY, {"project_id": caller.project_id, "key": key})
    row = held.one_or_none()
    return row is not None and row.resource_id == resource_id


async def wait_for_end(request: Request, caller: Caller, workflow_id: UUID, seconds: float) -> Any:
    """The workflow's row, as soon as it is terminal, or as it is after ``seconds``, or when the API stops."""
    bells: Bells = request.app.state.bells
    stopping: asyncio.Event = request.app.state.stopping
    until = asyncio.get_running_loop().time() + seconds
    with bells.listening(str(workflow_id)) as bell:
        while True:
            async with caller.again() as connection:
                found = await connection.execute(select(Workflow.__table__).where(Workflow.id == workflow_id))
                row = found.one_or_none()
            left = until - asyncio.get_running_loop().time()
            if row is None or row.state in TERMINAL or left <= 0 or stopping.is_set():
                return row
            await wait_for(bell, min(1.0, left))


def wait_seconds(request: Request) -> int:
    """``Prefer: wait=N`` (RFC 7240), at most 60; 0 where it is not asked for."""
    found = _PREFER_WAIT.search(", ".join(request.headers.getlist("prefer")))
    return min(int(found[1][:9]), MAX_WAIT) if found else 0


def etag(version: int) -> str:
    return f'"{version}"'


def check_if_match(request: Request, version: int, *also: int) -> None:
    """Raises PreconditionFailed where ``If-Match`` names no version, or not the current one (nor one of ``also``)."""
    asked = request.headers.getlist("if-match")
    tags = {tag.strip() for tag in ", ".join(asked).split(",")}
    if asked and tags != {"*"} and tags.isdisjoint(etag(each) for each in (version, *also)):
        raise PreconditionFailed(f"the resource is at version {etag(version)} now", version=version)
