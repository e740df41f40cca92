"""The embedded stack: everything Cairn needs on one machine, as children of one supervisor.

Order of start: PostgreSQL and Temporal; schema and first rows; the simulated engine, where wanted; API,
control worker and host agent. Stopped in reverse. Nothing outlives the supervisor, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import structlog
from pydantic import SecretStr

from model.hosts import AgentHost
from model.keyring import new_master_key
from model.secrets import digest, new_credential, new_key
from model.settings import Settings
from model.tickets import check_signing_key, new_signing_key, verifying_key
from worker import data_folder, database, identity, ports, postgres, restoring, temporal
from worker.children import Child, Program
from worker.data_folder import Endpoint, Installation, StackError
from worker.identity import Identity, Keys, Membership

log = structlog.get_logger("stack")

IMAGE = "cairn/base:latest"
AGENT = "embedded"
START_SECONDS = 60.0
TRIM_EVERY_SECONDS = 15.0
#: What answers users keeps its share of a busy machine; the rest waits a little.
BACKGROUND = 10
SIMULATED_CPUS, SIMULATED_MEMORY_MB = 256, 1 << 20
#: One machine is for trying things out: many small instances that do little.
EMBEDDED_DEFAULTS = {"CAIRN_OVERCOMMIT_CPU": "100", "CAIRN_OVERCOMMIT_MEMORY": "10"}
#: make passes on what its process group got already: that is no second wish.
SAME_SIGNAL_SECONDS = 0.5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything is started."""

    settings: Settings
    folder: Path
    lock: int
    docker_host: str | None
    identity: Installation
    api_key: str
    ticket_key: str
    master_keys: str
    admin_password: str
    agent: Keys
    agent_credential: str
    api_port: int
    temporal: temporal.Temporal
    postgres: postgres.Postgres
    simulator_url: str | None

    @property
    def api_root(self) -> str:
        host = self.settings.api_host
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared with, not bound
        reachable = everywhere.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{reachable}:{self.api_port}"

    @property
    def hosts(self) -> list[database.HostSeed]:
        ids = self.identity.simulated_hosts[: self.settings.simulated_hosts]
        seed = partial(
            database.HostSeed,
            credential=digest(self.agent_credential),
            public_key=self.agent.public_key,
            fingerprint=self.agent.fingerprint,
        )
        simulated = [
            seed(id=id, name=f"sim-{n}", backend="simulated", cpus=SIMULATED_CPUS, memory_mb=SIMULATED_MEMORY_MB)
            for n, id in enumerate(ids, 1)
        ]
        if self.docker_host is None:
            return simulated
        cpus, memory_mb = identity.capacity(self.settings)
        local = seed(
            id=self.identity.local_host,
            name=self.settings.host_name,
            backend="docker",
            cpus=cpus,
            memory_mb=memory_mb,
        )
        return [local, *simulated]

    def write_agent(self) -> None:
        """The embedded agent joins with its platform: its identity, as the platform is now."""
        membership = Membership(
            api_url=f"{self.api_root}/v1",
            installation=self.identity.installation,
            temporal_address=self.temporal.address,
            temporal_namespace=self.settings.temporal_namespace,
            credential=self.agent_credential,
            hosts=[AgentHost(id=host.id, name=host.name, backend=host.backend) for host in self.hosts],
            ticket_keys=[verifying_key(self.ticket_key)],
        )
        identity.write(identity.path_of(self.folder, AGENT), Identity(keys=self.agent, membership=membership))


@contextmanager
def planned(settings: Settings, docker_host: str | None) -> Iterator[Plan]:
    """Become the owner of the data folder and decide everything; StackError when something is in the way.

    ``docker_host`` None: without a Docker engine, on simulated hosts alone.
    """
    folder = data_folder.make(settings.data_dir)
    lock = data_folder.lock(folder)
    try:
        data_folder.clear_pids(folder)
        restoring.take_place(folder)
        known = identity.read(identity.path_of(folder, AGENT)) or Identity(keys=identity.new_keys(settings.host_name))
        api_port, temporal_port, ui_port, simulator_url = _ports(settings)
        plan = Plan(
            settings=settings,
            folder=folder,
            lock=lock,
            docker_host=docker_host,
            identity=data_folder.installation(folder, settings.installation, settings.simulated_hosts),
            api_key=data_folder.kept(folder / "api-key", new_key),
            ticket_key=_ticket_key(folder / "ticket-key"),
            master_keys=data_folder.kept(folder / "master-keys", partial(new_master_key, "first")),
            admin_password=data_folder.kept(folder / "admin-password", partial(secrets.token_urlsafe, 12)),
            agent=known.keys,
            agent_credential=known.membership.credential if known.membership else new_credential(),
            api_port=api_port,
            temporal=temporal.Temporal(
                binary=temporal.find_binary(),
                file=folder / "temporal.sqlite",
                port=temporal_port,
                ui_port=ui_port,
                namespace=settings.temporal_namespace,
                host=settings.temporal_host,
            ),
            postgres=postgres.find(folder),
            simulator_url=simulator_url,
        )
        plan.write_agent()
        yield plan
    finally:
        os.close(lock)


def _ports(settings: Settings) -> tuple[int, int, int, str | None]:
    wanted = [
        (settings.api_host, settings.api_port, "CAIRN_API_PORT"),
        (settings.temporal_host, settings.temporal_port, "CAIRN_TEMPORAL_PORT"),
        (temporal.ADDRESS, settings.temporal_ui_port, "CAIRN_TEMPORAL_UI_PORT"),
    ]
    simulator = urlsplit(settings.simulator_url)
    if settings.simulated_hosts:
        # The simulated engine talks to its agent alone: unless told where, it may be anywhere.
        told = "simulator_url" in settings.model_fields_set
        where, port = simulator.hostname or temporal.ADDRESS, simulator.port or 0
        wanted.append((where, port if told else 0, "CAIRN_SIMULATOR_URL"))
    taken: set[int] = set()
    for address, port, setting in wanted:
        if port in taken:
            raise StackError(f"port {port} is asked for twice: set {setting} to another (0 chooses a free one)")
        if port:
            taken.add(ports.require(address, port, setting))
    found = [port or ports.choose(address, taken, settings.port_range) for address, port, _ in wanted]
    url = f"{simulator.scheme}://{simulator.hostname}:{found[3]}" if settings.simulated_hosts else None
    return found[0], found[1], found[2], url


def _ticket_key(path: Path) -> str:
    try:
        return check_signing_key(data_folder.kept(path, new_signing_key))
    except ValueError as error:
        raise StackError(f"{path}: {error}; or remove it, and another is made") from None


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
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(url, timeout=2)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def _has_hosts(url: str, api_key: str) -> bool:
    """Whether some host takes placements."""
    try:
        async with httpx.AsyncClient(trust_env=False, headers={"X-API-Key": api_key}) as client:
            answer = await client.get(url, params={"limit": 500}, timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and any(host["reachable"] for host in answer.json()["data"])


class Stack:
    """The running children of one plan."""

    def __init__(self, plan: Plan, environ: Mapping[str, str]) -> None:
        self.plan = plan
        self.children = {name: Child(program, self._changed) for name, program in programs(plan, environ).items()}
        self._up = False

    def endpoint(self) -> Endpoint:
        plan = self.plan
        pids = {name: child.pid for name, child in self.children.items()}
        return Endpoint(
            api_url=f"{plan.api_root}/v1",
            api_key=plan.api_key,
            temporal_address=plan.temporal.address,
            temporal_ui_url=plan.temporal.ui_url,
            image=IMAGE,
            installation=plan.identity.installation,
            docker_host=plan.docker_host,
            data_dir=str(plan.folder),
            pids={"supervisor": os.getpid()} | {name: pid for name, pid in pids.items() if pid},
        )

    async def start(self) -> Endpoint:
        """Start everything in order; the endpoint file is written when all of it is ready."""
        first = {name: self.children[name] for name in ("postgres", "temporal")}
        await asyncio.gather(*(child.start(START_SECONDS) for child in first.values()))
        await asyncio.to_thread(self._prepare_database)
        rest = [child for name, child in self.children.items() if name not in first]
        await asyncio.gather(*(child.start(START_SECONDS) for child in rest))
        for child in self.children.values():
            child.settle()
        self._up = True
        self._changed()
        return self.endpoint()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop everything in reverse order, killing what takes too long, or all at once on ``hurry``."""
        self._up = False
        for child in reversed(self.children.values()):
            await child.stop(hurry)
        data_folder.clear_pids(self.plan.folder)

    async def trim_logs(self) -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY_SECONDS)
            for child in self.children.values():
                await asyncio.to_thread(child.trim_log)

    def _prepare_database(self) -> None:
        plan = self.plan
        database.bootstrap(plan.postgres.url(postgres.SUPERUSER, "postgres"))
        owner = plan.postgres.url("cairn_owner")
        database.migrate(owner)
        database.seed(
            owner,
            installation=plan.identity.installation,
            api_key=plan.api_key,
            hosts=plan.hosts,
            settings=plan.settings.model_copy(update={"admin_password": SecretStr(plan.admin_password)}),
        )

    def _changed(self) -> None:
        if self._up:
            data_folder.write_endpoint(self.plan.folder, self.endpoint())


async def run(plan: Plan, on_ready: Callable[[Endpoint], None], environ: Mapping[str, str] = os.environ) -> None:
    """Run the stack until a signal asks for its end; a second one ends it at once.

    To be called in the main thread: the children are tied to the thread that starts them.
    """
    asked, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    first = 0.0

    def on_signal() -> None:
        nonlocal first
        if not asked.is_set():
            first = loop.time()
            asked.set()
        elif loop.time() - first > SAME_SIGNAL_SECONDS:
            hurry.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    stack = Stack(plan, environ)
    trimming = asyncio.create_task(stack.trim_logs())
    starting = asyncio.create_task(stack.start())
    waiting = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_ready(starting.result())
            await waiting
    finally:
        for task in (starting, waiting, trimming):
            task.cancel()
        await asyncio.gather(starting, waiting, trimming, return_exceptions=True)
        asked.set()
        await stack.stop(hurry)
