"""What the Docker image driver promises, on the real engine and a registry that counts."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import docker
import docker.errors
import pytest

from drivers.docker import DockerMachines
from drivers.machines import Cancelled
from model.errors import ImageNotFound, RegistryBusy
from model.images import ImageWanted
from tests.drivers.conftest import never, spec
from tests.engines.conftest import image_driver, remove_all
from tests.registry import Registry

pytestmark = pytest.mark.engine
BUSYBOX = "/bin/busybox"


@pytest.fixture
def registry(sdk: docker.APIClient) -> Iterator[Registry]:
    """An empty one; what was pulled from it goes with it."""
    made = Registry()
    yield made
    made.close()
    for image in sdk.images(all=True):
        names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
        if any(name.startswith(made.host) for name in names):
            with contextlib.suppress(docker.errors.APIError):
                sdk.remove_image(image["Id"], force=True)


def wanted(registry: Registry, name: str = "web", tag: str = "1", digest: str | None = None) -> ImageWanted:
    return ImageWanted(reference=f"{registry.host}/{name}:{tag}", digest=digest)


def test_pull_says_what_it_brought(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push("web", {"run": b"one"}, "1")
    found = image_driver(tmp_path).ensure(wanted(registry), never)
    assert found.digest == digest
    assert found.size_bytes == 3
    assert image_driver(tmp_path).ensure(wanted(registry), never) == found
    assert registry.pulls() == 1


def test_tag_that_moves_does_not_move_what_was_pinned(
    registry: Registry, machines: DockerMachines, sdk: docker.APIClient, tmp_path: Path
) -> None:
    first = registry.push("web", {"run": b"one"}, "1")
    images = image_driver(tmp_path)
    images.ensure(wanted(registry), never)
    second = registry.push("web", {"run": b"two"}, "1")
    sdk.pull(f"{registry.host}/web", tag="1")
    pinned = wanted(registry, digest=first)
    assert images.ensure(pinned, never).digest == first
    assert images.ensure(wanted(registry), never).digest == second
    machine = spec(image=pinned.reference, image_digest=first)
    made = machines.create(machine)
    found = sdk.inspect_container(made)
    assert found["Config"]["Image"] == f"{registry.host}/web@{first}"
    assert sdk.inspect_image(found["Image"])["RepoDigests"] == [f"{registry.host}/web@{first}"]
    remove_all(machines)


def test_another_host_pulls_by_digest(registry: Registry, tmp_path: Path) -> None:
    """Although the tag leads elsewhere by now."""
    first = registry.push("web", {"run": b"one"}, "1")
    registry.push("web", {"run": b"two"}, "1")
    assert image_driver(tmp_path).ensure(wanted(registry, digest=first), never).digest == first


def test_twenty_at_once_pull_once(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    registry.delay = 0.3
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda _: image_driver(tmp_path).ensure(wanted(registry), never), range(20)))
    assert len({image.digest for image in found}) == 1
    assert registry.pulls() == 1


def test_two_processes_at_once_pull_once(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    registry.delay = 0.5
    code = (
        "import sys; from pathlib import Path; from tests.engines.conftest import image_driver\n"
        "from model.images import ImageWanted\n"
        "image_driver(Path(sys.argv[1])).ensure(ImageWanted(reference=sys.argv[2]), lambda: False)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), wanted(registry).reference]
    processes = [subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": os.getcwd()}) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert registry.pulls() == 1


def test_waiting_for_anothers_pull_can_be_cancelled(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    registry.delay = 3
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(image_driver(tmp_path).ensure, wanted(registry), never)
        time.sleep(0.5)
        began = time.monotonic()
        with pytest.raises(Cancelled):
            image_driver(tmp_path).ensure(wanted(registry), lambda: True)
        assert time.monotonic() - began < 1
        first.result()


def test_missing_image_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    images = image_driver(tmp_path)
    with pytest.raises(ImageNotFound, match="web:1") as refused:
        images.ensure(wanted(registry), never)
    assert not refused.value.retryable
    assert images.collect(dt.timedelta(0), never) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_busy_registry_is_asked_again_when_it_said(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    registry.busy_until, registry.retry_after = time.monotonic() + 2, 2
    images = image_driver(tmp_path)
    asked = wanted(registry)
    with pytest.raises(RegistryBusy) as refused:
        images.ensure(asked, never)
    assert refused.value.retryable
    assert refused.value.details["retry_after_seconds"] == 2
    before = sum(registry.requests.values())
    with pytest.raises(RegistryBusy):
        images.ensure(asked, never)
    assert sum(registry.requests.values()) == before, "the others leave it alone too"
    time.sleep(2.1)
    assert images.ensure(asked, never).digest


def test_busy_registry_that_says_no_time_is_left_alone_for_a_while(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    registry.busy_until, registry.retry_after = time.monotonic() + 60, None
    with pytest.raises(RegistryBusy) as refused:
        image_driver(tmp_path).ensure(wanted(registry), never)
    assert refused.value.details["retry_after_seconds"] == 30


def test_cancel_of_a_pull_from_a_silent_registry_acts_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        image = ImageWanted(reference=f"127.0.0.1:{silent.getsockname()[1]}/web:latest")
        began = time.monotonic()
        with pytest.raises(Cancelled):
            image_driver(tmp_path).ensure(image, lambda: time.monotonic() - began > 1)
        assert time.monotonic() - began < 5


def test_only_what_was_brought_and_is_unused_goes(
    registry: Registry, machines: DockerMachines, sdk: docker.APIClient, tmp_path: Path
) -> None:
    for name in ("foreign", "used", "unused"):
        registry.push(name, {"run": name.encode()}, "1")
    sdk.pull(f"{registry.host}/foreign", tag="1")
    images = image_driver(tmp_path)
    for name in ("foreign", "used", "unused"):
        images.ensure(wanted(registry, name), never)
    machine = spec(image=wanted(registry, "used").reference, id=uuid4())
    machines.create(machine)
    kept = images.collect(dt.timedelta(days=14), never)
    assert sorted(image.reference for image in kept) == [wanted(registry, n).reference for n in ("unused", "used")]
    kept = images.collect(dt.timedelta(0), never)
    assert [image.reference for image in kept] == [wanted(registry, "used").reference]
    here = {tag for image in sdk.images() for tag in image["RepoTags"] or [] if tag.startswith(registry.host)}
    assert here == {wanted(registry, name).reference for name in ("foreign", "used")}
    machines.delete(machine.id)
    assert images.collect(dt.timedelta(0), never) == []
