"""A platform that runs, as its users and its engines show it, however it was started."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import docker
import httpx
from docker.models.containers import Container

from tests.patience import is_over
from worker import engine

T = TypeVar("T")
Json = dict[str, Any]
IMAGE = engine.IMAGE
#: An API that was killed has long been back, on a machine with nothing to spare too.
BACK_SECONDS = 60.0
TERMINAL = ("completed", "failed", "cancelled")


def wait_for(what: str, check: Callable[[], T | None], seconds: float = 60) -> T:
    """The first answer of ``check`` that is true; fails the test after ``seconds`` without one (tests.patience)."""
    began = time.monotonic()
    while True:
        if found := check():
            return found
        if is_over(began, seconds):
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.03)


class Platform:
    """What is asked of any of them. May be used by several threads at once."""

    #: Those that its hosts use.
    engines: list[str]
    simulator_url: str
    #: Where its agents keep the files of secrets.
    secrets_dir: Path
    #: Below which its agents keep workspaces and sessions; None: they have none.
    agents_dir: Path | None = None

    def __init__(self) -> None:
        self._http = httpx.Client(
            timeout=30, trust_env=False, limits=httpx.Limits(max_connections=250, max_keepalive_connections=50)
        )

    def endpoint(self) -> Json:
        """``api_url``, which ends in /v1, ``api_key``, and ``docker_host``: None without a Docker engine."""
        raise NotImplementedError

    def installation(self) -> str:
        raise NotImplementedError

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """The database itself, past every right and policy."""
        raise NotImplementedError

    # API

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, with the installation's key."""
        known = self.endpoint()
        headers = {"X-API-Key": known["api_key"]} | more.pop("headers", {})
        return self._http.request(method, known["api_url"] + path, headers=headers, **more)

    def get(self, path: str, seconds: float = BACK_SECONDS, **params: Any) -> Any:
        """What ``data`` holds; asked again while the API, or its database, is away."""
        return self._patiently("GET", path, seconds, params=params)["data"]

    def accept(self, method: str, path: str, body: Json | None = None, seconds: float = BACK_SECONDS) -> Json:
        """A request that must be accepted; repeated under one key while the API is away. The envelope."""
        return self._patiently(method, path, seconds, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def _patiently(self, method: str, path: str, seconds: float, **more: Any) -> Json:
        answer = self.answered(method, path, seconds, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        envelope: Json = answer.json()
        return envelope

    def answered(self, method: str, path: str, seconds: float = BACK_SECONDS, **more: Any) -> httpx.Response:
        """A request that may be sent twice; repeated while the API, or its database, is away."""
        began = time.monotonic()
        while True:
            try:
                answer = self.request(method, path, **more)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or is_over(began, seconds):
                    return answer
            except httpx.TransportError:
                if is_over(began, seconds):
                    raise
            time.sleep(0.1)

    def wait_for_api(self) -> None:
        self.get("/instances", limit=1)

    def list(self, path: str, **params: Any) -> list[Json]:
        """Every page of a list."""
        found: list[Json] = []
        cursor: Json = {}
        while True:
            envelope = self._patiently("GET", path, BACK_SECONDS, params={"limit": 500} | params | cursor)
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

    def ended(self, accepted: Json, seconds: float = 120) -> Json:
        """The workflow of an accepted request, once it has ended, with its steps."""

        def terminal() -> Json | None:
            row = self.workflow(accepted, steps=True)
            return row if row["state"] in TERMINAL else None

        try:
            return wait_for("the workflow ends", terminal, seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.workflow(accepted, steps=True)}") from None

    def completed(self, accepted: Json, seconds: float = 120) -> Json:
        row = self.ended(accepted, seconds)
        assert row["state"] == "completed", row
        return row

    def delete_all(self, seconds: float = 60) -> None:
        """Delete every instance, and wait until all are gone; groups first, which would launch them again."""
        groups = ("/autoscaling/groups", "/containers/deployments")
        for path in groups:
            for group in self.list(path):
                self.accept("DELETE", f"{path}/{group['id']}")
        wait_for("all groups are gone", lambda: not any(self.list(path) for path in groups), seconds)
        """Delete every balancer and every instance, and wait until all are gone."""
        for balancer in self.list("/lb"):
            self.accept("DELETE", f"/lb/{balancer['id']}")
        for instance in self.list("/instances"):
            if instance["managed_by"] is None:
                self.act("delete", instance)
        wait_for("all instances are gone", lambda: not self.list("/instances"), seconds)

    # Engines

    def containers(self, instance_id: str | None = None) -> list[Container]:
        """What its Docker engines have of this installation, or of one instance of it."""
        labels = [f"io.cairn.installation={self.installation()}"]
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
