"""Prompts on their way to agents of sessions, and what these say on its way back, in an API's process."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson
import structlog
from fastapi import FastAPI
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from activities.runs import RunEnded
from api.agent_client import BROKEN, Agents, Target
from api.caller import ENTER
from model.base import NUL
from model.chat import END, MOST_ANSWER, MOST_EVENT, MOST_EVENTS, Chunk, Message, MessageStatus, Role, Turn
from model.errors import AgentFailed, AgentUnavailable, HostUnreachable, InvalidState
from model.hosts import Host, is_reachable
from model.instances import Instance, Status
from model.sessions import WorkSession
from model.streams import Call

#: How long a program may take to listen after its sandbox was started, or after it ended.
START_SECONDS, AGAIN_SECONDS = 60.0, 0.5
#: What takes longer than this was an answer: what does not answer at all is given up sooner.
WORKED_SECONDS = 30.0
#: An agent that says nothing for so long, not even that it works, is asked again.
SILENCE_SECONDS = 60.0
#: Events that were read and not stored yet; more are left where they come from.
AHEAD = 256
OK, REFUSED, BROKEN_INSIDE = 200, 400, 500
DONE, ERROR = "done", "error"
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_WAKE = text("SELECT pg_notify('cairn', :session)")
_TARGET = (
    select(
        *(WorkSession.agent_port, WorkSession.name, Instance.id, Instance.status),
        *(Host.id.label("host_id"), Host.name.label("host"), Host.last_seen_at, Host.agent_url, Host.fingerprint),
    )
    .join(Instance, Instance.id == WorkSession.instance_id)
    .outerjoin(Host, Host.id == Instance.host_id)
)
log = structlog.get_logger()


class Event(NamedTuple):
    """What an agent said."""

    number: int
    kind: str
    data: dict[str, Any]
    size: int


class Kept(NamedTuple):
    """What is stored of an answer."""

    last: int
    bytes: int


class Delivery:
    """Of one API process."""

    def __init__(self, app: FastAPI) -> None:
        self._engine: AsyncEngine = app.state.engine
        self._agents: Agents = app.state.agents

    async def deliver(self, turn: Turn) -> None:
        """See ``activities.chats.ChatCalls``."""
        last, until = -1, 0.0
        while True:
            began = time.monotonic()
            async with self._engine.begin() as connection:
                await _enter(connection, turn)
                kept = await _kept(connection, turn)
                prompt = await _prompt(connection, turn)
                target, port = await _target(connection, turn)
            if kept.last > last:
                last, until = kept.last, began + START_SECONDS
            try:
                return await self._follow(turn, target, port, prompt, kept)
            except AgentUnavailable as error:
                if time.monotonic() - began > WORKED_SECONDS:  # it was there until a moment ago
                    until = time.monotonic() + START_SECONDS
                if time.monotonic() > until:
                    raise AgentFailed(
                        f"{error.message}, for {START_SECONDS:g} s: its program's output tells why "
                        f"(GET /v1/instances/{target.instance}/logs)"
                    ) from error
            await asyncio.sleep(AGAIN_SECONDS)

    async def cancel(self, turn: Turn) -> None:
        """See ``activities.chats.ChatCalls``."""
        try:
            async with self._engine.begin() as connection:
                await _enter(connection, turn)
                target, port = await _target(connection, turn)
            body = orjson.dumps({"id": str(turn.message_id)}).decode()
            opened = await self._agents.open(target, "call", {}, Call(port=port, path="/cancel", body=body))
            opened.close()
        except (InvalidState, AgentUnavailable):
            pass  # what does not run does not work on anything

    async def _follow(self, turn: Turn, target: Target, port: int, prompt: str, kept: Kept) -> None:
        """From behind what is kept to the end. Raises AgentUnavailable where it breaks off before."""
        headers = {"Idempotency-Key": str(turn.message_id), "Accept": "text/event-stream"}
        if kept.last:
            headers["Last-Event-ID"] = str(kept.last)
        body = orjson.dumps({"id": str(turn.message_id), "prompt": prompt}).decode()
        opened = await self._agents.open(target, "call", {}, Call(port=port, path="/chat", headers=headers, body=body))
        try:
            status = int(opened.it.headers.get("x-call-status", "0"))
            if status >= BROKEN_INSIDE:
                raise AgentUnavailable(f"the agent of session {target.name} answered {status}")
            if status != OK:
                said = (await opened.it.content.read(1000)).decode(errors="replace")
                raise AgentFailed(f"the agent refused the prompt ({status}): {said}")
            await self._store(turn, kept, events_of(_pieces(opened.it.content.iter_any())))
        except BROKEN as error:
            raise AgentUnavailable(f"the agent of session {target.name} broke off") from error
        finally:
            opened.close()

    async def _store(self, turn: Turn, kept: Kept, events: AsyncIterator[Event]) -> None:
        """Each event once, as they come: while some are stored, others are read, and no more than a few of these."""
        ahead: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(AHEAD)

        async def read() -> None:
            try:
                async with aclosing(events):  # type: ignore[type-var]  # it is a generator
                    async for event in events:
                        await ahead.put(event)
                await ahead.put(None)
            except Exception as error:  # told to whoever stores, behind what came before
                await ahead.put(error)

        reading = asyncio.create_task(read())
        try:
            while True:
                found = [await ahead.get()]
                while not ahead.empty():
                    found.append(ahead.get_nowait())
                news = [one for one in found if isinstance(one, Event)]
                last = next((one for one in news if one.kind in (DONE, ERROR)), None)
                kept = await self._append(turn, kept, news)
                if last is not None:
                    _check_end(last)
                    return
                for one in found:
                    if isinstance(one, BaseException):
                        raise one
                if None in found:
                    raise AgentUnavailable("the agent ended its answer without 'done' or 'error'")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _append(self, turn: Turn, kept: Kept, events: list[Event]) -> Kept:
        """Store what is new of it. Raises RunEnded, AgentFailed."""
        async with self._engine.begin() as connection:
            await _enter(connection, turn)
            # Another delivery of the same turn, which was taken for dead, may have stored some of it.
            kept = await _kept(connection, turn)
            rows = []
            for event in events:
                if event.number <= kept.last or event.kind in (DONE, ERROR):
                    continue
                if event.number != kept.last + 1:
                    raise AgentFailed(f"the agent's event {event.number} came where {kept.last + 1} was to come")
                kept = Kept(event.number, kept.bytes + event.size)
                if kept.bytes > MOST_ANSWER or kept.last > MOST_EVENTS:
                    raise AgentFailed(f"the answer has more than {MOST_ANSWER} bytes or {MOST_EVENTS} events")
                about = {"message_id": turn.message_id, "project_id": turn.order.project_id}
                rows.append({**about, "number": event.number, "kind": event.kind, "data": event.data})
            if rows:
                await connection.execute(insert(Chunk), rows)
                mine = (Message.project_id == turn.order.project_id) & (Message.id == turn.message_id)
                await connection.execute(update(Message).where(mine).values(bytes=kept.bytes))
                await connection.execute(_WAKE, {"session": str(turn.order.resource_id)})
            return kept


async def events_of(lines: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Server-sent events, of JSON objects, each with its number. Raises AgentFailed."""
    number, kind, data = 0, "", b""
    async for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id":
            number = int(value) if value.isdigit() and len(value) < 10 else 0  # noqa: PLR2004 - an int of PostgreSQL
        elif name == b"event":
            kind = value.decode(errors="replace")
        elif name == b"data":
            data += value
            if len(data) > MOST_EVENT:
                raise AgentFailed(f"an event of the agent has more than {MOST_EVENT} bytes")
        elif not line and data:
            yield Event(number, _checked(kind, number), _object(data), len(data))
            kind, data = "", b""


async def _pieces(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines. Raises AgentFailed where one is too long, TimeoutError where none comes for too long."""
    rest = b""
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            part = await anext(parts, None)
        if part is None:
            return
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > 2 * MOST_EVENT:
            raise AgentFailed(f"a line of the agent has more than {2 * MOST_EVENT} bytes")
        for line in whole:
            yield line.removesuffix(b"\r")


def _checked(kind: str, number: int) -> str:
    if not _KIND.fullmatch(kind) or kind in (END, "prompt") or not number:
        raise AgentFailed(f"an event of the agent is called {kind[:40]!r}, with the id {number}: see docs/agents.md")
    return kind


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict) or NUL.search(data):
        raise AgentFailed("an event of the agent has no JSON object as its data, or one with NUL in it")
    return found


def _check_end(last: Event) -> None:
    if last.kind == ERROR:
        raise AgentFailed(f"the agent says: {str(last.data.get('message', 'nothing'))[:500]}")


async def _enter(connection: AsyncConnection, turn: Turn) -> None:
    await connection.execute(ENTER, {"project": str(turn.order.project_id)})


async def _kept(connection: AsyncConnection, turn: Turn) -> Kept:
    """Of the answer, which nobody else adds to until the commit. Raises RunEnded where it has ended."""
    mine = (Message.project_id == turn.order.project_id) & (Message.id == turn.message_id)
    row = (await connection.execute(select(Message.status, Message.bytes).where(mine).with_for_update())).one_or_none()
    if row is None or row.status != MessageStatus.RUNNING:
        raise RunEnded(f"the answer {turn.message_id} is {'gone' if row is None else row.status}")
    last = select(func.coalesce(func.max(Chunk.number), 0)).where(Chunk.message_id == turn.message_id)
    return Kept((await connection.execute(last)).scalar_one(), row.bytes)


async def _prompt(connection: AsyncConnection, turn: Turn) -> str:
    its = (Message.project_id == turn.order.project_id) & (Message.workflow_id == turn.order.workflow_id)
    found = select(Message.content).where(its, Message.role == Role.USER)
    return str((await connection.execute(found)).scalar_one())


async def _target(connection: AsyncConnection, turn: Turn) -> tuple[Target, int]:
    """Raises InvalidState, HostUnreachable."""
    mine = (WorkSession.project_id == turn.order.project_id) & (WorkSession.id == turn.order.resource_id)
    row: Any = (await connection.execute(_TARGET.where(mine))).one()
    if row.status != Status.RUNNING or row.host_id is None:
        raise InvalidState(f"the sandbox of session {row.name} is {row.status}, not running", state=row.status)
    if not is_reachable(row.last_seen_at) or row.agent_url is None or row.fingerprint is None:
        raise HostUnreachable(f"host {row.host} cannot be reached: its agent has not renewed its lease", host=row.host)
    whose = turn.order.project_id
    return Target(row.id, row.name, row.host_id, row.host, row.agent_url, row.fingerprint, whose), row.agent_port
