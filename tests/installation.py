"""A whole installation for tests: ``cairn up`` in a folder of its own, with faults, kills and invariants."""

from __future__ import annotations

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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import httpx

from worker.data_folder import is_alive

CAIRN = str(Path(sys.executable).with_name("cairn"))
PREFIX = "io.cairn"
LIVE = ("running", "stopped", "pending", "provisioning", "starting", "stopping", "deleting")
OPEN = ("accepted", "running")
Json = dict[str, Any]
_numbers = itertools.count(1)


def until(check: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """The first true answer; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        if found := check():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or check}")
        time.sleep(0.05)


class Installation:
    """Started with ``start``, ended with ``end``; its containers go with it."""

    def __init__(self, **environ: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cairn-", dir="/tmp"))
        self.data = self.folder / "d"
        self.faults = self.folder / "faults.json"
        low = 30000 + 400 * ((os.getpid() + next(_numbers)) % 70)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")},
            "CAIRN_DATA_DIR": str(self.data),
            "CAIRN_API_PORT": "0",
            "CAIRN_TEMPORAL_PORT": "0",
            "CAIRN_TEMPORAL_UI_PORT": "0",
            "CAIRN_PORT_RANGE": f"{low}-{low + 399}",
            "CAIRN_FAULTS_FILE": str(self.faults),
            "CAIRN_RECONCILE_SECONDS": "3",
            "CAIRN_TICK_SECONDS": "2",
            **environ,
        }
        self.engine = docker.DockerClient(base_url="unix:///var/run/docker.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client()

    def start(self) -> Installation:
        log = (self.folder / "up.log").open("ab")
        self.process = subprocess.Popen([CAIRN, "up"], env=self.environ, stdout=log, stderr=log)
        until(lambda: self.endpoint.get("pids", {}).get("host_agent") or self._died(), 90, "the stack is up")
        self.http = httpx.Client(
            base_url=self.endpoint["api_url"],
            headers={"X-API-Key": self.endpoint["api_key"]},
            timeout=30,
            limits=httpx.Limits(max_connections=300, max_keepalive_connections=0),
        )
        until(self._answers, 30, "the API answers")
        return self

    def _died(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "up.log").read_text()[-3000:])

    def _answers(self) -> bool:
        try:
            return self.http.get("/hosts").status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def endpoint(self) -> Json:
        try:
            found: Json = json.loads((self.data / "endpoint.json").read_text())
            return found
        except FileNotFoundError:
            return {}

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def end(self) -> None:
        self.clear()
        self.stop()
        for container in self.containers():
            container.remove(force=True, v=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # Faults and kills.

    def fault(self, point: str, action: str, times: int = 1, seconds: float = 0) -> None:
        self._write(lambda faults: [*faults, {"point": point, "action": action, "times": times, "seconds": seconds}])

    def clear(self) -> None:
        self._write(lambda _: [])

    def _write(self, change: Callable[[list[Json]], list[Json]]) -> None:
        """As the processes do it: under the lock, replaced by rename."""
        with open(f"{self.faults}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = json.loads(self.faults.read_text()) if self.faults.exists() else []
            fresh = self.faults.with_suffix(".new")
            fresh.write_text(json.dumps(change(found)))
            fresh.replace(self.faults)

    def hits(self, point: str) -> int:
        path = Path(f"{self.faults}.hits")
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(json.loads(line)["point"] == point for line in lines)

    def held(self, point: str, seconds: float = 20, beyond: int = 0) -> None:
        """Wait until a fault at ``point`` was hit more than ``beyond`` times."""
        until(lambda: self.hits(point) > beyond, seconds, f"a hit at {point}")

    def kill(self, name: str) -> int:
        """SIGKILL to a child; waits until the supervisor has another."""
        old: int = self.endpoint["pids"][name]
        os.kill(old, signal.SIGKILL)
        until(lambda: self.endpoint["pids"].get(name) not in (None, old), 15, f"{name} is back")
        return old

    # Requests.

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Repeats what found the API or the database away, as clients do."""
        end = time.monotonic() + 30
        while True:
            try:
                answer = self.http.request(method, path, **more)
                if answer.status_code != 503 or time.monotonic() > end:
                    return answer
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def launch(self, backend: str = "simulated", key: str | None = None, **more: Any) -> Json:
        """An accepted launch: the instance, with ``workflow_id``."""
        name = more.pop("name", f"i{next(_numbers)}")
        body = {"name": name, "image": "cairn/base:latest", "backend": backend, "ports": "80"} | more
        answer = self.call("POST", "/instances", json=body, headers={"Idempotency-Key": key or f"launch-{name}"})
        assert answer.status_code == 202, answer.text
        data: Json = answer.json()["data"]
        return data

    def act(self, instance: Json, verb: str) -> Json:
        """An accepted start, stop or delete: the instance."""
        if verb == "delete":
            answer = self.call("DELETE", f"/instances/{instance['id']}")
        else:
            answer = self.call(
                "POST", f"/instances/{instance['id']}/{verb}", headers={"Idempotency-Key": os.urandom(8).hex()}
            )
        assert answer.status_code in (200, 202), answer.text
        data: Json = answer.json()["data"]
        return data

    def instance(self, instance: Json) -> Json:
        data: Json = self.call("GET", f"/instances/{instance['id']}").json()["data"]
        return data

    def workflow(self, id: str, steps: bool = False) -> Json:
        data: Json = self.call("GET", f"/workflows/{id}", params={"steps": steps}).json()["data"]
        return data

    def ended(self, id: str, seconds: float = 60) -> Json:
        """The workflow, once it has ended."""
        end = time.monotonic() + seconds
        while True:
            row: Json = self.call("GET", f"/workflows/{id}/wait", params={"timeout": 5, "steps": True}).json()["data"]
            if row["state"] not in OPEN:
                return row
            assert time.monotonic() < end, f"workflow is still {row['state']}: {json.dumps(row)}"

    def running(self, backend: str = "simulated", **more: Any) -> Json:
        instance = self.launch(backend, **more)
        row = self.ended(instance["workflow_id"])
        assert row["state"] == "completed", row
        return self.instance(instance)

    def all(self, path: str, **query: Any) -> list[Json]:
        found: list[Json] = []
        cursor = None
        while True:
            page = self.call(
                "GET", path, params={"limit": 500, **query, **({"cursor": cursor} if cursor else {})}
            ).json()
            found += page["data"]
            cursor = page["meta"].get("next_cursor")
            if not cursor:
                return found

    # Reality.

    def containers(self) -> list[Any]:
        label = f"{PREFIX}.installation={self.endpoint['installation']}" if self.endpoint else f"{PREFIX}.none"
        found: list[Any] = self.engine.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        return found

    def converged(self, seconds: float = 45) -> None:
        """Nothing is under way, and reality, the database and its sums agree, within ``seconds``."""
        problems: list[str] = []

        def check() -> bool:
            problems[:] = self.problems()
            return not problems

        try:
            until(check, seconds)
        except AssertionError:
            raise AssertionError("did not converge: " + "; ".join(problems)) from None

    def problems(self) -> list[str]:
        problems = [
            f"workflow {row['kind']} {row['id']} is {row['state']}"
            for state in OPEN
            for row in self.all("/workflows", state=state)
        ]
        rows = self.all("/instances")
        real = Counter(container.labels[f"{PREFIX}.id"] for container in self.containers())
        placed = {row["id"] for row in rows if row["backend"] == "docker" and row["host"]}
        problems += [f"{count} containers of {id}" for id, count in real.items() if count > 1]
        problems += [f"container of {id}, which is not placed" for id in real if id not in placed]
        problems += [f"no container of {id}" for id in placed if id not in real]
        running = {c.labels[f"{PREFIX}.id"] for c in self.containers() if c.status == "running"}
        for row in rows:
            if row["backend"] == "docker" and (row["status"] == "running") != (row["id"] in running):
                problems.append(f"{row['id']} is {row['status']}, its container is not")
            if row["status"] not in ("running", "stopped", "error"):
                problems.append(f"{row['id']} is {row['status']}")
        held = [row for row in rows if row["host"]]
        project = self.call("GET", "/projects").json()["data"][0]["id"]
        quotas = self.call("GET", f"/projects/{project}/quotas").json()["data"]
        counted = [row for row in rows if row["status"] != "error" or row["host"]]
        sums = {
            "instances": len(counted),
            "vcpus": sum(r["vcpus"] for r in counted),
            "memory_mb": sum(r["memory_mb"] for r in counted),
        }
        for what, quota in quotas.items():
            if quota["used"] != sums[what] or quota["reserved"]:
                problems.append(f"quota {what} is {quota}, rows say {sums[what]}")
        for host in self.call("GET", "/hosts").json()["data"]:
            mine = [row for row in held if row["host"] == host["name"]]
            if host["ports_held"] != sum(len(row["ports"]) for row in mine):
                problems.append(f"{host['name']} holds {host['ports_held']} ports, rows say otherwise")
            if host["allocated"]["vcpus"] != sum(row["vcpus"] for row in mine):
                problems.append(f"{host['name']} has allocated {host['allocated']}, rows say otherwise")
        return problems


def alive(pid: int) -> bool:
    return is_alive(pid)
