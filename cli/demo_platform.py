"""The platform that the demo runs on: its own data folder, its own ports, and nothing left afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from cli.client import Client, Endpoint
from cli.errors import CommandFailed, Exit

if TYPE_CHECKING:
    from docker.models.containers import Container

Found = TypeVar("Found")
START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_LINES = 12
#: Settings of the person's own platform that the demo's may share; everything else is the demo's own.
SHARED = ("CAIRN_DOCKER_HOST", "CAIRN_PORT_RANGE", "CAIRN_LOG_LEVEL", "CAIRN_INSTALL_ENGINE")
#: Not where a platform beside it begins to choose.
PORT_RANGE = "29000-29999"


class DemoFailed(CommandFailed):
    """Something did not go as the demo promises."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, "demo_failed", Exit.FAILED, hint)


def until(what: str, check: Callable[[], Found | None], seconds: float) -> Found:
    """The first answer of ``check`` that is true; DemoFailed after ``seconds`` without one."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise DemoFailed(f"{what}: not within {seconds:g} s")
        time.sleep(POLL_SECONDS)


class DemoPlatform:
    """``cairn up`` as a child process, which the kernel ends when the demo ends, however that is."""

    def __init__(self, folder: Path, docker_host: str) -> None:
        self.folder = folder.absolute()
        self.docker_host = docker_host
        self.process: subprocess.Popen[bytes] | None = None
        self.seen_pids: set[int] = set()
        self.faults = self.folder / "faults.json"
        self.log = self.folder.with_name(f"{self.folder.name}.log")

    def start(self) -> Client:
        """Start it, and give a client of its API once it is ready."""
        from worker.children import die_with_parent

        parent = os.getpid()
        self.folder.mkdir(parents=True, mode=0o700)
        self.faults.write_text("[]")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("cairn")), "up"],
                env=self.environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then stops its platform in order.
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - the demo has one thread
            )
        until("the platform is up", self._is_up, START_SECONDS)
        endpoint = self.endpoint()
        client = Client(Endpoint(endpoint["api_url"], endpoint["api_key"]))
        client.get("/instances")
        return client

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        own = {name: value for name, value in environ.items() if not name.startswith("CAIRN_") or name in SHARED}
        return (
            {"CAIRN_PORT_RANGE": PORT_RANGE}
            | own
            | {
                "CAIRN_DATA_DIR": str(self.folder),
                "CAIRN_DOCKER_HOST": self.docker_host,
                "CAIRN_API_PORT": "0",
                "CAIRN_TEMPORAL_PORT": "0",
                "CAIRN_TEMPORAL_UI_PORT": "0",
                "CAIRN_FAULTS_FILE": str(self.faults),
            }
        )

    def endpoint(self) -> dict[str, Any]:
        """The endpoint file; its process ids are remembered, to be looked for at the end."""
        try:
            known: dict[str, Any] = json.loads((self.folder / "endpoint.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {"pids": {}}
        self.seen_pids |= set(known["pids"].values())
        return known

    def agent(self) -> int | None:
        pid = self.endpoint()["pids"].get("host_agent")
        return int(pid) if pid else None

    def _is_up(self) -> bool:
        if self.process and self.process.poll() is not None:
            said = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise DemoFailed("the platform did not start:\n  " + "\n  ".join(said))
        return bool(self.agent())

    # Faults

    def plant(self, *faults: dict[str, Any]) -> None:
        """Make these the faults of the platform; none: free whatever is held."""
        with open(f"{self.faults}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fresh = self.faults.with_suffix(".new")
            fresh.write_text(json.dumps(faults))
            fresh.replace(self.faults)

    def hits(self, point: str) -> int:
        """How often a fault acted at ``point``."""
        try:
            lines = Path(f"{self.faults}.hits").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum(json.loads(line)["point"] == point for line in lines)

    # Reality

    def containers(self, instance_id: str | None = None) -> list[Container]:
        """What the engine itself has, running or not, of the demo's installation or of one instance of it."""
        installation = _installation(self.folder)
        if installation is None:
            return []
        from docker import DockerClient

        labels = [f"io.cairn.installation={installation}"]
        if instance_id:
            labels.append(f"io.cairn.id={instance_id}")
        engine = DockerClient(base_url=self.docker_host, timeout=20)
        try:
            found: list[Container] = engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            return found
        finally:
            engine.close()

    def processes(self) -> list[int]:
        """Those of ours that live: all that were ever named, and all that carry our data folder."""
        mark = f"CAIRN_DATA_DIR={self.folder}".encode()
        alive = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = int(entry.name) in self.seen_pids or mark in (entry / "environ").read_bytes().split(b"\0")
                if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                    alive.add(int(entry.name))
            except (OSError, IndexError):
                continue
        return sorted(alive - {os.getpid()})

    # The end

    def stop(self) -> float:
        """Stop it as ``cairn down`` would; the seconds it took come back."""
        began = time.monotonic()
        if self.process and self.process.poll() is None:
            self.endpoint()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return time.monotonic() - began

    def clean(self) -> int:
        """Remove what the demo may have left on the engine, now or when it was killed before; how many."""
        installation = _installation(self.folder)
        if installation is None:
            return 0
        from worker import engine

        left = engine.owned_containers(self.docker_host, installation)
        engine.remove_containers(self.docker_host, left)
        return len(left)

    def forget(self) -> None:
        """Remove the demo's data."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def _installation(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "installation.json").read_bytes())["installation"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def answer_of(url: str, seconds: float = 10) -> tuple[int, str]:
    """What an HTTP server answers, once it does: the status, and the page's text without its tags."""

    def ask() -> httpx.Response | None:
        try:
            return httpx.get(url, timeout=2, trust_env=False)
        except httpx.TransportError:
            return None

    answer = until(f"{url} answers", ask, seconds)
    return answer.status_code, " ".join(re.sub(r"<title>.*?</title>|<[^>]*>", " ", answer.text).split())
