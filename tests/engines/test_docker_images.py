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
from uuid import UUID, uuid4

import docker
import docker.errors
import pytest
import structlog.testing

from drivers import docker_pull
from drivers.docker import DockerMachines
from drivers.locks import alone, of_engine
from drivers.machines import Cancelled
from model.errors import EngineUnavailable, ImageNotFound, RegistryBusy, UrlRefused
from model.images import CachedImage, ImageWanted
from tests.drivers.conftest import never, spec
from tests.engines.conftest import image_driver, remove_all
from tests.registry import Registry
from worker import engine

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
    assert found["Config"]["Labels"]["io.cairn.image-name"] == f"{registry.host}/web@{first}"
    assert found["Config"]["Image"] == found["Image"]
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
        assert time.monotonic() - began < 2
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
    registry.busy_until, registry.retry_after = time.monotonic() + 60, 3
    images = image_driver(tmp_path)
    asked = wanted(registry)
    with pytest.raises(RegistryBusy) as refused:
        images.ensure(asked, never)
    assert refused.value.retryable
    assert refused.value.details["retry_after_seconds"] == 3
    before = sum(registry.requests.values())
    with pytest.raises(RegistryBusy):
        images.ensure(asked, never)
    assert sum(registry.requests.values()) == before, "the others leave it alone too"
    registry.busy_until = 0
    time.sleep(3.1)
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
    brought = {wanted(registry, name).reference for name in ("foreign", "used", "unused")}
    here = {tag for image in sdk.images() for tag in image["RepoTags"] or []}
    assert here & brought == {wanted(registry, name).reference for name in ("foreign", "used")}
    machines.delete(machine.id)
    assert images.collect(dt.timedelta(0), never) == []


def test_beginning_of_an_id_is_no_name(
    registry: Registry, machines: DockerMachines, sdk: docker.APIClient, tmp_path: Path
) -> None:
    """The engine would run anybody's image by it."""
    registry.push("web", {"run": b"one"}, "1")
    images = image_driver(tmp_path)
    images.ensure(wanted(registry), never)
    id = sdk.inspect_image(wanted(registry).reference)["Id"].removeprefix("sha256:")
    for name in (id[:6], id[:12], f"{registry.host}/web:{id[:12]}", f"{registry.host}/web@sha256:{id}"):
        assert images.find(ImageWanted(reference=name)) is None
        with pytest.raises(ImageNotFound):
            machines.create(spec(image=name))
    assert machines.inventory() == []


@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/"])
def test_image_of_the_blob_store_is_had_by_no_reference(
    machines: DockerMachines, sdk: docker.APIClient, tmp_path: Path, prefix: str
) -> None:
    name = f"cairn/{uuid4()}"
    sdk.tag(engine.IMAGE, name, "0123456789ab")
    images = image_driver(tmp_path)
    try:
        digest = f"sha256:{'0123456789ab'.ljust(64, '0')}"
        known = spec(image=f"{name}:0123456789ab", image_digest=digest, image_format="docker-archive")
        assert images.find(known.wanted_image) is not None
        machines.create(known)
        stranger = spec(image=f"{prefix}{name}:0123456789ab")
        for call in (lambda: images.ensure(stranger.wanted_image, never), lambda: machines.create(stranger)):
            with pytest.raises(ImageNotFound):
                call()
    finally:
        remove_all(machines)
        sdk.remove_image(f"{name}:0123456789ab")


@pytest.mark.parametrize("reference", ["cairn/base:latest", "cairn/base", "docker.io/cairn/base"])
def test_image_that_was_built_on_the_engine_goes_by_its_full_name(
    machines: DockerMachines, tmp_path: Path, reference: str
) -> None:
    machine = spec(image=reference)
    assert image_driver(tmp_path).ensure(machine.wanted_image, never).digest is None
    machines.create(machine)
    (found,) = machines.inventory()
    assert found.image == reference


def test_registry_that_is_not_public_is_not_asked(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push("web", {"run": b"one"}, "1")
    port = registry.host.rpartition(":")[2]
    strict = image_driver(tmp_path, allow=[])
    for host in (registry.host, f"localhost:{port}", f"2130706433:{port}", "169.254.169.254", "10.0.0.1:5000"):
        with pytest.raises(UrlRefused):
            strict.ensure(ImageWanted(reference=f"{host}/web:1"), never)
    assert registry.requests.total() == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    image_driver(tmp_path).ensure(wanted(registry), never)
    assert strict.ensure(wanted(registry), never).digest == digest, "what is there is used"


def test_answer_of_a_registry_is_told_to_nobody(registry: Registry, tmp_path: Path) -> None:
    registry.refusal = b'{"errors": [{"code": "UNKNOWN", "message": "the secret of the inside"}]}'
    for status in (401, 403, 404, 500, 502):
        registry.status = status
        with pytest.raises((ImageNotFound, EngineUnavailable)) as refused:
            image_driver(tmp_path).ensure(wanted(registry), never)
        said = refused.value.message.replace(registry.host, "")
        assert "secret" not in said
        assert str(status) not in said


def test_registry_that_drips_is_given_up(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push("web", {"run": os.urandom(4 << 20)}, "1")
    registry.drip = 40 << 10
    monkeypatch.setattr(docker_pull, "RATE_SECONDS", 3.0)
    monkeypatch.setattr(docker_pull, "LEAST_RATE", 1 << 20)
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match="sends less than"):
        image_driver(tmp_path).ensure(wanted(registry), never)
    assert time.monotonic() - began < 15


def test_image_that_is_used_at_that_moment_is_not_collected(
    registry: Registry, sdk: docker.APIClient, tmp_path: Path
) -> None:
    """The use comes after the collector has read when the image was used last, and before it has the image's lock."""
    registry.push("web", {"run": b"one"}, "1")
    images = image_driver(tmp_path)
    images.ensure(wanted(registry), never)
    brought = images._brought
    for image in brought.all():
        os.utime(brought._path(image.reference), (1, 1))
    listed = brought.all
    used: list[object] = []

    def all_and_then_a_use() -> list[CachedImage]:
        found = listed()
        used.append(image_driver(tmp_path).ensure(wanted(registry), never))
        return found

    brought.all = all_and_then_a_use  # type: ignore[method-assign]
    (kept,) = images.collect(dt.timedelta(days=1), never)
    assert (kept.reference, len(used)) == (wanted(registry).reference, 1)
    assert sdk.inspect_image(wanted(registry).reference)


def test_image_that_is_being_removed_is_not_found(registry: Registry, tmp_path: Path) -> None:
    registry.push("web", {"run": b"one"}, "1")
    images = image_driver(tmp_path)
    images.ensure(wanted(registry), never)
    with alone(of_engine(engine.SOCKET, wanted(registry).reference), never):
        assert images.find(wanted(registry)) is None
    assert images.find(wanted(registry)) is not None


LOGIN = {"username": "me", "password": "planted:7fK2qP9sV4xT"}


def as_project(image: ImageWanted, project: UUID) -> ImageWanted:
    return image.model_copy(update={"project_id": project})


def test_image_of_a_registry_that_asks_for_a_login(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.login = ":".join(LOGIN.values())
    digest = registry.push("web", {"run": b"one"}, "1")
    images, mine = image_driver(tmp_path), as_project(wanted(registry), uuid4())
    with structlog.testing.capture_logs() as said, caplog.at_level("DEBUG"):
        for login, why in ((None, "without a login"), (lambda: LOGIN | {"password": "x"}, "who has this login")):
            with pytest.raises(ImageNotFound, match=why) as refused:
                images.ensure(mine, never, login)
            assert not refused.value.retryable
        assert images.ensure(mine, never, lambda: LOGIN).digest == digest
    assert images.find(mine) is not None
    for text in (str(said), caplog.text, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())):
        assert LOGIN["password"] not in text


def test_what_came_with_a_login_is_there_for_those_alone_who_have_one(registry: Registry, tmp_path: Path) -> None:
    """Also by its digest, whose manifest and layers the engine has, and by another tag."""
    registry.login = ":".join(LOGIN.values())
    digest = registry.push("web", {"run": b"one"}, "1")
    images, owner, other = image_driver(tmp_path), uuid4(), uuid4()
    images.ensure(as_project(wanted(registry), owner), never, lambda: LOGIN)
    by_digest = ImageWanted(reference=f"{registry.host}/web@{digest}")
    forms = (wanted(registry), wanted(registry, digest=digest), by_digest)
    for form in forms:
        for stranger in (form, as_project(form, other)):
            assert images.find(stranger) is None
            with pytest.raises(ImageNotFound):
                images.ensure(stranger, never)
            with pytest.raises(ImageNotFound):
                images.ensure(stranger, never, lambda: LOGIN | {"password": "guessed"})
        assert images.ensure(as_project(form, owner), never).digest == digest
    assert images.ensure(as_project(wanted(registry), other), never, lambda: LOGIN).digest == digest
    assert images.find(as_project(by_digest, other)) is not None, "its registry has shown it"
    # What was marked for a login is there for everybody again whom its registry lets.
    registry.login = None
    assert images.ensure(as_project(wanted(registry), uuid4()), never).digest == digest


def test_image_that_was_there_before_is_not_brought_by_a_look(
    registry: Registry, sdk: docker.APIClient, tmp_path: Path
) -> None:
    registry.login = ":".join(LOGIN.values())
    for tag in ("1", "2"):
        registry.push("web", {"run": tag.encode()}, tag)
    sdk.pull(f"{registry.host}/web", tag="1", auth_config=LOGIN)
    images, owner = image_driver(tmp_path), uuid4()
    images.ensure(as_project(wanted(registry, tag="2"), owner), never, lambda: LOGIN)
    images.ensure(as_project(wanted(registry), uuid4()), never, lambda: LOGIN)
    kept = images.collect(dt.timedelta(0), never)
    assert kept == []
    assert sdk.inspect_image(wanted(registry).reference)["Id"]
