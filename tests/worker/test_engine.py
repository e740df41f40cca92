"""The engine and the base image on it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path
from uuid import uuid4

import docker
import docker.errors
import pytest

from drivers.brought import Brought, brought_folder
from model.settings import Settings
from worker import busybox, engine
from worker.data_folder import StackError


def test_root_file_system_is_a_static_program_and_links_to_it(tmp_path: Path) -> None:
    program = busybox.find(tmp_path)
    assert busybox.is_static(program)
    with tarfile.open(fileobj=io.BytesIO(busybox.root_archive(program))) as archive:
        assert archive.getmember("bin/busybox").mode == 0o755
        assert archive.getmember("bin/sh").linkname == "busybox"
        assert archive.getmember("tmp").mode == 0o1777
        page = archive.extractfile("www/index.html")
        assert page
        assert b"Cairn" in page.read()


def test_program_with_libraries_or_a_script_is_not_static(tmp_path: Path) -> None:
    assert not busybox.is_static(Path("/bin/ls"))
    script = tmp_path / "busybox"
    script.write_text("#!/bin/sh\n")
    assert not busybox.is_static(script)


def test_engine_that_was_named_is_never_replaced_by_another(tmp_path: Path) -> None:
    settings = Settings(docker_host=f"unix://{tmp_path}/none.sock")
    with pytest.raises(StackError, match=r"none\.sock.*CAIRN_DOCKER_HOST"):
        engine.ensure(settings, lambda _: pytest.fail("something was changed"))
    with pytest.raises(StackError, match=r"other\.sock"):
        engine.ensure(Settings(), pytest.fail, {"DOCKER_HOST": f"unix://{tmp_path}/other.sock"})


def test_nothing_is_installed_where_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SOCKET", f"unix://{tmp_path}/none.sock")
    with pytest.raises(StackError, match="CAIRN_INSTALL_ENGINE"):
        engine.ensure(Settings(install_engine=False), pytest.fail, {})


def test_missing_programs_are_installed_by_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SYSTEM_FOLDERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("apt-get", "ip"):
        (tmp_path / name).touch(0o755)
    assert engine.missing_programs() == {"iptables": "iptables"}
    engine.ensure_programs(Settings(install_engine=False), pytest.fail)
    assert asked == []
    engine.ensure_programs(Settings(), print)
    assert asked[-1][-1] == "iptables"
    (tmp_path / "iptables").touch(0o755)
    asked.clear()
    engine.ensure_programs(Settings(), pytest.fail)
    assert asked == []


def test_pid_file_of_a_dead_daemon_is_forgotten_and_of_a_living_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "docker.pid"
    file.write_text("999999999")
    engine._forget_dead(file, "dockerd")
    assert not file.exists()
    file.write_text("1")
    engine._forget_dead(file, Path("/proc/1/comm").read_text().strip())
    assert file.exists()


@pytest.mark.engine
class TestOnAnEngine:
    @pytest.fixture
    def url(self) -> str:
        return engine.ensure(Settings(), print)

    def test_base_image_is_made_once(self, url: str) -> None:
        engine.ensure_base_image(url, print)
        engine.ensure_base_image(url, lambda line: pytest.fail(f"made again: {line}"))
        client = docker.DockerClient(base_url=url)
        assert client.containers.run(engine.IMAGE, ["cat", "/www/index.html"], remove=True).startswith(b"<!doctype")
        client.close()

    def test_only_images_that_this_data_folder_brought_are_forgotten(self, url: str, tmp_path: Path) -> None:
        host = uuid4()
        ours, theirs, simulated = (f"cairn/{uuid4()}:0123456789ab" for _ in range(3))
        Brought(brought_folder(tmp_path / "agents", host)).note(ours)
        Brought(brought_folder(tmp_path / "agents", host)).note(engine.IMAGE)
        Brought(brought_folder(tmp_path / "agents", uuid4())).note(simulated)
        client = docker.DockerClient(base_url=url)
        for name in (ours, theirs, simulated):
            assert client.images.get(engine.IMAGE).tag(*name.split(":"))
        try:
            assert engine.brought_images(url, tmp_path, host) == [ours]
            engine.forget_images(url, [ours, ours])
            assert engine.brought_images(url, tmp_path, host) == []
            assert client.images.list(name=theirs) and client.images.list(name=engine.IMAGE)
        finally:
            for name in (theirs, simulated):
                client.images.remove(name)
            client.close()

    def test_only_this_installations_containers_are_removed(self, url: str) -> None:
        engine.ensure_base_image(url, print)
        client = docker.DockerClient(base_url=url)
        ours, theirs = str(uuid4()), str(uuid4())
        made = []

        def run(whose: str, name: str | None = None) -> str:
            machine = str(uuid4())
            container = client.containers.run(
                engine.IMAGE,
                detach=True,
                name=name or f"cairn-instance-{machine}",
                labels={"io.cairn.installation": whose, "io.cairn.id": machine},
                network_mode="none",
            )
            made.append(container)
            return str(container.name)

        try:
            mine, stranger = run(ours), run(theirs)
            copy = run(ours, f"copy-{uuid4()}")  # of an image that somebody made of one of ours
            assert engine.owned_containers(url, ours) == [mine]
            engine.remove_containers(url, engine.owned_containers(url, ours))
            assert engine.owned_containers(url, ours) == []
            assert engine.owned_containers(url, theirs) == [stranger]
            assert client.containers.get(copy).name == copy
        finally:
            for container in made:
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True)
            client.close()
