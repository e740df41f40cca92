"""A whole platform of a test's own: ``cairn up`` as a child, on real servers and the real engine.

Its processes can be killed and held, faults planted, and ``invariants.check`` says what is wrong with it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import docker
import docker.errors
import httpx
import psycopg

from drivers.brought import Brought
from drivers.mounts import unmount_below
from tests.folders import new_folder
from tests.platform import IMAGE, TERMINAL, Json, Platform, wait_for
from tests.services import PostgresServer
from worker import database, engine, ports, postgres
from worker.children import die_with_parent
from worker.data_folder import is_alive

__all__ = ["IMAGE", "TERMINAL", "Json", "Stack", "wait_for"]
#: Every stack gets this many ports of its own, so that stacks beside each other do not meet on the engine.
PORTS, FIRST_PORT, BLOCKS = 300, 21_000, 25
#: The processes of one test run have blocks of their own; runs beside each other begin elsewhere.
STRETCH = 8
_first = int(os.environ["CAIRN_CHAOS_SEED"]) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * STRETCH
_blocks = itertools.cycle(range(_first, _first + STRETCH))
START_SECONDS, STOP_SECONDS = 90.0, 40.0
#: Short, so that a test sees several of each.
QUICK = {
    "CAIRN_RECONCILE_INTERVAL": "2",
    "CAIRN_TICK_SECONDS": "2",
    "CAIRN_PURGE_INTERVAL": "3",
    "CAIRN_QUOTA_INTERVAL": "5",
    "CAIRN_CRON_INTERVAL": "5",
    "CAIRN_STOP_GRACE": "3",
    # Receivers of webhooks are on this machine, and are not waited for for an hour.
    "CAIRN_OUTBOUND_ALLOW": "127.0.0.0/8",
    "CAIRN_WEBHOOK_RETRY_SECONDS": "20",
}


@functools.cache
def migrated() -> Path:
    """The files of a database server that was stopped, with our roles and schema and no row of any platform."""
    server = PostgresServer()
    atexit.register(server.remove)
    database.bootstrap(server.postgres.url(postgres.SUPERUSER, "postgres"))
    database.migrate(server.postgres.url("cairn_owner"))
    server.stop()
    return server.postgres.data


class Stack(Platform):
    """One platform in a data folder of its own. May be used by several threads at once.

    ``fresh``: its first start makes the database and its schema too, which takes a second of CPU.
    """

    def __init__(self, *, docker: bool = True, simulated_hosts: int = 2, fresh: bool = False, **environ: str) -> None:
        super().__init__()
        # Short: PostgreSQL's socket is in it, and its path may have 107 bytes.
        self.folder = new_folder("cs-")
        self.data = self.folder / "d"
        self.agents_dir = self.data / "agents"
        if not fresh:
            self.data.mkdir(mode=0o700)
            subprocess.run(["cp", "-a", "--", str(migrated()), str(self.data / "postgres")], check=True)
        self.faults_file = self.folder / "faults.json"
        #: In memory, where its agents keep instances' secrets.
        self.secrets_dir = Path("/dev/shm") / f"{self.folder.name}-secrets"  # noqa: S108 - a name that nobody guesses
        low = FIRST_PORT + next(_blocks) % BLOCKS * PORTS
        self.port_range = (low, low + PORTS - 1)
        simulator = ports.choose("127.0.0.1", set(), self.port_range)
        self.engines = [engine.SOCKET]
        self.simulator_url = f"http://127.0.0.1:{simulator}"
        self._command = [str(Path(sys.executable).with_name("cairn")), "up", "--docker" if docker else "--no-docker"]
        self.environ = (
            {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
            | QUICK
            | {
                "CAIRN_DATA_DIR": str(self.data),
                "CAIRN_API_PORT": "0",
                "CAIRN_TEMPORAL_PORT": "0",
                "CAIRN_TEMPORAL_UI_PORT": "0",
                "CAIRN_PORT_RANGE": f"{self.port_range[0]}-{self.port_range[1]}",
                "CAIRN_SIMULATED_HOSTS": str(simulated_hosts),
                "CAIRN_SIMULATOR_URL": self.simulator_url,
                "CAIRN_FAULTS_FILE": str(self.faults_file),
                "CAIRN_SECRETS_DIR": str(self.secrets_dir),
            }
            | environ
        )
        self.process: subprocess.Popen[bytes] | None = None

    # Life

    def start(self, **environ: str) -> Stack:
        """Start the supervisor, this time with more in its environment.

        From the main thread, as the kernel ties it to the thread that starts it.
        """
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
            )
        return self

    def ready(self) -> Stack:
        """Wait until all of it is up."""

        def is_up() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log()
            return self.pids().get("supervisor") == self.process.pid and "host_agent" in self.pids()

        wait_for("the stack is up", is_up, START_SECONDS)
        self.wait_for_api()
        return self

    def stop(self) -> None:
        """Stop it as Ctrl-C would; instances stay."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def _end(self) -> None:
        """Kill it. But PostgreSQL is told, as it has shared memory to give back, and nobody may start it again."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGSTOP)
        pids = self.pids()
        if server := pids.get("postgres"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGQUIT)
            wait_for("PostgreSQL ends", lambda: not is_alive(server), STOP_SECONDS)
        self.process.kill()
        self.process.wait()
        self.process = None
        wait_for("its processes end", lambda: not any(map(is_alive, pids.values())), STOP_SECONDS)

    def remove(self) -> None:
        """End it, and remove its containers, the images that it brought, and its data."""
        self._end()
        with contextlib.suppress(FileNotFoundError, docker.errors.DockerException):
            for container in self.containers():
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True)
            client = docker.DockerClient(base_url=self.engines[0], timeout=30)
            for folder in self.data.rglob("*.images"):
                for image in Brought(folder).all():
                    with contextlib.suppress(docker.errors.APIError):
                        client.images.remove(image.reference)
            client.close()
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.secrets_dir, ignore_errors=True)

    def log(self, name: str | None = None) -> str:
        path = self.data / "logs" / f"{name}.log" if name else self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    # Processes

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return super().request(method, path, **more)
        except httpx.TransportError as error:
            error.add_note(f"{self.pids()}\n{self.log()}\n{self.log('api')}")
            raise

    def endpoint(self) -> Json:
        try:
            known: Json = json.loads((self.data / "endpoint.json").read_bytes())
        except FileNotFoundError:
            return {"pids": {}}
        return known

    def installation(self) -> str:
        return str(json.loads((self.data / "installation.json").read_bytes())["installation"])

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.endpoint()["pids"]
        return pids

    def kill(self, name: str, *, wait: bool = True) -> int:
        """kill -9 of a child; with ``wait``, until another has taken its place."""
        pid = self.pids()[name]
        with contextlib.suppress(ProcessLookupError):  # it had ended by itself, and another is coming
            os.kill(pid, signal.SIGKILL)
        if wait:
            self.wait_for_restart(name, pid)
        return pid

    def wait_for_restart(self, name: str, old: int, seconds: float = 60) -> None:
        wait_for(f"{name} is started again", lambda: self.pids().get(name, old) != old, seconds)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A child that is there and does nothing, so that the supervisor does not start another."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    # Faults

    def plant(self, *faults: Json) -> None:
        """Make these the faults of the platform; none: free whatever is held."""
        with open(f"{self.faults_file}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fresh = self.faults_file.with_name("fresh.json")
            fresh.write_text(json.dumps(faults))
            fresh.replace(self.faults_file)

    def fault(self, point: str, action: str, *, times: int = 1, seconds: float = 0) -> None:
        """Make this the only fault."""
        self.plant({"point": point, "action": action, "times": times, "seconds": seconds})

    def hits(self, point: str | None = None) -> list[Json]:
        """What acted so far, oldest first."""
        try:
            lines = Path(f"{self.faults_file}.hits").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [hit for hit in map(json.loads, lines) if point in (None, hit["point"])]

    def wait_for_hit(self, point: str, before: int = 0, seconds: float = 60) -> Json:
        """The first hit of ``point`` after ``before`` others."""
        return wait_for(f"the fault at {point} acts", lambda: self.hits(point)[before:], seconds)[0]

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The database itself, past every right and policy."""
        url = postgres.find(self.data).url(postgres.SUPERUSER)
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute(statement, parameters)
            return found.fetchall() if found.description else []
