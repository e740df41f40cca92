"""A whole platform of a test's own: ``cairn up`` as a child, on real servers and the real engine.

Its processes can be killed and held, faults planted, and ``invariants.check`` says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import httpx
import psycopg
from docker.models.containers import Container

from drivers.brought import Brought
from worker import engine, ports, postgres
from worker.children import die_with_parent

T = TypeVar("T")
Json = dict[str, Any]
IMAGE = engine.IMAGE
#: Every stack gets this many ports of its own, so that stacks beside each other do not meet on the engine.
PORTS, FIRST_PORT, BLOCKS = 300, 21_000, 25
#: The processes of one test run have blocks of their own; runs beside each other begin elsewhere.
STRETCH = 8
_first = int(os.environ["CAIRN_CHAOS_SEED"]) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * STRETCH
_blocks = itertools.cycle(range(_first, _first + STRETCH))
START_SECONDS, STOP_SECONDS = 90.0, 40.0
TERMINAL = ("completed", "failed", "cancelled")
#: Short, so that a test sees several of each.
QUICK = {
    "CAIRN_RECONCILE_INTERVAL": "2",
    "CAIRN_TICK_SECONDS": "2",
    "CAIRN_PURGE_INTERVAL": "3",
    "CAIRN_STOP_GRACE": "3",
    # Receivers of webhooks are on this machine, and are not waited for for an hour.
    "CAIRN_OUTBOUND_ALLOW": "127.0.0.0/8",
    "CAIRN_WEBHOOK_RETRY_SECONDS": "20",
}


def wait_for(what: str, check: Callable[[], T | None], seconds: float = 30) -> T:
    """The first answer of ``check`` that is true; fails the test after ``seconds`` without one."""
    end = time.monotonic() + seconds
    while True:
        if found := check():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.03)


class Stack:
    """One platform in a data folder of its own. May be used by several threads at once."""

    def __init__(self, *, docker: bool = True, simulated_hosts: int = 2, **environ: str) -> None:
        # Short: PostgreSQL's socket is in it, and its path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="cs-"))
        self.data = self.folder / "d"
        self.faults_file = self.folder / "faults.json"
        #: In memory, where its agents keep instances' secrets.
        self.secrets_dir = Path("/dev/shm") / self.folder.name  # noqa: S108 - a name that nobody guesses
        low = FIRST_PORT + next(_blocks) % BLOCKS * PORTS
        self.port_range = (low, low + PORTS - 1)
        simulator = ports.choose("127.0.0.1", set(), self.port_range)
        #: Those that its hosts use.
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
        self._http = httpx.Client(
            timeout=30, trust_env=False, limits=httpx.Limits(max_connections=250, max_keepalive_connections=50)
        )

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

    def remove(self) -> None:
        """Stop it, and remove its containers, the images that it brought, and its data."""
        self.stop()
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
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.secrets_dir, ignore_errors=True)

    def log(self, name: str | None = None) -> str:
        path = self.data / "logs" / f"{name}.log" if name else self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    # Processes

    def endpoint(self) -> Json:
        try:
            known: Json = json.loads((self.data / "endpoint.json").read_bytes())
        except FileNotFoundError:
            return {"pids": {}}
        return known

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

    def wait_for_restart(self, name: str, old: int, seconds: float = 15) -> None:
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

    def wait_for_hit(self, point: str, before: int = 0, seconds: float = 20) -> Json:
        """The first hit of ``point`` after ``before`` others."""
        return wait_for(f"the fault at {point} acts", lambda: self.hits(point)[before:], seconds)[0]

    # API

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, with the installation's key."""
        known = self.endpoint()
        headers = {"X-API-Key": known["api_key"]} | more.pop("headers", {})
        return self._http.request(method, known["api_url"] + path, headers=headers, **more)

    def get(self, path: str, seconds: float = 20, **params: Any) -> Any:
        """What ``data`` holds; asked again while the API, or its database, is away."""
        return self._patiently("GET", path, seconds, params=params)["data"]

    def accept(self, method: str, path: str, body: Json | None = None, seconds: float = 20) -> Json:
        """A request that must be accepted; repeated under one key while the API is away. The envelope."""
        return self._patiently(method, path, seconds, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def _patiently(self, method: str, path: str, seconds: float, **more: Any) -> Json:
        end = time.monotonic() + seconds
        while True:
            try:
                answer = self.request(method, path, **more)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > end:
                    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
                    envelope: Json = answer.json()
                    return envelope
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def wait_for_api(self) -> None:
        self.get("/instances", seconds=30, limit=1)

    def list(self, path: str, **params: Any) -> list[Json]:
        """Every page of a list."""
        found: list[Json] = []
        cursor: Json = {}
        while True:
            envelope = self._patiently("GET", path, 20, params={"limit": 500} | params | cursor)
            found += envelope["data"]
            if not envelope["meta"].get("next_cursor"):
                return found
            cursor = {"cursor": envelope["meta"]["next_cursor"]}

    def launch(self, name: str | None = None, *, backend: str = "simulated", **more: Any) -> Json:
        """Launch an instance with one automatic port; the envelope."""
        name = name or f"i-{uuid.uuid4().hex[:12]}"
        body = {"name": name, "image": IMAGE, "backend": backend, "ports": "0:80"} | more
        return self.accept("POST", "/instances", body)

    def running(self, *, backend: str = "simulated", **more: Any) -> Json:
        """An instance that runs."""
        launched = self.launch(backend=backend, **more)
        self.completed(launched)
        return self.instance(launched)

    def act(self, verb: str, instance: Json, **more: Any) -> Json:
        """A verb, or delete; the envelope."""
        path = f"/instances/{_id(instance)}"
        return self.accept("DELETE", path) if verb == "delete" else self.accept("POST", f"{path}/{verb}", **more)

    def cancel(self, accepted: Json) -> httpx.Response:
        return self.request("POST", f"/workflows/{accepted['meta']['workflow_id']}/cancel")

    def cancelled(self, accepted: Json, within: float) -> Json:
        """Cancel, and the workflow, which ends so within these seconds."""
        asked = time.monotonic()
        answer = self.cancel(accepted)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        row = self.ended(accepted, within - (time.monotonic() - asked))
        assert row["state"] == "cancelled", row
        return row

    def instance(self, accepted: Json) -> Json:
        found: Json = self.get(f"/instances/{_id(accepted)}")
        return found

    def workflow(self, accepted: Json, **params: Any) -> Json:
        found: Json = self.get(f"/workflows/{accepted['meta']['workflow_id']}", **params)
        return found

    def ended(self, accepted: Json, seconds: float = 45) -> Json:
        """The workflow of an accepted request, once it has ended, with its steps."""

        def terminal() -> Json | None:
            row = self.workflow(accepted, steps=True)
            return row if row["state"] in TERMINAL else None

        try:
            return wait_for("the workflow ends", terminal, seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.workflow(accepted, steps=True)}") from None

    def completed(self, accepted: Json, seconds: float = 45) -> Json:
        row = self.ended(accepted, seconds)
        assert row["state"] == "completed", row
        return row

    def delete_all(self, seconds: float = 60) -> None:
        """Delete every instance, and wait until all are gone."""
        for instance in self.list("/instances"):
            self.act("delete", instance)
        wait_for("all instances are gone", lambda: not self.list("/instances"), seconds)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The database itself, past every right and policy."""
        url = postgres.find(self.data).url(postgres.SUPERUSER)
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute(statement, parameters)
            return found.fetchall() if found.description else []

    # Engines

    def containers(self, instance_id: str | None = None) -> list[Container]:
        """What its Docker engines have of this installation, or of one instance of it."""
        labels = [f"io.cairn.installation={json.loads((self.data / 'installation.json').read_bytes())['installation']}"]
        if instance_id:
            labels.append(f"io.cairn.id={instance_id}")
        found: list[Container] = []
        for url in self.engines:
            client = docker.DockerClient(base_url=url, timeout=30)
            try:
                found += client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            finally:
                client.close()
        return found

    def simulated_machines(self) -> list[Json]:
        """What the simulated engine has."""
        found: list[Json] = []
        for host in self.get("/hosts", limit=500):
            if host["backend"] == "simulated":
                found += self._http.get(f"{self.simulator_url}/hosts/{host['name']}/machines").json()
        return found

    def remove_simulated(self, machine: Json) -> None:
        """Remove a machine behind the platform's back."""
        url = f"{self.simulator_url}/hosts/{machine['host']}/machines/{machine['id']}"
        self._http.delete(url).raise_for_status()

    def simulate(self, **settings: float) -> None:
        """Change how the simulated engine behaves: latency_ms, refuse, lose_answers, resize."""
        self._http.put(f"{self.simulator_url}/settings", json=settings).raise_for_status()


def _id(accepted: Json) -> str:
    """Of an envelope, or of an instance itself."""
    return str(accepted["data"]["id"] if "data" in accepted else accepted["id"])
