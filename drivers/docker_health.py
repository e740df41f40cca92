"""Looks at containers that have a health check: from outside over their own address, or by a command inside."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from contextlib import closing
from typing import Any, NamedTuple

import aiohttp
import structlog
from pydantic import ValidationError
from yarl import URL

from drivers.docker_engine import DockerEngine, calling
from drivers.docker_streams import DockerStreams
from drivers.ownership import HEALTH
from model.errors import CairnError, EngineUnavailable
from model.health import Checked, HealthCheck, Look

log = structlog.get_logger()
#: Of what a command says that fails.
LAST_WORDS = 200
#: Of its output that is read.
MOST_OUTPUT = 1 << 20
#: Of an answer that are on their way at once.
FEW_BYTES = 1024
#: 200 to 399 is well; a redirect is not followed.
_WELL = range(200, 400)


def checked(engine: DockerEngine) -> list[Checked]:
    with calling():
        # Also what ended and waits to be started again: it is far from well.
        filters = {"label": [*engine.owner.filters(), HEALTH], "status": ["running", "restarting"]}
        machines = []
        for found in engine.client.containers(filters=filters):
            labels = found["Labels"] or {}
            owned = engine.owner.owned_of(found["Names"][0].removeprefix("/"), labels)
            if owned is None:
                continue
            try:
                check = HealthCheck.model_validate_json(labels[HEALTH])
            except ValidationError:  # of a newer version than this
                log.warning("health.not_understood", instance=str(owned[0]))
                continue
            who = {"engine_id": found["Id"], "id": owned[0], "generation": owned[1], "project_id": owned[2]}
            machines.append(Checked(**who, check=check))
        return machines


def look(engine: DockerEngine, inside: DockerStreams, machine: Checked) -> Look:
    """A look during which the machine was started anew, or went, says nothing: its failure has no ``started_at``."""
    before = _seen(engine, machine)
    if before is None:
        return Look(failure="it does not run")
    if before.restarting:
        return Look(failure="it has ended, and waits to be started again", started_at=before.started_at)
    check = machine.check
    if check.type == "exec":
        failure = _run(inside, machine)
    elif before.address is None:
        failure = "it has no address"
    else:
        failure = asyncio.run(_ask(check, before.address))
    # An address passes to the next machine as soon as its owner ends: whose answer it was shows only now.
    if _seen(engine, machine) != before:
        return Look(failure="it ended, or was started again, while it was looked at")
    return Look() if failure is None else Look(failure=failure, started_at=before.started_at)


class _Seen(NamedTuple):
    """A machine as it runs. ``started_at``: Unix time."""

    started_at: float
    address: str | None
    restarting: bool


def _seen(engine: DockerEngine, machine: Checked) -> _Seen | None:
    """None: it does not run, or another has taken its place."""
    with calling():
        found = engine.own(machine.id)
    if found is None or found["Id"] != machine.engine_id or not found["State"]["Running"] or found["State"]["Paused"]:
        return None
    state = found["State"]
    addresses = [network["IPAddress"] for network in found["NetworkSettings"]["Networks"].values()]
    started_at = dt.datetime.fromisoformat(state["StartedAt"]).timestamp()
    return _Seen(started_at, next(filter(None, addresses), None), bool(state["Restarting"]))


def _run(inside: DockerStreams, machine: Checked) -> str | None:
    said, length = b"", 0
    try:
        with closing(
            inside.run(machine.id, machine.check.command or [], timeout_seconds=machine.check.timeout_seconds)
        ) as command:
            for output in command:
                said = (said + output.data)[-LAST_WORDS:]
                length += len(output.data)
                if length > MOST_OUTPUT:
                    return f"it said more than {MOST_OUTPUT >> 10} KiB"
            code = command.exit_code()
    except EngineUnavailable:
        raise
    except CairnError as error:
        return error.message
    words = said.decode(errors="replace").replace("\x00", "").strip()
    return f"exit code {code}: {words}".rstrip(": ") if code else None


async def _ask(check: HealthCheck, address: str) -> str | None:
    host = f"[{address}]" if ":" in address else address
    try:
        async with asyncio.timeout(check.timeout_seconds):
            if check.type == "tcp":
                _, writer = await asyncio.open_connection(address, check.port)
                writer.transport.abort()  # there is nothing to wait for
                return None
            # Encoded: the path goes out as it was written.
            url = URL(f"http://{host}:{check.port}{check.path or '/'}", encoded=True)
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(socket_factory=_of_few_bytes),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    read_bufsize=FEW_BYTES,
                ) as session,
                session.get(url, allow_redirects=False, headers={"User-Agent": "cairn-health"}) as answer,
            ):
                # Its body is not read.
                return None if answer.status in _WELL else f"it answered {answer.status}"
    except TimeoutError:
        return f"no answer within {check.timeout_seconds:g} s"
    except (OSError, aiohttp.ClientError) as error:
        return str(error)[:LAST_WORDS] or type(error).__name__


def _of_few_bytes(address: Any) -> socket.socket:
    """What is sent beyond the head of an answer is traffic of the machine, which would seem to be busy."""
    family, type, protocol, *_ = address
    made = socket.socket(family, type, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FEW_BYTES)
    return made
