"""Who calls, and the one transaction of the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Executable, Row, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.audit_rows import INSERT, INSERT_WITH_EVENT, Record
from model.audit import NOWHERE
from model.errors import (
    Forbidden,
    NotFound,
    ProjectInactive,
)
from model.permissions import effective

# One statement: who is it, in which project, what may it do there; and from here on row-level security shows what is
# this project's and this user's only.
_IDENTIFY = """
    SELECT i.*, set_config('cairn.project', coalesce(i.project_id::text, ''), true),
        set_config('cairn.user', coalesce(i.user_id::text, ''), true),
        EXISTS (SELECT FROM restores WHERE finished_at IS NULL) AS restored
    FROM {} i
    """
IDENTIFY = text(_IDENTIFY.format("identify(:digest, :session, :project)"))
#: The same, of a cron job, which acts as whoever said what it does.
IDENTIFY_JOB = text(_IDENTIFY.format("identify_job(:job)"))
ENTER = text("SELECT set_config('cairn.project', :project, true)")
_ENTER_AS = text(
    "SELECT set_config('cairn.project', :project, true), set_config('cairn.user', :user, true),"
    " set_config('cairn.platform', :platform, true)"
)
_ON_PLATFORM = text("SELECT set_config('cairn.platform', 'on', true)")


class Credential(NamedTuple):
    """What a caller showed of itself: the digest of a key, or the session of an access token; and which project it
    asked for. Or which cron job it is, of which no request can speak that comes from outside."""

    digest: bytes | None
    session: UUID | None
    project: UUID | None
    job: UUID | None = None

    def identify(self) -> tuple[Executable, dict[str, Any]]:
        """The statement, and its parameters."""
        if self.job is not None:
            return IDENTIFY_JOB, {"job": self.job}
        return IDENTIFY, {"digest": self.digest, "session": self.session, "project": self.project}


class Who(NamedTuple):
    """Somebody who was identified, in one project. Of a user who has none, ``project_id`` is the nil UUID."""

    credential: Credential
    project_id: UUID
    permissions: frozenset[str]
    #: As workflows and the audit log show it: ``key:laptop``, ``user:jo@example.org``, ``cron:nightly``.
    actor: str
    user_id: UUID | None
    service_account_id: UUID | None
    key_id: UUID | None

    def require(self, permission: str) -> None:
        """Raises Forbidden."""
        if permission not in self.permissions:
            raise Forbidden(
                f"this needs the permission '{permission}', which {self.actor} does not have here",
                permission=permission,
            )


def who_is(credential: Credential, row: Row[Any]) -> Who:
    """What ``identify`` says."""
    named = row.key_name and f"{'key' if credential.job is None else 'cron'}:{row.key_name}"
    return Who(
        credential,
        row.project_id or NOWHERE,
        effective(row.roles or [], row.permissions or [], is_admin=row.is_admin, scopes=row.scopes),
        named or f"user:{row.email}",
        row.user_id,
        row.service_account_id,
        row.key_id,
    )


class Caller:
    """An authenticated request: who it is, and its open transaction."""

    def __init__(
        self, engine: AsyncEngine, connection: AsyncConnection, who: Who, record: Record, *, platform: bool = False
    ) -> None:
        self._engine = engine
        self._connection = connection
        self.who = who
        self.record = record
        self._platform = platform
        self.project_id = who.project_id
        self.actor = who.actor

    def require(self, permission: str) -> None:
        """Raises Forbidden."""
        self.who.require(permission)

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return await self._connection.execute(statement, parameters)

    @property
    def connection(self) -> AsyncConnection:
        return self._connection

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
        """For the audit log: what this request changes. Secrets are left out by their names and looks, no others.

        ``project``: where the row belongs, if neither to the caller's project nor to the platform.
        """
        self.record.changed(resource_type, resource_id, before, after, workflow_id=workflow_id, project=project)

    async def audit(self, event: dict[str, Any] | None = None) -> None:
        """Write the request into the audit log, once, with its event where it has one. ``commit`` does it by itself."""
        who = self.who
        self.record.written = True
        row = self.record.row(self.project_id, who.actor, who.user_id, who.service_account_id, who.key_id)
        if event is None:
            await self._connection.execute(INSERT, row)
        else:
            named = {f"event_{name}": value for name, value in event.items()}
            await self._connection.execute(INSERT_WITH_EVENT, row | named)

    async def commit(self) -> None:
        """End the transaction and give the connection back: nothing may wait while holding one.

        What changes something is in the audit log then.
        """
        if self.record.wanted and not self.record.written:
            await self.audit()
        await self.release()

    async def release(self) -> None:
        """The same, where nothing was changed yet."""
        await self._connection.commit()
        await self._connection.close()

    async def into(self, project_id: UUID) -> Caller:
        """The same caller in another project, from here on in the same transaction. Raises NotFound where it is not
        theirs: of a key, any but its own."""
        if project_id == NOWHERE:  # which is where somebody without a project is
            raise NotFound("there is no such project")
        if project_id == self.project_id:
            return self._as(self.who)
        credential = self.who.credential._replace(project=project_id)
        row = (await self.execute(*credential.identify())).one_or_none()
        if row is None or row.project_id is None:
            raise NotFound("there is no such project")
        if not row.is_active:
            raise ProjectInactive("the project is deactivated: ask an administrator of the platform")
        return self._as(who_is(credential, row))

    def on(self, connection: AsyncConnection) -> Caller:
        """The same caller, in another of its transactions."""
        return Caller(self._engine, connection, self.who, self.record, platform=self._platform)

    async def enter_platform(self) -> None:
        """From here on what belongs to the platform is seen too. Who may, was asked before."""
        self._platform = True
        await self.execute(_ON_PLATFORM)

    async def within(self, project_id: UUID) -> Caller:
        """The same transaction, which from here on reads and writes rows of this project. Who calls it knows that the
        caller may."""
        await self._connection.execute(ENTER, {"project": str(project_id)})
        return self._as(self.who._replace(project_id=project_id))

    def _as(self, who: Who) -> Caller:
        """What the request changes from here on is in this project's audit log."""
        self.record.enter(who.project_id)
        return Caller(self._engine, self._connection, who, self.record, platform=self._platform)

    async def on_platform(self) -> None:
        """From here on the transaction sees all projects. Raises Forbidden."""
        self.require("projects:manage")
        await self.enter_platform()

    def _entered(self) -> dict[str, str]:
        return {
            "project": "" if self.project_id == NOWHERE else str(self.project_id),
            "user": str(self.who.user_id or ""),
            "platform": "on" if self._platform else "",
        }

    @asynccontextmanager
    async def again(self) -> AsyncIterator[AsyncConnection]:
        """A later, short transaction of the same caller, after ``commit``."""
        async with self._engine.begin() as connection:
            await connection.execute(_ENTER_AS, self._entered())
            yield connection

    @asynccontextmanager
    async def reopened(self) -> AsyncIterator[Caller]:
        """The same caller in another transaction, which an acceptance ends; what nothing ends is rolled back."""
        connection = self._engine.connect()
        await connection.start()
        try:
            await connection.execute(_ENTER_AS, self._entered())
            yield self.on(connection)
        finally:
            await connection.close()
