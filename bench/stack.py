"""The platform that is measured, and what all measurements share."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import docker

from bench.bare_temporal import IMAGE
from bench.client import Connection
from drivers.mounts import unmount_below

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
#: Of names, that none is used twice.
numbers = itertools.count(1)


class Row(NamedTuple):
    what: str
    ours: str
    baseline: str
    compared: str
    target: str
    met: bool | None


class Bench:
    """A platform of its own, and what the parts share."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
        #: What workspaces are copied from.
        self.source = self.folder / "source"
        self.source.mkdir()
        (self.source / "README").write_text("base\n")
        self.rows: list[Row] = []
        self.engine = docker.APIClient("unix:///var/run/docker.sock", max_pool_size=64)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ports = itertools.count(25000)
        self._environ = os.environ | {
            "CAIRN_DATA_DIR": str(self.folder / "d"),
            "CAIRN_API_PORT": "0",
            "CAIRN_TEMPORAL_PORT": "0",
            "CAIRN_TEMPORAL_UI_PORT": "0",
            "CAIRN_PORT_RANGE": "26000-29999",
            "CAIRN_SIMULATED_HOSTS": "1",
            "CAIRN_WORKSPACE_PATHS": str(self.source),
            # Of what does nothing, many.
            "CAIRN_OVERCOMMIT_CPU": "64",
            "CAIRN_OVERCOMMIT_MEMORY": "8",
        }

    def start(self) -> None:
        subprocess.run([PROGRAMS / "cairn", "up", "--detach"], env=self._environ, check=True, stdout=subprocess.DEVNULL)
        self.endpoint = json.loads((self.folder / "d" / "endpoint.json").read_text())

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        label = f"io.cairn.installation={self.endpoint['installation']}"
        subprocess.run([PROGRAMS / "cairn", "down"], env=self._environ, check=True, stdout=subprocess.DEVNULL)
        for left in self.engine.containers(all=True, filters={"label": label}):
            self.engine.remove_container(left["Id"], force=True)
        unmount_below(self.folder)
        shutil.rmtree(self.folder)

    def beside(self, *argv: str) -> None:
        self.processes.append(subprocess.Popen([sys.executable, *argv]))

    def connection(self) -> Connection:
        return Connection(self.endpoint["api_url"], self.endpoint["api_key"])

    def database(self, role: str) -> str:
        return f"postgresql://{role}@/cairn?host={self.folder / 'd' / 'run'}&port=5432"

    def add(self, *row: Any) -> None:
        self.rows.append(Row(*row))
        print(" | ".join(str(cell) for cell in row), flush=True)

    async def launch(self, connection: Connection, backend: str = "simulated", **more: Any) -> str:
        name = f"b{next(numbers)}"
        status, answer = await connection.call(
            "POST", "/instances", {"name": name, "image": IMAGE, "backend": backend, **more}
        )
        if status != 202:
            raise RuntimeError(answer)
        return str(answer["data"]["id"])

    async def completed(self, connection: Connection, backend: str, **more: Any) -> None:
        """A launch that is waited for, as the bare workflow's result is."""
        body = {"name": f"b{next(numbers)}", "image": IMAGE, "backend": backend, **more}
        status, answer = await connection.call("POST", "/instances", body, "Prefer: wait=60\r\n")
        if status != 201:
            raise RuntimeError(answer)

    async def until(self, connection: Connection, id: str, status: str) -> None:
        """Look every 5 ms."""
        while True:
            _, answer = await connection.call("GET", f"/instances/{id}")
            if answer["data"]["status"] == status:
                return
            if answer["data"]["status"] == "error":
                raise RuntimeError(answer["data"]["error"])
            await asyncio.sleep(0.005)

    async def drained(self, connection: Connection) -> None:
        for state in ("accepted", "running"):
            # It asks another process: there is no event to wait for.
            while (await connection.call("GET", f"/workflows?state={state}&limit=1"))[1]["data"]:  # noqa: ASYNC110 - above
                await asyncio.sleep(0.1)

    def raw_create(self, name: str, port: int) -> str:
        shape = self.engine.create_host_config(
            cpu_period=100_000,
            cpu_quota=100_000,
            mem_limit="512m",
            memswap_limit="512m",
            pids_limit=1024,
            init=True,
            port_bindings={"80/tcp": ("127.0.0.1", port)},
        )
        made = self.engine.create_container(IMAGE, name=name, ports=[(80, "tcp")], host_config=shape)
        self.engine.start(made["Id"])
        return str(made["Id"])

    def raw_idle(self, name: str) -> str:
        """One that a session could have, and that does not run yet."""
        shape = self.engine.create_host_config(network_mode="none", init=True, mem_limit="512m", pids_limit=1024)
        made = self.engine.create_container(IMAGE, ["/bin/sh", "-c", "sleep 3600"], name=name, host_config=shape)
        return str(made["Id"])


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
