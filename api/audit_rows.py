"""What the audit log is told of a request, and the one statement that writes it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import HTTPConnection

from api.addresses import client_address
from api.http import route_of
from model.audit import NOWHERE, Outcome, chain_of
from model.base import new_id
from model.redaction import redacted

#: Of a row: what a client says of itself, an id, in characters; what was changed, in bytes of JSON. More is left out.
MOST_AGENT, MOST_ID, MOST_CHANGE = 256, 256, 16_384
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

_COLUMNS = (
    *("project_id", "id", "actor", "user_id", "service_account_id", "key_id", "action", "operation", "outcome"),
    *("code", "status", "resource_type", "resource_id", "before", "after", "address", "agent", "request_id"),
    "workflow_id",
)
_INTO = f"INSERT INTO audit ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"  # noqa: S608 - columns of ours
_JSON = [bindparam("before", type_=JSONB(none_as_null=True)), bindparam("after", type_=JSONB(none_as_null=True))]
INSERT = text(_INTO).bindparams(*_JSON)
#: With an event, in one way to the database and back: on the path of acceptances each costs.
INSERT_WITH_EVENT = text(
    f"""
    WITH event AS (
        INSERT INTO events (project_id, type, resource_type, resource_id, workflow_id, data)
        VALUES (:event_project_id, :event_type, :event_resource_type, :event_resource_id, :event_workflow_id,
            :event_data)
    )
    {_INTO}
    """  # noqa: S608 - columns of ours
).bindparams(*_JSON, bindparam("event_data", type_=JSONB))


class Record:
    """One request as the audit log shows it. Written once, however many transactions the request has."""

    def __init__(self, connection: HTTPConnection, action: str) -> None:
        self._connection = connection
        self.action = action
        #: Whether what is committed is written down: what only reads is not.
        self.wanted = connection.scope["type"] == "http" and connection.scope["method"] not in _READING
        self.written = False
        self._project: UUID | None = None
        self._resource: tuple[str, str] | None = None
        self._before: dict[str, Any] | None = None
        self._after: dict[str, Any] | None = None
        self._workflow_id: UUID | None = None

    def enter(self, project_id: UUID) -> None:
        """What the request changes is this project's, unless it is said otherwise."""
        self._project = project_id

    def changed(
        self,
        resource_type: str,
        resource_id: object,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        *,
        workflow_id: UUID | None = None,
        project: UUID | None = None,
    ) -> None:
        """What the request is about, and what it changes there. Said again, it adds to what was said."""
        self._resource = (resource_type, str(resource_id))
        self._before = _added(self._before, before)
        self._after = _added(self._after, after)
        self._workflow_id = workflow_id or self._workflow_id
        self._project = project or self._project

    def row(
        self,
        project_id: UUID,
        actor: str,
        user_id: UUID | None = None,
        service_account_id: UUID | None = None,
        key_id: UUID | None = None,
        *,
        outcome: Outcome = "allowed",
        code: str | None = None,
        status: int | None = None,
    ) -> dict[str, Any]:
        """The parameters of ``INSERT``."""
        request = self._connection
        resource_type, resource_id = self._resource or self._of_the_route()
        return {
            "project_id": self._project or chain_of(self.action, project_id),
            "id": new_id(),
            "actor": actor,
            "user_id": user_id,
            "service_account_id": service_account_id,
            "key_id": key_id,
            "action": self.action,
            "operation": operation_of(request),
            "outcome": outcome,
            "code": code,
            "status": status,
            "resource_type": resource_type,
            "resource_id": resource_id,
            "before": self._before,
            "after": self._after,
            "address": client_address(request) or None,
            "agent": request.headers.get("user-agent", "")[:MOST_AGENT] or None,
            "request_id": request.state.request_id,
            "workflow_id": self._workflow_id,
        }

    def _of_the_route(self) -> tuple[str | None, str | None]:
        """Where nobody said it: the noun of the permission, and the first id of the path.

        Of who is denied nothing in the path was looked at yet: the database takes no NUL, nor an index any length.
        """
        noun = self.action.partition(":")[0].removesuffix("s") or None
        asked = (str(value).replace("\x00", "\ufffd")[:MOST_ID] for value in self._connection.path_params.values())
        return noun, next(asked, None)


async def write(
    connection: AsyncConnection,
    request: HTTPConnection,
    action: str,
    actor: str,
    resource: tuple[str, object],
    after: dict[str, Any] | None = None,
    user_id: UUID | None = None,
) -> None:
    """For what has no ``Caller``: who registers, logs in, joins a host. In the transaction of what it tells of."""
    record = Record(request, action)
    record.changed(*resource, after=after)
    await connection.execute(INSERT, record.row(NOWHERE, actor, user_id))


def operation_of(request: HTTPConnection) -> str:
    """Method and route."""
    return f"{request.scope.get('method', 'WEBSOCKET')} {route_of(request.scope)}"


def _added(said: dict[str, Any] | None, more: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without secrets, and no more than is kept."""
    if more is None:
        return said
    found: dict[str, Any] = (said or {}) | redacted(more)
    size = len(orjson.dumps(found, default=str))
    return found if size <= MOST_CHANGE else {"left_out": f"{size} bytes"}
