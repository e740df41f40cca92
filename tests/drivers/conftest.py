"""Every driver of the machine port, each on its real engine, for an owner of the test's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from drivers.brought import Brought
from drivers.docker import DockerMachines
from drivers.docker_images import DockerImages
from drivers.images import Images
from drivers.machines import Machines
from drivers.simulated import SimulatedMachines
from drivers.simulated_images import SimulatedImages
from model.instances import MachineSpec
from tests.services import child, until
from worker import engine, ports

PORTS = (20_000, 20_900)
#: Where tests have their registries.
LOOPBACK = [ip_network("127.0.0.0/8")]


class Site:
    """An engine, and what makes machine ports on it."""

    backend: str

    def __init__(self, installation: UUID, folder: Path) -> None:
        self.installation = installation
        self.folder = folder
        self.host_id = uuid4()

    def machines(self, installation: UUID | None = None, host_id: UUID | None = None) -> Machines:
        """The port of this owner, or of another."""
        raise NotImplementedError

    def images(self) -> Images:
        """Images of this owner's host."""
        raise NotImplementedError


class DockerSite(Site):
    backend = "docker"

    def machines(self, installation: UUID | None = None, host_id: UUID | None = None) -> DockerMachines:
        return DockerMachines(
            engine.SOCKET,
            installation=installation or self.installation,
            host_id=host_id or self.host_id,
            publish_address="127.0.0.1",
        )

    def images(self) -> DockerImages:
        return DockerImages(engine.SOCKET, brought=Brought(self.folder), fetch=no_blobs, allow=LOOPBACK)


class SimulatedSite(Site):
    backend = "simulated"

    def __init__(self, installation: UUID, folder: Path, url: str) -> None:
        super().__init__(installation, folder)
        self.url = url

    def machines(self, installation: UUID | None = None, host_id: UUID | None = None) -> SimulatedMachines:
        return SimulatedMachines(
            self.url,
            installation=installation or self.installation,
            host_id=host_id or self.host_id,
            host_name="one",
        )

    def images(self) -> SimulatedImages:
        return SimulatedImages(self.url, host_name="one", brought=Brought(self.folder))


def no_blobs(digest: str, *_: object) -> None:
    raise AssertionError(f"nobody has {digest}")


def spec(**more: object) -> MachineSpec:
    """A small machine with no ports."""
    known = {"id": uuid4(), "project_id": uuid4(), "generation": 1, "name": "web", "image": engine.IMAGE}
    return MachineSpec.model_validate(known | {"vcpus": 1, "memory_mb": 64} | more)


def free_port() -> int:
    return ports.choose("127.0.0.1", set(), PORTS)


def never() -> bool:
    """Nobody cancels."""
    return False


def simulator_process(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A simulated engine that keeps its state in ``folder``, and its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    environ = [f"CAIRN_SIMULATOR_URL={url}", f"CAIRN_SIMULATOR_DATA={folder}"]
    process = child(["env", *environ, str(Path(sys.executable).with_name("cairn-simulator"))], folder / "log")
    assert until(lambda: _answers(url)), (folder / "log").read_text()
    return process, url


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a simulated engine."""
    process, url = simulator_process(tmp_path_factory.mktemp("simulator"))
    yield url
    process.terminate()
    process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/hosts/one/machines").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(params=["simulated", pytest.param("docker", marks=pytest.mark.engine)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """One engine, emptied of what the test made there."""
    installation = uuid4()
    if request.param == "docker":
        made: Site = DockerSite(installation, tmp_path)
    else:
        made = SimulatedSite(installation, tmp_path, request.getfixturevalue("simulator"))
    yield made
    for machine in made.machines().inventory():
        made.machines().delete(machine.id)
