"""Cache volumes on a real disk and a real engine: shared, emptied under those who use them, gone; and what strangers
who are root in one may try meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from drivers import cache_trees
from drivers.cache_trees import CacheTrees
from drivers.docker import DockerMachines
from drivers.docker_streams import DockerStreams
from drivers.machines import Cancelled
from model.base import new_id
from model.cache_volumes import CacheMount, CacheSpec
from model.errors import EngineUnavailable
from model.instances import MachineSpec
from model.sessions import IDLE
from tests.drivers.conftest import never
from tests.stack import IMAGE
from worker.engine import SOCKET

pytestmark = pytest.mark.engine
WHERE = "/root/.cache/pip"


class Host:
    def __init__(self, folder: Path) -> None:
        owner: dict[str, Any] = {"installation": new_id(), "host_id": new_id()}
        self.folder = folder
        self.caches = CacheTrees(folder)
        self.machines = DockerMachines(SOCKET, **owner, publish_address="127.0.0.1", caches=self.caches)
        self.streams = DockerStreams(SOCKET, **owner)
        self.made: list[UUID] = []

    def launch(self, cache: CacheSpec, **more: Any) -> MachineSpec:
        spec = MachineSpec(
            id=new_id(),
            project_id=cache.project_id,
            generation=1,
            name="sandbox",
            image=IMAGE,
            vcpus=1,
            memory_mb=64,
            cmd=IDLE,
            caches=[CacheMount(id=cache.id, path=WHERE)],
        )
        self.made.append(spec.id)
        self.machines.create(spec)
        self.start(spec)
        return spec

    def start(self, spec: MachineSpec) -> None:
        self.caches.ready(spec)
        self.machines.start(spec.id, never)

    def run(self, spec: MachineSpec, command: str) -> str:
        made = self.streams.run(spec.id, ["/bin/sh", "-c", command], timeout_seconds=20)
        said = b"".join(output.data for output in made).decode()
        assert made.exit_code() == 0, said
        return said

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "trees")
    made.folder.mkdir()
    yield made
    for id in made.made:
        made.machines.delete(id)


@pytest.fixture
def cache() -> CacheSpec:
    return CacheSpec(id=new_id(), project_id=new_id())


def test_two_sandboxes_share_one_which_is_emptied_under_them_kept_by_restarts_and_removed(
    host: Host, cache: CacheSpec
) -> None:
    one, two = host.launch(cache), host.launch(cache)
    host.run(one, f"mkdir -p {WHERE}/http/a && echo wheel > {WHERE}/http/a/w && chmod 600 {WHERE}/http/a/w")
    assert host.run(two, f"cat {WHERE}/http/a/w; stat -c '%u %g %a' {WHERE}") == "wheel\n0 0 777\n"
    # What one of them does to the folder itself lasts no longer than until another starts.
    host.run(two, f"chown 1:1 {WHERE}; chmod 700 {WHERE}")
    host.machines.stop(one.id, 0, never)
    host.start(one)
    assert host.run(one, f"cat {WHERE}/http/a/w; stat -c '%u %a' {WHERE}") == "wheel\n0 777\n"

    for _ in range(2):
        host.caches.clear(cache)
        assert host.run(two, f"ls -A {WHERE}; echo new > {WHERE}/new") == ""
    host.caches.clear(cache)
    assert host.run(one, f"ls -A {WHERE}; echo again > {WHERE}/x") == ""
    assert host.run(two, f"cat {WHERE}/x") == "again\n"
    assert host.left() == [f"caches{end}" for end in ("", f"/{cache.project_id}", _path(cache), f"{_path(cache)}/x")]

    # One that is forced, under a sandbox that nobody has stopped yet.
    for _ in range(2):
        host.caches.remove(cache)
    assert host.left() == ["caches"] and host.caches.found() == []
    assert "nonexistent" in host.run(two, f"echo x > {WHERE}/y 2>&1 || true")
    # A container that starts again has it again, empty.
    host.machines.stop(two.id, 0, never)
    host.start(two)
    assert host.run(two, f"ls -A {WHERE}; echo y > {WHERE}/y") == ""
    assert host.caches.held() == [(cache.id, cache.project_id)]
    host.caches.forget(cache.id)
    assert host.left() == ["caches"]


def test_a_sandbox_is_not_made_where_its_agent_keeps_none(host: Host, cache: CacheSpec) -> None:
    plain = DockerMachines(SOCKET, installation=new_id(), host_id=new_id(), publish_address="127.0.0.1")
    spec = host.launch(cache).model_copy(update={"id": new_id()})
    with pytest.raises(EngineUnavailable, match="keeps no cache volumes"):
        plain.create(spec)


def _path(cache: CacheSpec) -> str:
    return f"/{cache.project_id}/{cache.id}"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What is none of a cache's business."""
    folder = tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "precious").write_text("kept")
    return folder


def fill(folder: Path, outside: Path) -> None:
    """Whatever can be made in a folder."""
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to("../../../outside/sub")
    (folder / "loop").symlink_to("loop")
    (folder / "-rf").write_text("x")
    (folder / "a\nb").mkdir()
    (folder / "a\nb" / "link").symlink_to(outside / "sub")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "socket", 0o600 | stat.S_IFSOCK)
    os.link(outside / "sub" / "precious", folder / "hard")
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_text("x")
    (folder / "closed").chmod(0)


@pytest.mark.parametrize("act", ["clear", "remove"])
def test_no_link_is_followed_and_nothing_else_is_touched(host: Host, cache: CacheSpec, outside: Path, act: str) -> None:
    neighbour = CacheSpec(id=new_id(), project_id=cache.project_id)
    (host.caches.make(neighbour) / "kept").write_text("x")
    fill(host.caches.make(cache), outside)
    getattr(host.caches, act)(cache)
    assert [path.name for path in outside.rglob("*")] == ["sub", "precious"]
    assert (outside / "sub" / "precious").read_text() == "kept"
    assert (host.caches.make(neighbour) / "kept").exists()
    assert (host.folder / "caches" / str(cache.project_id) / str(cache.id)).exists() is (act == "clear")
    assert os.listdir(host.caches.make(cache)) == []


def test_a_folder_in_the_place_of_which_a_link_is_is_not_entered(host: Host, cache: CacheSpec, outside: Path) -> None:
    folder = host.caches.make(cache)
    folder.rmdir()
    folder.symlink_to(outside)
    with pytest.raises(EngineUnavailable):
        host.caches.make(cache)
    host.caches.clear(cache)
    host.caches.remove(cache)
    assert (outside / "sub" / "precious").exists() and host.left() == ["caches"]


def test_who_swaps_folders_for_links_meanwhile_gains_nothing(host: Host, cache: CacheSpec, outside: Path) -> None:
    folder = host.caches.make(cache)
    stop = threading.Event()

    def attack() -> None:
        """In the cache, and in what was taken aside of it, as who is in a folder of it may go on to."""
        turn = 0
        while not stop.is_set():
            turn += 1
            for base in [folder, *folder.parent.glob(f".{cache.id}.*")]:
                with contextlib.suppress(OSError):
                    one, link = base / f"d{turn % 7}", base / "link"
                    os.makedirs(one / "deep" / "deeper", exist_ok=True)
                    link.symlink_to(outside)
                    one.rename(base / f"moved{turn % 5}")
                    link.rename(one)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(8):
            with contextlib.suppress(EngineUnavailable, Cancelled):
                late = time.monotonic() + 0.3
                host.caches.clear(cache, lambda late=late: time.monotonic() > late)  # type: ignore[misc]
    finally:
        stop.set()
        attacker.join()
    assert (outside / "sub" / "precious").read_text() == "kept"
    host.caches.remove(cache)
    assert host.left() == ["caches"]


def test_what_is_too_deep_for_a_path_or_for_a_stack_goes_too(host: Host, cache: CacheSpec) -> None:
    descriptor = os.open(host.caches.make(cache), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 50, dir_fd=descriptor)
        deeper = os.open("d" * 50, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    host.caches.clear(cache)
    assert host.left() == [f"caches{end}" for end in ("", f"/{cache.project_id}", _path(cache))]


def test_it_can_be_called_off_and_goes_on_where_it_was(host: Host, cache: CacheSpec) -> None:
    folder = host.caches.make(cache)
    for number in range(50):
        (folder / str(number)).mkdir()
        (folder / str(number) / "file").touch()
    looks = iter(range(1000))
    with pytest.raises(Cancelled):
        host.caches.clear(cache, lambda: next(looks) > 70)
    # Nobody sees any of it, though it is not deleted yet.
    assert os.listdir(folder) == [] and len(os.listdir(folder.parent)) == 2
    (folder / "new").touch()
    # As after a death of the agent.
    again = CacheTrees(host.folder)
    again.tidy()
    assert os.listdir(folder.parent) == [str(cache.id)] and os.listdir(folder) == ["new"]
    looks = iter(range(1000))
    (folder / "more").mkdir()
    with pytest.raises(Cancelled):
        again.remove(cache, lambda: next(looks) > 0)
    assert again.found() == []
    again.remove(cache)
    assert host.left() == ["caches"]


def test_what_is_mounted_in_it_is_left_alone_and_named(host: Host, cache: CacheSpec, outside: Path) -> None:
    folder = host.caches.make(cache)
    (folder / "mounted").mkdir()
    subprocess.run(["mount", "--bind", str(outside), str(folder / "mounted")], check=True)
    try:
        with pytest.raises(EngineUnavailable, match="something is mounted"):
            host.caches.clear(cache)
        with pytest.raises(EngineUnavailable, match="something is mounted"):
            host.caches.remove(cache)
        assert (outside / "sub" / "precious").exists()
        # What was set aside of another goes all the same.
        other = CacheSpec(id=new_id(), project_id=cache.project_id)
        aside = folder.parent / f".{other.id}.x"
        aside.mkdir()
        host.caches.tidy()
        assert not aside.exists()
    finally:
        for point in folder.parent.glob("**/mounted"):
            subprocess.run(["umount", str(point)], check=False, stderr=subprocess.DEVNULL)
    host.caches.remove(cache)
    assert host.left() == ["caches"] and (outside / "sub" / "precious").exists()


def test_several_at_once_make_and_remove_without_getting_in_each_others_way(
    host: Host, cache: CacheSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_trees, "_TRIES", 1000)
    errors: list[BaseException] = []

    def work(act: str) -> None:
        try:
            for _ in range(40):
                if act == "make":
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        (host.caches.make(cache) / "file").touch()
                else:
                    getattr(host.caches, act)(cache)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(act,)) for act in ("make", "make", "clear", "remove", "remove")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    host.caches.remove(cache)
    assert host.left() == ["caches"]
    shutil.rmtree(host.folder / "caches")
    # The sweep of an agent goes on all the time: nothing is left in what was emptied for that.
    stop = threading.Event()

    def tidy() -> None:
        while not stop.is_set():
            host.caches.tidy()

    sweeping = [threading.Thread(target=tidy) for _ in range(2)]
    for thread in sweeping:
        thread.start()
    try:
        for _ in range(150):
            folder = host.caches.make(cache)
            (folder / "file").touch()
            (folder / "folder").mkdir()
            host.caches.clear(cache)
            assert os.listdir(folder) == []
    finally:
        stop.set()
        for thread in sweeping:
            thread.join()
    shutil.rmtree(host.folder / "caches")
    # Nothing was ever there.
    host.caches.clear(cache)
    host.caches.remove(cache)
    host.caches.tidy()
    assert host.caches.held() == [] and host.left() == []
