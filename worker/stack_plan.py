"""What the embedded stack decides before it starts anything: ports, keys, identity, what there already is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from model.hosts import AgentHost
from model.keyring import new_master_key
from model.secrets import digest, new_credential, new_key
from model.settings import Settings
from model.tickets import check_signing_key, new_signing_key, verifying_key
from worker import data_folder, database, identity, ports, postgres, restoring, temporal
from worker.data_folder import Installation, StackError
from worker.identity import Identity, Keys, Membership

AGENT = "embedded"
SIMULATED_CPUS, SIMULATED_MEMORY_MB = 256, 1 << 20


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
