"""A platform that has been scaled out, on one machine: two APIs behind the proxy, three control workers, five agents.

All are processes of their own, started as ``docker-compose.yml`` starts them, with settings and nothing else, on an
external PostgreSQL over TCP and TLS and a Temporal server that they share. Four agents have a simulated engine, which
is one process for all of them, and one has Docker's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker.errors
import httpx

from model.base import new_id
from model.hosts import AgentHost
from model.secrets import digest, new_credential
from model.settings import Settings
from model.tickets import verifying_key
from tests.deploy import servers
from tests.deploy.compose import ROOT
from tests.deploy.production import HOST, Production
from tests.platform import Json, Platform, wait_for
from worker import database, engine, identity
from worker.identity import Identity, Membership

#: Of the simulated hosts; the fifth is the agent of the compose file.
SIMULATED = ("agent-1", "agent-2", "agent-3", "agent-4")
DOCKER = "agent"
START_SECONDS = 180
#: Each simulated host gives so much that none is ever full.
CPUS, MEMORY_MB = 10_000, 10_000_000
#: Beyond those of other platforms that tests have on this machine.
PORT_RANGE = "30000-31999"


class Cluster(Platform):
    """``services`` are the names of what may be stopped and killed: APIs, control workers and agents."""

    def __init__(
        self,
        *,
        apis: int = 2,
        controls: int = 3,
        docker: bool = True,
        postgres: dict[str, str] | None = None,
        **environ: str,
    ) -> None:
        super().__init__()
        self.made = Production(Path(sys.executable).parent, **postgres or {})
        self.apis = tuple(f"api-{n}" for n in range(1, apis + 1))
        self.controls = tuple(f"control-{n}" for n in range(1, controls + 1))
        self.agents = (*SIMULATED, DOCKER) if docker else SIMULATED
        self.engines = [engine.SOCKET] if docker else []
        port = servers.free_port()
        self.simulator_url = f"http://127.0.0.1:{port}"
        self.secrets_dir = Path("/dev/shm") / f"{self.made.folder.name}-secrets"  # noqa: S108 - a name that nobody guesses
        services = self.made.document["services"]
        services.update({name: services["control-1"] for name in self.controls})
        like = services[DOCKER] | {"command": ["cairn-agent"], "environment": {}}
        services.update(dict.fromkeys(SIMULATED, like))
        services["simulator"] = {"command": ["cairn-simulator"]}
        # The code that the tests are of, which unlike the image's is compiled when it is first used.
        python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
        common = (
            python
            | {
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "",
                # One that does not end when it is told to says where it stood, with SIGABRT.
                "PYTHONFAULTHANDLER": "1",
                "CAIRN_SIMULATOR_URL": self.simulator_url,
                "CAIRN_SECRETS_DIR": str(self.secrets_dir),
            }
            | environ
        )
        for name in (*self.services, "setup", "simulator"):
            self.made.more[name] = dict(common)
        for name in (*self.apis, *self.controls):
            self.made.more[name]["CAIRN_PORT_RANGE"] = PORT_RANGE

    @property
    def services(self) -> tuple[str, ...]:
        return (*self.apis, *self.controls, *self.agents)

    # Life

    def start(self) -> Cluster:
        """All of it, ready for work. From the main thread: the kernel ties processes to the thread that starts them."""
        self.made.temporal.start()
        self.made.initialise()
        done = self.made.run("setup")
        assert done.returncode == 0, done.stderr
        (self._installation,) = (str(row[0]) for row in self.made.postgres_rows("SELECT id FROM installation"))
        self.made.start("simulator")
        self.made.start_proxy()
        for name in (*self.apis, *self.controls):
            self.made.start(name)
        self.join()
        for name in self.agents:
            self.made.start(name)
        wait_for("all hosts have their leases", self._all_reachable, START_SECONDS)
        for name in self.services:
            self.becomes_healthy(name)
        return self

    def join(self) -> None:
        """The host of the compose file with a token; the simulated ones as the embedded platform makes them."""
        owner = self.made.postgres.url("cairn_owner", self.made.secret("owner-password"), "cairn")
        key = verifying_key(self.made.secret("ticket-key"))
        for n, name in enumerate(SIMULATED, 1):
            keys, credential = identity.new_keys(name), new_credential()
            host = AgentHost(id=new_id(), name=f"sim-{n}", backend="simulated")
            row = database.HostSeed(
                **host.model_dump(),
                cpus=CPUS,
                memory_mb=MEMORY_MB,
                credential=digest(credential),
                public_key=keys.public_key,
                fingerprint=keys.fingerprint,
            )
            database.seed(owner, installation=new_id(), api_key=None, hosts=[row], settings=Settings())
            membership = Membership(
                api_url=f"http://{self.made.at('private')}/v1",
                installation=self._installation,
                temporal_address=self.made.at("temporal"),
                temporal_namespace="cairn",
                credential=credential,
                hosts=[host],
                ticket_keys=[key],
            )
            path = identity.path_of(self.made.folder / name, name)
            identity.write(path, Identity(keys=keys, membership=membership))
            self.made.more[name] |= {
                "CAIRN_DATA_DIR": str(self.made.folder / name),
                "CAIRN_AGENT_IDENTITY": str(path),
                "CAIRN_HOST_NAME": name,
                "CAIRN_TEMPORAL_ADDRESS": membership.temporal_address,
                "CAIRN_TEMPORAL_NAMESPACE": membership.temporal_namespace,
            }
        if DOCKER in self.agents:
            wait_for("the API answers", self._answers, START_SECONDS)
            token = self.accept("POST", "/hosts/tokens", {"name": HOST})["data"]["token"]
            (self.made.secrets / "join-token").write_text(token)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.request("GET", "/instances", params={"limit": 1}).is_success
        return False

    def _all_reachable(self) -> bool:
        hosts = self.get("/hosts", START_SECONDS, limit=500)
        return sum(host["reachable"] for host in hosts) == len(self.agents)

    def restart(self, name: str, **environ: str) -> float:
        """Gracefully, until it is healthy again, with more in its environment; the seconds it took to stop."""
        seconds = self.made.stop(name)
        self.made.start(name, **environ)
        self.becomes_healthy(name)
        return seconds

    def becomes_healthy(self, name: str) -> None:
        """By its own health check, which is a process: not looked at all the time."""
        end = time.monotonic() + START_SECONDS
        while (done := self.made.health(name)).returncode:
            assert time.monotonic() < end, done.stderr + self.made.log(name)
            time.sleep(1)

    def kill(self, name: str) -> None:
        """kill -9, and started again at once, as systemd does it."""
        self.made.kill(name)
        self.made.start(name)

    def joins(self, host: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """What ``cairn host join`` says on another machine; it runs no agent."""
        token = self.accept("POST", "/hosts/tokens", {"name": host})["data"]["token"]
        environ |= {"CAIRN_JOIN_TOKEN": token, "CAIRN_HOST_NAME": host, "CAIRN_DATA_DIR": str(self.made.folder / host)}
        return self.made.run(DOCKER, "cairn", "host", "join", "--register-only", **environ)

    def remove(self) -> None:
        for container in self.containers():
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)
        self.made.remove()
        shutil.rmtree(self.secrets_dir, ignore_errors=True)

    # What a platform is asked by

    def endpoint(self) -> Json:
        return {
            "api_url": f"http://{self.made.at('private')}/v1",
            "api_key": self.made.secret("api-key"),
            "docker_host": engine.SOCKET if self.engines else None,
        }

    def installation(self) -> str:
        return self._installation

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """The database itself, past every right and policy."""
        return self.made.postgres_rows(statement)
