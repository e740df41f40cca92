"""Looks at containers that have a health check: from outside over their own address, or by a command inside."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import closing

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
#: 200 to 399 is well; a redirect is not followed.
_WELL = range(200, 400)


def checked(engine: DockerEngine) -> list[Checked]:
    with calling():
        filters = {"label": [*engine.owner.filters(), HEALTH], "status": "running"}
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
            addresses = [network["IPAddress"] for network in found["NetworkSettings"]["Networks"].values()]
            machines.append(
                Checked(
                    engine_id=found["Id"],
                    id=owned[0],
                    generation=owned[1],
                    project_id=owned[2],
                    address=next(filter(None, addresses), None),
                    check=check,
                )
            )
        return machines


def look(engine: DockerEngine, inside: DockerStreams, machine: Checked) -> Look:
    check = machine.check
    if check.type == "exec":
        failure = _run(inside, machine)
    elif machine.address is None:
        failure = "it has no address"
    else:
        failure = asyncio.run(_ask(check, machine.address))
    return Look() if failure is None else Look(failure=failure, started_at=_started_at(engine, machine))


def _run(inside: DockerStreams, machine: Checked) -> str | None:
    said = b""
    try:
        with closing(
            inside.run(machine.id, machine.check.command or [], timeout_seconds=machine.check.timeout_seconds)
        ) as command:
            for output in command:
                said = (said + output.data)[-LAST_WORDS:]
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
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(url, allow_redirects=False, headers={"User-Agent": "cairn-health"}) as answer,
            ):
                # Its body is not read.
                return None if answer.status in _WELL else f"it answered {answer.status}"
    except TimeoutError:
        return f"no answer within {check.timeout_seconds:g} s"
    except (OSError, aiohttp.ClientError) as error:
        return str(error)[:LAST_WORDS] or type(error).__name__


def _started_at(engine: DockerEngine, machine: Checked) -> float | None:
    with calling():
        found = engine.own(machine.id)
    if found is None or not found["State"]["Running"]:
        return None
    return dt.datetime.fromisoformat(found["State"]["StartedAt"]).timestamp()
