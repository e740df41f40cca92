"""Machines that join a platform of a test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from tests.stack import Json, Stack, wait_for
from worker.children import die_with_parent

CAIRN = str(Path(sys.executable).with_name("cairn"))


class Machine:
    """A machine beside the platform's, with a data folder of its own, on which ``cairn host join`` is run."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def environ(self, **more: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        # With /v1 or without: both are the API.
        url = self.stack.endpoint()["api_url"].removesuffix("/v1")
        return own | {"CAIRN_DATA_DIR": str(self.folder), "CAIRN_API_URL": url} | more

    def register(self, name: str, *options: str, token: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CAIRN, "host", "join", "--name", name, "--register-only", *options],
            env=self.environ(CAIRN_JOIN_TOKEN=token),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start(self, name: str, token: str, within: Sequence[str] = (), **more: str) -> None:
        """Join, as a unit or a container does: the same command and environment at every start.

        ``within``: what the command begins with, such as ``Namespace.enter``.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [*within, CAIRN, "host", "join"],
                env=self.environ(CAIRN_JOIN_TOKEN=token, CAIRN_HOST_NAME=name, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
            )

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.agents.pop(name)
        process.send_signal(number)
        process.wait(20)

    def end_all(self) -> None:
        for name in list(self.agents):
            self.end(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def credential(self, name: str) -> str:
        kept = json.loads((self.folder / "agents" / f"{name}.json").read_bytes())
        return str(kept["membership"]["credential"])

    def renewed(self, host: Json, credential: str) -> int:
        """The answer to a lease that is renewed with this credential."""
        body = {"hosts": [{"id": host["id"]}]}
        headers = {"Authorization": f"Bearer {credential}"}
        url = f"{self.stack.endpoint()['api_url']}/hosts/lease"
        return httpx.post(url, json=body, headers=headers, trust_env=False).status_code

    def host(self, name: str) -> Json:
        try:
            return wait_for(f"host {name} has its lease", lambda: self._reachable(name), 60)
        except AssertionError as late:
            raise AssertionError(f"{late}:\n{self.log(name)}") from None

    def _reachable(self, name: str) -> Json | None:
        hosts = self.stack.list("/hosts")
        return next((host for host in hosts if host["name"] == name and host["reachable"]), None)


@contextmanager
def beside(stack: Stack, folder: Path) -> Iterator[Machine]:
    """A machine whose agents, instances and hosts (named joined-…) are gone afterwards."""
    made = Machine(stack, folder)
    yield made
    stack.delete_all()
    made.end_all()
    for host in stack.list("/hosts"):
        if host["name"].startswith("joined-"):
            stack.request("DELETE", f"/hosts/{host['id']}")


def token(stack: Stack, **body: object) -> str:
    return str(stack.accept("POST", "/hosts/tokens", dict(body))["data"]["token"])
