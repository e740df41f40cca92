"""What users are promised of images, on a whole platform."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import time
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.folders import below
from tests.registry import Registry, registry_for, tar_of
from tests.stack import IMAGE, Json, Stack, wait_for

pytestmark = pytest.mark.engine
ALL = os.environ.get("CAIRN_CHAOS") == "all"


@pytest.fixture
def registry(docker_engine: docker.DockerClient) -> Iterator[Registry]:
    with registry_for(docker_engine) as made:
        yield made


@pytest.fixture(scope="module")
def saved() -> bytes:
    """What ``docker save`` says of the base image."""
    client = docker.DockerClient(timeout=30)
    return b"".join(client.images.get(IMAGE).save(named=True))


@pytest.fixture(scope="module")
def exported() -> bytes:
    """Its root file system."""
    client = docker.DockerClient(timeout=30)
    made = client.containers.create(IMAGE)
    try:
        content = BytesIO(b"".join(made.export()))
    finally:
        made.remove()
    out = BytesIO()
    with tarfile.open(fileobj=content) as old, tarfile.open(fileobj=out, mode="w") as new:
        for entry in old:
            if not (entry.ischr() or entry.isblk()):
                new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
    return out.getvalue()


def create(stack: Stack, source: Json) -> Json:
    return stack.accept("POST", "/images", {"name": f"i-{uuid.uuid4().hex[:12]}", "source": source})


def upload(stack: Stack, content: Any, **source: Any) -> Json:
    made = create(stack, {"type": "upload"} | source)
    answer = stack.request("POST", f"/images/{made['data']['id']}/upload", content=content, timeout=300)
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()
    return found


def image_of(stack: Stack, accepted: Json) -> Json:
    found: Json = stack.get(f"/images/{accepted['data']['id']}")
    return found


def remove(stack: Stack, accepted: Json) -> None:
    stack.delete_all()
    stack.completed(stack.accept("DELETE", f"/images/{accepted['data']['id']}"))


def files(stack: Stack) -> list[str]:
    return sorted(path.name for path in below(stack.data / "blobs") if path.is_file())


def forget(docker_engine: docker.DockerClient, image: Json) -> None:
    for found in docker_engine.api.images():
        for tag in found["RepoTags"] or []:
            if image["id"] in tag:
                docker_engine.images.remove(tag, force=True)


@pytest.mark.parametrize("form", ["docker-archive", "docker-archive, packed", "rootfs-tar"])
def test_uploaded_image_runs(
    stack: Stack, docker_engine: docker.DockerClient, saved: bytes, exported: bytes, form: str
) -> None:
    content = exported if form == "rootfs-tar" else saved
    content = gzip.compress(content) if "packed" in form else content
    before = docker_engine.images.get(IMAGE).id
    accepted = upload(stack, content)
    stack.completed(accepted)
    image = image_of(stack, accepted)
    assert (image["status"], image["format"]) == ("available", form.partition(",")[0])
    assert image["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    instance = stack.running(backend="docker", image=image["name"], cmd=["/bin/busybox", "sleep", "1000"])
    assert (instance["image_id"], instance["image_digest"]) == (image["id"], image["digest"])
    (container,) = stack.containers(instance["id"])
    assert container.labels["io.cairn.image-name"] == f"cairn/{image['id']}:{image['digest'][7:19]}"
    assert image_of(stack, accepted)["hosts"] == [instance["host"]]
    assert docker_engine.images.get(IMAGE).id == before, "its own tags were left out"
    refused = stack.request("DELETE", f"/images/{image['id']}")
    assert refused.json()["error"]["code"] == "in_use"
    remove(stack, accepted)
    assert files(stack) == []
    forget(docker_engine, image)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar_of({"../etc/shadow": b"x"}), "leaves the archive"),
        (tar_of({"/etc/shadow": b"x"}), "absolute path"),
        (b"no archive" * 1000, "neither a tar archive"),
        (gzip.compress(bytes(300 << 20)), "neither|bomb"),
    ],
    ids=["dots", "absolute", "nothing", "bomb"],
)
def test_bad_upload_says_why_and_leaves_the_disk_as_before(stack: Stack, content: bytes, said: str) -> None:
    import re

    accepted = upload(stack, content)
    row = stack.ended(accepted)
    assert (row["state"], row["error"]["code"]) == ("failed", "image_refused")
    image = image_of(stack, accepted)
    assert image["status"] == "error"
    assert re.search(said, image["error"]["message"])
    assert (image["digest"], files(stack)) == (None, [])
    again = stack.request("POST", f"/images/{image['id']}/upload", content=tar_of({"bin/run": b"#!"}))
    stack.completed(again.json())
    assert image_of(stack, accepted)["status"] == "available"
    remove(stack, accepted)


def test_twenty_launches_of_an_uncached_image_are_one_pull(stack: Stack, registry: Registry) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    # Layers that no other test has brought to the engine.
    files = {"bin/busybox": busybox, "only": os.urandom(16)}
    digest = registry.push("web", files, "1", cmd=["/bin/busybox", "sleep", "1000"])
    registry.delay = 1
    launched = [stack.launch(backend="docker", image=f"{registry.host}/web:1", ports=[]) for _ in range(20)]
    for one in launched:
        stack.completed(one, 240)
    assert {stack.instance(one)["image_digest"] for one in launched} == {digest}
    assert registry.pulls() == 1
    registry.push("web", {"bin/busybox": busybox, "new": b"1"}, "1")
    first = stack.instance(launched[0])
    (container,) = stack.containers(first["id"])
    assert container.labels["io.cairn.image-name"] == f"{registry.host}/web@{digest}"


def test_image_of_another_project_is_had_by_no_reference(
    stack: Stack, docker_engine: docker.DockerClient, saved: bytes
) -> None:
    """Neither by what hosts call it, nor by the beginning of its id, which whoever tries may find."""
    accepted = upload(stack, saved)
    stack.completed(accepted)
    image = image_of(stack, accepted)
    instance = stack.running(backend="docker", image=image["name"], cmd=["/bin/busybox", "sleep", "1000"])
    (container,) = stack.containers(instance["id"])
    assert instance["drift"] is None
    id = str(container.attrs["Image"]).removeprefix("sha256:")
    name = f"cairn/{image['id']}"
    for reference in (f"{name}:{image['digest'][7:19]}", f"{name}:{id[:12]}", f"docker.io/{name}:{id[:12]}"):
        body = {"name": "thief", "image": reference, "backend": "docker"}
        assert stack.request("POST", "/instances", json=body).status_code == 422
    # (A reference that is just the beginning of an id is one of a public registry: hosts take it for nothing else.)
    remove(stack, accepted)
    forget(docker_engine, image)


def test_pull_of_a_missing_image(stack: Stack, registry: Registry) -> None:
    accepted = stack.launch(backend="docker", image=f"{registry.host}/missing:1")
    row = stack.ended(accepted)
    assert (row["state"], row["error"]["code"]) == ("failed", "image_not_found")
    assert stack.instance(accepted)["status"] == "error"
    assert stack.containers(accepted["data"]["id"]) == []
    imported = create(stack, {"type": "registry", "reference": f"{registry.host}/missing:1"})
    assert stack.ended(imported)["error"]["code"] == "image_not_found"
    remove(stack, imported)


def test_import_of_a_registry_pins_what_it_found(stack: Stack, registry: Registry) -> None:
    busybox = {"bin/busybox": Path("/bin/busybox").read_bytes()}
    digest = registry.push("web", busybox, "1", cmd=["/bin/busybox", "sleep", "1000"])
    imported = create(stack, {"type": "registry", "reference": f"{registry.host}/web:1"})
    stack.completed(imported)
    image = image_of(stack, imported)
    assert (image["status"], image["digest"], image["format"]) == ("available", digest, None)
    registry.push("web", busybox | {"new": b"1"}, "1")
    instance = stack.running(backend="docker", image=image["id"])
    assert instance["image_digest"] == digest
    remove(stack, imported)


def test_upload_that_dies_with_the_api_leaves_nothing(stack: Stack) -> None:
    made = create(stack, {"type": "upload"})

    def slowly() -> Iterator[bytes]:
        yield bytes(3 << 20)
        wait_for("it is on its way", lambda: files(stack))
        os.kill(stack.pids()["api"], 9)
        time.sleep(0.5)
        yield bytes(1 << 20)

    with pytest.raises(httpx.TransportError):
        stack.request("POST", f"/images/{made['data']['id']}/upload", content=slowly())
    wait_for("the next API has swept", lambda: files(stack) == [], 30)
    stack.wait_for_api()
    assert image_of(stack, made)["status"] == "pending"
    remove(stack, made)


@pytest.mark.chaos
def test_gigabytes_take_no_memory(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    gigabytes = 5 if ALL else 1
    size = gigabytes << 30
    header = tarfile.TarInfo("big")
    header.size = size

    def content() -> Iterator[bytes]:
        yield header.tobuf(tarfile.GNU_FORMAT)
        for _ in range(size >> 20):
            yield bytes(1 << 20)
        yield bytes(1024)

    memory = {name: peak(stack.pids()[name]) for name in ("api", "control_worker")}
    began = time.monotonic()
    accepted = upload(stack, content())
    sent = time.monotonic() - began
    stack.completed(accepted, 400)
    grown = {name: peak(stack.pids()[name]) - was for name, was in memory.items()}
    with capsys.disabled():
        took = time.monotonic() - began
        print(f"\n{gigabytes} GiB: sent in {sent:.0f} s, available after {took:.0f} s; memory grew by {grown} KiB")
    assert max(grown.values()) < 100 << 10
    assert image_of(stack, accepted)["size_bytes"] == size + 1536
    remove(stack, accepted)
    assert files(stack) == []


def peak(pid: int) -> int:
    """The most memory that a process ever had, KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
