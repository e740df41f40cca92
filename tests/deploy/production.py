"""A production platform on this machine: each service as ``docker-compose.yml`` has it, from the installed wheel.

Only addresses and paths are others than there: every container becomes a process, and its own address a port.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.deploy import compose, servers
from worker.children import die_with_parent

SUPERUSER_PASSWORD = "postgres-password"
HOST = "deploy-1"
#: Commands of docs/production.md, by how they begin, that are not done here: tests look in other ways, or it takes a
#: shell, or volumes.
LEFT_OUT = [
    ["docker", "compose", "ps"],
    ["docker", "compose", "logs"],
    ["alias"],
    ["export", "CAIRN_API_KEY=$(cat"],
    ["echo"],
    ["docker", "compose", "exec", "-T", "api-1", "tar"],
    ["docker", "compose", "run", "--rm", "--no-deps", "-T", "api-1", "tar"],
]


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("CAIRN_", "PYTHON"))}


class Production:
    def __init__(self, programs: Path, **postgres: str) -> None:
        """``postgres``: settings of the server, beside those that tests want."""
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="cdc-"))
        self.secrets = self.folder / "secrets"
        self.make_secrets()
        self.postgres = servers.ExternalPostgres(self.secret(SUPERUSER_PASSWORD), **postgres)
        self.temporal = servers.ExternalTemporal()
        self.document = compose.read(CAIRN_HOST_NAME=HOST)
        names = ("public", "private", "temporal", "temporal-ui", "api-1", "api-2", "agent")
        self.ports = {name: servers.free_port() for name in names}
        #: What a service has in its environment beside that, by its name.
        self.more: dict[str, dict[str, str]] = {}
        #: Of the shell in which the page is followed.
        self.variables = {"PWD": str(self.folder)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: What had to be killed as it did not stop in time, with its log.
        self.late: dict[str, str] = {}

    # What stands in the file, with addresses of this machine

    def make_secrets(self) -> None:
        """As docs/production.md says."""
        for command in compose.commands_of(compose.ROOT / "docs" / "production.md", "### Secrets"):
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=30)

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def moved(self, text: str, service: str) -> str:
        """A value of the file, as it is on this machine."""
        here = {
            # An agent stands on the machine itself, and finds the platform at what the proxy publishes.
            "127.0.0.1:8080": self.at("private"),
            "127.0.0.1:7233": self.at("temporal"),
            "172.30.99.1": "127.0.0.1",
            "postgres:5432": self.at("postgres"),
            "temporal:7233": self.temporal.address,
            "temporal-ui:8080": "127.0.0.1:1",
            "api-1:8080": self.at("api-1"),
            "api-2:8080": self.at("api-2"),
            "bind :8443": f"bind {self.at('public')}",
            "bind :8080": f"bind {self.at('private')}",
            "bind :7233": f"bind {self.at('temporal')}",
            "bind :8233": f"bind {self.at('temporal-ui')}",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - replaced
            "/run/secrets": str(self.secrets),
            "/tmp/": f"{self.folder}/{service}-tmp/",  # noqa: S108 - of the container
        }
        return re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)

    def at(self, name: str) -> str:
        return f"127.0.0.1:{self.postgres.port if name == 'postgres' else self.ports[name]}"

    def environment(self, service: str) -> dict[str, str]:
        (self.folder / f"{service}-tmp").mkdir(exist_ok=True)
        given = self.document["services"][service].get("environment", {})
        moved = {name: self.moved(value, service) for name, value in given.items()}
        if service in self.ports:
            moved |= {
                name: str(self.ports[service]) for name in ("CAIRN_API_PORT", "CAIRN_AGENT_PORT") if name in given
            }
        if "CAIRN_METRICS_PORT" in given:
            moved["CAIRN_METRICS_PORT"] = str(self.metrics_port(service))
        data = "agent" if service == "agent" else "blobs"
        image = compose.image_environment() | {"CAIRN_DATA_DIR": str(self.folder / data)}
        return inherited() | image | moved | self.more.get(service, {})

    def metrics_port(self, service: str) -> int:
        """Of what all have on one port, each on its own address."""
        name = f"{service}-metrics"
        if name not in self.ports:
            self.ports[name] = servers.free_port()
        return self.ports[name]

    def command(self, words: list[str]) -> list[str]:
        return [str(self.programs / words[0]), *words[1:]]

    # Life

    def initialise(self) -> None:
        """What the image of PostgreSQL does with its folder of scripts."""
        script = self.folder / "roles.sh"
        script.write_text(self.moved((compose.ROOT / "deploy" / "postgres" / "roles.sh").read_text(), "postgres"))
        where = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.postgres.port),
            "PGPASSWORD": self.secret(SUPERUSER_PASSWORD),
        }
        subprocess.run(["sh", str(script)], env=os.environ | where, check=True, capture_output=True, timeout=30)

    def start(self, service: str, **environ: str) -> None:
        command = self.command(self.document["services"][service]["command"])
        # As a container that starts again: what was in its memory is gone.
        shutil.rmtree(self.folder / f"{service}-tmp", ignore_errors=True)
        self.spawn(service, command, self.environment(service) | environ)

    def start_proxy(self) -> None:
        config = self.folder / "haproxy.cfg"
        config.write_text(self.moved((compose.ROOT / "deploy" / "haproxy.cfg").read_text(), "proxy"))
        self.spawn("proxy", ["haproxy", "-W", "-db", "-f", str(config)], dict(os.environ))

    def spawn(self, name: str, command: list[str], environ: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
            )

    def kill(self, service: str) -> None:
        process = self.processes.pop(service)
        process.kill()
        process.wait(10)

    def stop(self, service: str) -> float:
        """As its grace period allows; the seconds it took. One that needs longer is killed, and is in ``late``."""
        process, began = self.processes.pop(service), time.monotonic()
        process.send_signal(signal.SIGTERM)
        grace = self.document["services"][service]["stop_grace_period"]
        try:
            process.wait(float(grace.removesuffix("s")))
        except subprocess.TimeoutExpired:
            # Like a kill -9, but its log tells where it stood.
            process.send_signal(signal.SIGABRT)
            process.wait(20)
            self.late[service] = (self.folder / f"{service}.log").read_text(errors="replace")
        return time.monotonic() - began

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")[-3000:]

    def lose_machine(self) -> None:
        """All but the secrets and the backups; another is there, on which nothing is but what an image makes."""
        for service in tuple(self.processes):
            self.kill(service)
        self.temporal.remove()
        self.postgres.remove()
        shutil.rmtree(self.folder / "blobs", ignore_errors=True)
        self.postgres = servers.ExternalPostgres(self.secret(SUPERUSER_PASSWORD))
        self.temporal = servers.ExternalTemporal()
        self.initialise()

    def remove(self) -> None:
        for name, process in self.processes.items():
            # These have processes of their own, which they end; no other is worth the wait.
            process.send_signal(signal.SIGTERM if name in ("agent", "proxy") else signal.SIGKILL)
        for process in self.processes.values():
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.temporal.remove()
        self.postgres.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What is asked of it

    def run(self, service: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command in the place of a service's own; that without any."""
        command = self.command([*(words or self.document["services"][service]["command"])])
        return self.call(command, self.environment(service) | more)

    def call(self, command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environ, cwd=self.folder, capture_output=True, text=True, timeout=150, check=False
        )

    def follow(self, heading: str, number: int = 0) -> None:
        """A block of docs/production.md. ``cairn`` runs, as there, in the place of an API; what starts containers,
        starts processes. All that is neither known here nor left out is an error.
        """
        followed = 0
        for written in compose.commands_of(compose.ROOT / "docs" / "production.md", heading, number):
            if any(written[: len(left)] == left for left in LEFT_OUT):
                continue
            self.do([self.here(word) for word in written])
            followed += 1
        assert followed, f"nothing of {heading} was followed"

    def here(self, word: str) -> str:
        """A word of the page, as it is on this machine."""
        public = self.ports["public"]
        names = {
            "host-1": HOST,
            "cairn.example.org:443:": f"cairn.example.org:{public}:",
            "https://cairn.example.org/": f"https://cairn.example.org:{public}/",
            "/backups": str(self.folder / "backups"),
        } | {f"${name}": value for name, value in self.variables.items()}
        return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], word)

    def do(self, words: list[str]) -> None:
        """One command of the page; raises AssertionError where it fails, or is not known here."""
        target = self.folder / words.pop() if words[-2:-1] == [">"] else None
        words = [word for word in words if word != ">"]
        done = None
        match words:
            case [first, *_] if (name := first.partition("=")[0]) in ("ADDRESS", "FILE"):
                self.variables[name] = self.at("postgres") if name == "ADDRESS" else f"{self.folder}/backups/backup"
            case ["export", *given]:
                self.variables |= dict(one.split("=", 1) for one in given)
            case ["install", "-d", "-m", mode, folder]:
                Path(folder).mkdir(int(mode, 8))
            case ["docker", "compose", *more]:
                done = self.compose(more)
            case ["curl", *_]:
                done = self.call(words, dict(os.environ))
            case [".venv/bin/cairn", *command]:
                done = self.call(self.command(["cairn", *command]), inherited() | self.variables)
            case ["cairn", *_]:
                where = {"CAIRN_API_URL": f"http://{self.at('api-1')}/v1", "CAIRN_API_KEY": self.secret("api-key")}
                done = self.run("api-1", *words, **where)
            case _:
                raise AssertionError(f"a command of the page that no test follows: {words}")
        assert done is None or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        if done is not None and target is not None:
            target.write_text(done.stdout)

    def compose(self, words: list[str]) -> subprocess.CompletedProcess[str] | None:
        match words:
            case ["up", "--detach", *more]:
                self.up(more)
            case ["--profile", "agent", "up", "--detach"]:
                self.start("agent")
            case ["exec", "-T", "postgres", "psql", "--username", "postgres", "--command", query]:
                self.postgres.admin(query)
            case ["run", "--rm", service, *command]:
                return self.run(service, *command)
            case _:
                raise AssertionError(f"a command of the page that no test follows: docker compose {words}")
        return None

    def up(self, words: list[str]) -> None:
        """What is not there yet of the services that are named, or of all that there are."""
        named = [word for word in words if not word.startswith("--")]
        assert set(named) <= set(self.document["services"]), named
        if "postgres" in named and self.postgres.process is None:
            self.postgres.start()
        if "temporal" in named and self.temporal.process is None:
            self.temporal.start()
        if not named:
            set_up = self.run("setup")
            assert set_up.returncode == 0, set_up.stderr
            ours = [name for name in compose.ours(self.document) if name not in ("setup", "agent")]
            for service in ours:
                if service not in self.processes:
                    self.start(service)
            self.becomes_healthy(*ours)

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        """Its health check, run as it stands in the file."""
        kind, *words = self.document["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(service, *words)

    def becomes_healthy(self, *services: str, seconds: float = 90) -> None:
        """Asked once a second, as each question is a process that takes time from those that start."""
        for service in services:
            end = time.monotonic() + seconds
            while (asked := self.health(service)).returncode:
                assert time.monotonic() < end, asked.stderr + self.log(service)
                time.sleep(1)

    def client(self) -> httpx.Client:
        """Through the proxy's TLS, which is checked, with the admin key."""
        trusted = ssl.create_default_context(cafile=str(self.secrets / "tls-certificate"))
        headers = {"X-API-Key": self.secret("api-key")}
        root = f"https://{self.at('public')}"
        return httpx.Client(base_url=root, verify=trusted, headers=headers, timeout=70, trust_env=False)

    def instance_ids(self) -> list[str]:
        """Containers of this installation, by the ids of their instances."""
        (installation,) = self.postgres_rows("SELECT id::text FROM installation")
        label = f"label=io.cairn.installation={installation[0]}"
        shown = ["docker", "ps", "--all", "--filter", label, "--format", "{{json .Names}}"]
        found = subprocess.run(shown, capture_output=True, text=True, check=True, timeout=30).stdout
        return [json.loads(line) for line in found.splitlines()]

    def postgres_rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.postgres.admin(query, "cairn")
