"""The embedded stack's children: their commands, environments, and how it shows that they are ready."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from worker import identity, postgres, temporal
from worker.children import Program
from worker.data_folder import StackError
from worker.stack_plan import AGENT, Plan

#: What answers users keeps its share of a busy machine; the rest waits a little.
BACKGROUND = 10
#: One machine is for trying things out: many small instances that do little.
EMBEDDED_DEFAULTS = {"CAIRN_OVERCOMMIT_CPU": "100", "CAIRN_OVERCOMMIT_MEMORY": "10", "CAIRN_MAILER": "log"}
#: They are asked again and again, over plain HTTP: to read the authorities of TLS each time took longer than a start.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def programs(plan: Plan, environ: Mapping[str, str]) -> dict[str, Program]:
    """Every child, by its name in ``pids``, in order of start."""
    settings = plan.settings
    shared = EMBEDDED_DEFAULTS | dict(environ)
    shared |= {
        "CAIRN_DATA_DIR": str(plan.folder),
        "CAIRN_INSTALLATION": str(plan.identity.installation),
        "CAIRN_API_PORT": str(plan.api_port),
        "CAIRN_TEMPORAL_ADDRESS": plan.temporal.address,
        "CAIRN_TEMPORAL_UI_URL": plan.temporal.ui_url,
        # Compiled once: a child that is started again is back in half the time.
        "PYTHONPYCACHEPREFIX": environ.get("PYTHONPYCACHEPREFIX") or str(plan.folder / "pycache"),
    }
    shared.pop("PYTHONDONTWRITEBYTECODE", None)
    if settings.faults_file:
        shared["CAIRN_FAULTS_FILE"] = str(settings.faults_file.absolute())
    if plan.docker_host:
        shared["CAIRN_DOCKER_HOST"] = plan.docker_host
    if plan.simulator_url:
        shared["CAIRN_SIMULATOR_URL"] = plan.simulator_url
        shared["CAIRN_SIMULATOR_DATA"] = str(plan.folder / "simulator")
    # Agents have no keys, nor do the servers.
    for name in ("CAIRN_DATABASE_URL", "CAIRN_DATABASE_PASSWORD", "CAIRN_MASTER_KEYS", "CAIRN_ADMIN_PASSWORD"):
        shared.pop(name, None)
        shared.pop(f"{name}_FILE", None)
    master_keys = {"CAIRN_MASTER_KEYS": plan.master_keys}
    for_api = master_keys | {
        "CAIRN_DATABASE_URL": plan.postgres.url("cairn_api"),
        "CAIRN_TICKET_KEY": plan.ticket_key,
    }
    for_agent = {"CAIRN_AGENT_IDENTITY": str(identity.path_of(plan.folder, AGENT))}
    # Each process has its own: the control worker's are where the settings say, the agent's one higher.
    for name, port in (
        ("CAIRN_METRICS_PORT", settings.metrics_port),
        ("CAIRN_TEMPORAL_METRICS_PORT", settings.temporal_metrics_port),
    ):
        if port:
            for_agent[name] = str(port + 1)

    def program(name: str, command: list[str], env: Mapping[str, str] = shared) -> Program:
        return Program(name=name, argv=command, env=env, log=plan.folder / "logs" / f"{name}.log")

    children = [
        replace(
            program("postgres", plan.postgres.command()),
            ready=plan.postgres.is_ready,
            before=plan.postgres.prepare,
            holds=(plan.lock,),
            stop_signal=postgres.STOP_SIGNAL,
            stop_seconds=20.0,
        ),
        replace(
            program("temporal", plan.temporal.command()),
            ready=plan.temporal.is_ready,
            holds=(plan.lock,),
            nice=BACKGROUND,
        ),
    ]
    if plan.simulator_url:
        where = urlsplit(plan.simulator_url)
        (plan.folder / "simulator").mkdir(exist_ok=True)
        listens = partial(temporal.answers, where.hostname or "", where.port or 0)
        children.append(replace(program("simulator", [_script("cairn-simulator")]), ready=listens))
    children += [
        replace(
            program("api", [_script("cairn-api")], shared | for_api),
            ready=partial(_is_live, f"{plan.api_root}/health/live"),
        ),
        replace(
            program(
                "control_worker",
                [_script("cairn-control")],
                shared | master_keys | {"CAIRN_DATABASE_URL": plan.postgres.url("cairn_worker")},
            ),
            nice=BACKGROUND,
            stop_seconds=15.0,
        ),
        replace(
            program("host_agent", [_script("cairn-agent")], shared | for_agent),
            # It is there when it has its leases: before, there is no host to place anything on.
            ready=partial(_has_hosts, f"{plan.api_root}/v1/hosts", plan.api_key),
            nice=BACKGROUND,
            stop_seconds=15.0,
        ),
    ]
    return {child.name: child for child in children}


def _script(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise StackError(f"{path} is missing: install the package whole, for example with 'make'")
    return str(path)


async def _is_live(url: str) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False, verify=NO_AUTHORITIES) as client:
            return (await client.get(url, timeout=2)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def _has_hosts(url: str, api_key: str) -> bool:
    """Whether some host takes placements."""
    try:
        async with httpx.AsyncClient(trust_env=False, verify=NO_AUTHORITIES) as client:
            answer = await client.get(url, params={"limit": 500}, headers={"X-API-Key": api_key}, timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and any(host["reachable"] for host in answer.json()["data"])
