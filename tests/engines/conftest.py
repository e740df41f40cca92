"""The real Docker engine, and drivers on it for an owner of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from drivers.brought import Brought
from drivers.docker import DockerMachines
from drivers.docker_images import DockerImages, Fetch
from drivers.outbound import Networks
from drivers.ownership import Owner
from tests.drivers.conftest import LOOPBACK, no_blobs
from worker import engine


def driver(
    url: str = engine.SOCKET, *, owner: Owner | None = None, publish_address: str = "127.0.0.1"
) -> DockerMachines:
    owner = owner or Owner(installation=uuid4(), host_id=uuid4())
    return DockerMachines(url, installation=owner.installation, host_id=owner.host_id, publish_address=publish_address)


def image_driver(
    folder: Path, url: str = engine.SOCKET, *, fetch: Fetch = no_blobs, allow: Networks = LOOPBACK
) -> DockerImages:
    return DockerImages(url, brought=Brought(folder), fetch=fetch, allow=allow)


def remove_all(machines: DockerMachines) -> None:
    for machine in machines.inventory():
        machines.delete(machine.id)


@pytest.fixture
def machines() -> Iterator[DockerMachines]:
    made = driver()
    yield made
    remove_all(made)


@pytest.fixture
def sdk() -> Iterator[docker.APIClient]:
    """The engine itself, past the driver."""
    client = docker.APIClient(engine.SOCKET, timeout=30)
    yield client
    client.close()
