"""``cairn up``, ``down`` and ``reset`` as a person uses them: the whole platform, on the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.services import until
from tests.worker.conftest import FREE_PORTS
from worker import data_folder
from worker.data_folder import is_alive

CAIRN = str(Path(sys.executable).with_name("cairn"))
pytestmark = [pytest.mark.engine]


class Commands:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        return subprocess.run(
            [CAIRN, *arguments],
            env=inherited | FREE_PORTS | {"CAIRN_DATA_DIR": str(self.folder)} | environ,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def endpoint(self) -> dict[str, Any]:
        return json.loads((self.folder / "endpoint.json").read_text())


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path / "data")
    yield commands
    commands.run("down")
    commands.run("reset", "--yes")


def test_from_up_to_reset(commands: Commands) -> None:
    up = commands.run("up", "--detach")
    assert up.returncode == 0, up.stderr
    endpoint = commands.endpoint()
    for shown in (endpoint["api_url"], endpoint["temporal_ui_url"]):
        assert shown in up.stdout
    api = httpx.Client(base_url=endpoint["api_url"], headers={"X-API-Key": endpoint["api_key"]}, timeout=30)
    launched = api.post("/instances", json={"name": "kept", "image": endpoint["image"]})
    assert launched.status_code == httpx.codes.ACCEPTED, launched.text
    where = f"/instances/{launched.json()['data']['id']}"
    assert until(lambda: api.get(where).json()["data"]["status"] == "running", 60)

    again = commands.run("up")
    assert again.returncode == 1
    assert f"process {endpoint['pids']['supervisor']}" in again.stderr
    refused = commands.run("reset", "--yes")
    assert refused.returncode == 4
    assert "runs on" in refused.stderr

    down = commands.run("down")
    assert down.returncode == 0, down.stderr
    assert not [name for name, pid in endpoint["pids"].items() if is_alive(pid)]
    assert commands.endpoint()["pids"] == {}

    engine = docker.DockerClient(base_url=endpoint["docker_host"])
    ours = engine.containers.list(filters={"label": f"io.cairn.installation={endpoint['installation']}"})
    assert len(ours) == 1, "a stop of the platform is no stop of its instances"
    stranger = engine.containers.run(
        endpoint["image"], detach=True, network_mode="none", labels={"io.cairn.installation": "another"}
    )
    try:
        asked = commands.run("reset")
        assert asked.returncode == 4, "without a terminal nobody can have agreed"
        assert ours[0].name in asked.stdout
        assert commands.run("reset", "--yes").returncode == 0
        assert not commands.folder.exists()
        names = {container.name for container in engine.containers.list(all=True)}
        assert ours[0].name not in names
        assert stranger.name in names
    finally:
        stranger.remove(force=True)
        engine.close()


def test_reset_deletes_no_folder_that_was_never_a_platforms(commands: Commands) -> None:
    (commands.folder / "logs").mkdir(parents=True)
    (commands.folder / "logs" / "app.log").write_text("somebody's")
    commands.folder.chmod(0o755)
    assert "Nothing to delete" in commands.run("reset", "--yes").stdout
    assert (commands.folder / "logs" / "app.log").read_text() == "somebody's"


def test_reset_keeps_what_proves_the_containers_while_the_engine_is_away(commands: Commands, tmp_path: Path) -> None:
    commands.folder.mkdir()
    identity = data_folder.installation(commands.folder, None, 0)
    known = {
        "api_url": "http://127.0.0.1:1/v1",
        "api_key": "cairn_x",
        "temporal_address": "127.0.0.1:1",
        "temporal_ui_url": "http://127.0.0.1:1",
        "image": "cairn/base:latest",
        "installation": identity.installation,
        "docker_host": f"unix://{tmp_path}/none.sock",
        "data_dir": str(commands.folder),
        "pids": {},
    }
    data_folder.write_endpoint(commands.folder, data_folder.Endpoint.model_validate(known))
    refused = commands.run("reset", "--yes")
    assert refused.returncode == 4
    assert "does not answer" in refused.stderr
    assert data_folder.read_installation(commands.folder) is not None


def test_detached_start_that_fails_says_why_and_leaves_nothing(commands: Commands) -> None:
    failed = commands.run("up", "--detach", CAIRN_API_HOST="203.0.113.1")
    assert failed.returncode == 1
    assert "no address 203.0.113.1" in failed.stderr
    assert failed.stderr.count("error:") == failed.stderr.count("(cannot_start)") == 1
    assert "No platform runs" in commands.run("down").stdout
    assert "no stack ever ran on it" in commands.run("reset").stdout
    assert not commands.folder.exists()


def test_missing_engine_is_a_clear_error(commands: Commands, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none.sock"
    failed = commands.run("up", CAIRN_DOCKER_HOST=nowhere)
    assert failed.returncode == 1
    assert nowhere in failed.stderr
    assert not commands.folder.exists()
    examined = commands.run("doctor", "-o", "json", CAIRN_DOCKER_HOST=nowhere)
    assert examined.returncode == 1
    broken = [finding["name"] for finding in json.loads(examined.stdout) if not finding["works"]]
    assert broken == ["docker engine"]


def test_killed_agent_and_worker_of_the_real_platform_are_replaced(commands: Commands) -> None:
    assert commands.run("up", "--detach").returncode == 0
    for name in ("host_agent", "control_worker", "api"):
        old = commands.endpoint()["pids"][name]
        os.kill(old, signal.SIGKILL)
        assert until(lambda name=name, old=old: commands.endpoint()["pids"].get(name, old) != old, 1), name
    url = commands.endpoint()["api_url"].removesuffix("/v1") + "/health/live"

    def serves() -> bool:
        try:
            return httpx.get(url, timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    assert until(serves, 30)
