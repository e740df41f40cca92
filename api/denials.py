"""Attempts that were denied, on their way into the audit log.

They are written beside the requests, within a second, in transactions of their own. Who is denied the same thing
again and again, as an agent that was removed is, or who tries everything, gets one row more a minute, which says how
often: so denials cannot fill the disk, nor keep those from the database who may use it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import HTTPConnection

from api.audit_rows import INSERT, Record
from api.authentication import KEY_SUBPROTOCOL
from api.caller import ENTER, Who
from model.audit import NOWHERE
from model.base import new_id
from model.errors import CairnError, Forbidden, NotFound, ProjectInactive, Unauthenticated

#: Rows in each window that tell of one attempt: of one caller or address, and of all strangers, or all others.
WINDOW_SECONDS = 60.0
OF_ONE, OF_ALL = 20, 200
#: Callers and addresses that are told apart in a window, when they are only counted.
TOLD_APART = 100
WRITE_SECONDS = 0.5
#: Rows that wait for a database that is away.
WAITING = 1000
UNKNOWN = "unknown"
log = structlog.get_logger()


class Counted(NamedTuple):
    """What the row says that counts: whose attempts; of many callers and addresses, nobody's."""

    project_id: UUID
    actor: str
    address: str | None


class Denials:
    """Of one API process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._rows: list[dict[str, Any]] = []
        self._seen: set[tuple[Any, ...]] = set()
        self._told: Counter[Counted] = Counter()
        self._more: Counter[Counted] = Counter()
        self._until = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """A row of the audit log, of an attempt that was denied: kept, or only counted."""
        if time.monotonic() >= self._until:
            self._end_window()
        same = tuple(row[name] for name in ("project_id", "actor", "address", "operation", "resource_id", "code"))
        source = Counted(row["project_id"], row["actor"], row["address"])
        # Strangers, of whom there may be any number, do not keep those out of the log who are somebody.
        stranger = source.actor == UNKNOWN
        told = sum(count for other, count in self._told.items() if (other.actor == UNKNOWN) == stranger)
        if same in self._seen or self._told[source] >= OF_ONE or told >= OF_ALL:
            apart = sum((other.actor == UNKNOWN) == stranger for other in self._more)
            known = source in self._more or apart < TOLD_APART
            self._more[source if known else Counted(NOWHERE, UNKNOWN, None)] += 1
            return
        self._seen.add(same)
        self._told[source] += 1
        self._rows.append(row)

    def _end_window(self) -> None:
        for source, count in self._more.items():
            self._rows.append(_counting(source, count))
        self._seen.clear()
        self._told.clear()
        self._more.clear()
        self._until = time.monotonic() + WINDOW_SECONDS

    async def run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            if self._more and time.monotonic() >= self._until:
                self._end_window()
            if self._rows:
                await self.write(ending=False)

    async def write(self, *, ending: bool = True) -> None:
        """Write what waits; where the API ends, with what was only counted."""
        if ending:
            self._end_window()
        rows, self._rows = self._rows, []
        try:
            # Rows of one project each: in another nothing can be written.
            for project_id in {row["project_id"] for row in rows}:
                own = [row for row in rows if row["project_id"] == project_id]
                async with self._engine.begin() as connection:
                    await connection.execute(ENTER, {"project": "" if project_id == NOWHERE else str(project_id)})
                    await connection.execute(INSERT, own)
                rows = [row for row in rows if row["project_id"] != project_id]
        except DataError as error:
            # What no database takes would keep all that comes behind it waiting for ever.
            self._rows = [row for row in rows if row["project_id"] != project_id] + self._rows
            log.error("audit.denials_lost", count=len(own), error=str(error).partition("\n")[0])
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            self._rows = (rows + self._rows)[:WAITING]
            log.warning("audit.denials_wait", count=len(self._rows), error=str(error).partition("\n")[0])


def note(connection: HTTPConnection, error: CairnError) -> None:
    """Keep a denial for the audit log; any other error is none of it."""
    who: Who | None = getattr(connection.state, "who", None)
    if isinstance(error, Unauthenticated):
        who = None
        if not _showed_something(connection):
            return
    elif isinstance(error, NotFound):
        # Of another project's things nothing is known here; of a project itself, that it is not the caller's.
        if who is None or who.project_id != NOWHERE or who.credential.project is None:
            return
    elif not isinstance(error, Forbidden | ProjectInactive):
        return
    asked: tuple[str, ...] = getattr(connection.state, "asked", ())
    record = Record(connection, error.details.get("permission") or (asked[0] if asked else ""))
    if isinstance(error, NotFound) and who is not None:
        record.changed("project", who.credential.project)
    denied: dict[str, Any] = {"outcome": "denied", "code": error.code, "status": error.status}
    if who is None:
        row = record.row(NOWHERE, UNKNOWN, **denied)
    else:
        row = record.row(who.project_id, who.actor, who.user_id, who.service_account_id, who.key_id, **denied)
    denials: Denials = connection.app.state.denials
    denials.add(row)


def _showed_something(connection: HTTPConnection) -> bool:
    """A key, a token or a password, that opened nothing. Nothing of it is kept: it may be one of something else."""
    headers = connection.headers
    return (
        "x-api-key" in headers
        or "authorization" in headers
        or connection.url.path.startswith("/v1/auth/")
        or any(word.startswith(KEY_SUBPROTOCOL) for word in connection.scope.get("subprotocols", ()))
    )


def _counting(source: Counted, count: int) -> dict[str, Any]:
    return {
        "project_id": source.project_id,
        "id": new_id(),
        "actor": source.actor,
        "user_id": None,
        "service_account_id": None,
        "key_id": None,
        "action": "",
        "operation": "",
        "outcome": "denied",
        "code": "repeated",
        "status": None,
        "resource_type": None,
        "resource_id": None,
        "before": None,
        "after": {"more": count, "seconds": WINDOW_SECONDS},
        "address": source.address,
        "agent": None,
        "request_id": "",
        "workflow_id": None,
    }
