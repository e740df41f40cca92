"""Secrets in a container: files that are in the host's memory alone, there before its program, gone with it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest

from drivers import secret_files
from drivers.docker import DockerMachines
from drivers.ownership import Owner
from drivers.secret_files import LEFT_OVER, SecretFiles
from model.errors import EngineRefused, EngineUnavailable
from model.instances import MachineSpec
from tests.drivers.conftest import never, spec
from tests.engines.conftest import remove_all
from tests.engines.test_first_start import run
from tests.services import until
from worker import engine

MEMORY = Path("/dev/shm")  # noqa: S108 - in folders of names that nobody guesses
pytestmark = pytest.mark.engine
VALUE = b"planted-7fK2qP9sV4xT\n\xc3\xa9"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory; what is left in it is a failure."""
    made = MEMORY / f"cairn-test-{uuid4().hex[:12]}"
    yield made
    assert not made.exists(), list(made.rglob("*"))


@pytest.fixture
def machines(folder: Path) -> Iterator[DockerMachines]:
    owner = Owner(installation=uuid4(), host_id=uuid4())
    made = DockerMachines(
        engine.SOCKET,
        installation=owner.installation,
        host_id=owner.host_id,
        publish_address="127.0.0.1",
        secrets_dir=folder,
    )
    yield made
    remove_all(made)


def launch(machines: DockerMachines, wanted: MachineSpec, **values: bytes) -> str:
    made = machines.create(wanted, None, lambda: values)
    machines.give(wanted, values)
    machines.start(wanted.id, never)
    return made


def test_program_finds_its_file_and_its_variable_from_the_beginning(
    machines: DockerMachines, sdk: docker.APIClient, folder: Path
) -> None:
    script = "echo $E > /tmp/e; cat $K_FILE > /tmp/seen; sleep 100"
    wanted = spec(secrets={"K": "file", "E": "env"}, env={"PLAIN": "p"}, cmd=["sh", "-c", script])
    made = launch(machines, wanted, K=VALUE, E=b"of the environment")
    assert until(lambda: run(sdk, made, "cat /tmp/seen") == VALUE.decode())
    assert run(sdk, made, "cat /tmp/e; echo $PLAIN; echo $K") == "of the environment\np\n\n"
    assert (
        run(sdk, made, "stat -c %a /run/secrets/K; ls -A /run/secrets; stat -f -c %T /run/secrets") == "444\nK\ntmpfs\n"
    )
    assert "ead-only" in run(sdk, made, "echo x > /run/secrets/K; rm /run/secrets/K; touch /run/secrets/x")
    assert (folder.stat().st_mode & 0o777) == 0o700
    shown = str(sdk.inspect_container(made))
    assert VALUE.decode()[:20] not in shown
    assert "of the environment" in shown, "as the documentation says"
    machines.delete(wanted.id)


def test_program_of_another_user_reads_it(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(secrets={"K": "file"})
    made = launch(machines, wanted, K=VALUE)
    exec_id = sdk.exec_create(made, ["cat", "/run/secrets/K"], user="1234:1234")["Id"]
    assert sdk.exec_start(exec_id) == VALUE


def test_engine_that_starts_it_again_by_itself_finds_the_file(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(secrets={"K": "file"}, restart_policy="always", cmd=["sh", "-c", "cat /run/secrets/K; sleep 0.6"])
    made = launch(machines, wanted, K=b"once\n")
    assert until(lambda: sdk.logs(made).count(b"once\n") >= 3, 20)


def test_each_start_brings_the_values_of_then_also_after_the_host_lost_its_memory(
    machines: DockerMachines, sdk: docker.APIClient, folder: Path
) -> None:
    wanted = spec(secrets={"K": "file", "L": "file"})
    made = launch(machines, wanted, K=b"1", L=b"1")
    machines.stop(wanted.id, 0, never)
    (there,) = folder.glob(f"*/{wanted.id}.1")
    for file in there.iterdir():
        file.unlink()
    there.rmdir()
    assert launch(machines, wanted, K=b"2", L=b"2") == made, "no other container"
    assert run(sdk, made, "cat /run/secrets/*") == "22"
    machines.give(wanted, {"K": b"3", "L": b"3"})
    assert run(sdk, made, "cat /run/secrets/*; ls -A /run/secrets") == "33K\nL\n", "what runs sees it at once"


def test_files_go_with_the_machine_and_with_one_that_was_never_made(machines: DockerMachines, folder: Path) -> None:
    wanted = spec(secrets={"K": "file"})
    launch(machines, wanted, K=VALUE)
    again = wanted.model_copy(update={"generation": 2})
    launch(machines, again, K=VALUE)
    assert [one.name for one in folder.glob("*/*")] == [f"{wanted.id}.2"], "those of the older one went with it"
    machines.delete(wanted.id, 1)
    assert list(folder.glob("*/*")), "a delete that came late takes nothing newer"
    machines.delete(wanted.id, 2)
    assert not folder.exists()
    machines.give(wanted, {"K": VALUE})
    machines.delete(wanted.id, 1)
    assert not folder.exists(), "of what was never created too"


def test_leftover_of_nobody_is_swept_once_it_is_old(machines: DockerMachines, folder: Path) -> None:
    wanted, lost = spec(secrets={"K": "file"}), spec(secrets={"K": "file"})
    launch(machines, wanted, K=VALUE)
    machines.give(lost, {"K": VALUE})
    machines.inventory()
    assert len(list(folder.glob("*/*"))) == 2, "it may be about to be created"
    long_ago = time.time() - LEFT_OVER - 1
    for made in folder.glob("*/*"):
        os.utime(made, (long_ago, long_ago))
    machines.inventory()
    assert [one.name for one in folder.glob("*/*")] == [f"{wanted.id}.1"]


def test_adoption_asks_for_no_values_and_creation_without_them_makes_nothing(machines: DockerMachines) -> None:
    wanted = spec(secrets={"K": "env"})
    with pytest.raises(EngineUnavailable, match="missing"):
        machines.create(wanted, None, dict)
    assert machines.inventory() == []
    made = launch(machines, wanted, K=VALUE)

    def away() -> dict[str, bytes]:
        raise AssertionError("it runs")

    assert machines.create(wanted, None, away) == made


def test_survey_tells_no_values(machines: DockerMachines) -> None:
    wanted = spec(secrets={"K": "file", "E": "env"}, env={"PLAIN": "p"})
    launch(machines, wanted, K=VALUE, E=VALUE)
    (found,) = machines.survey(wanted.id)
    assert VALUE.decode() not in found.model_dump_json()
    assert found.env is not None
    assert (found.env["PLAIN"], "E" in found.env, "K_FILE" in found.env) == ("p", False, False)


def test_folder_that_is_not_in_memory_or_not_ours_is_refused(tmp_path: Path) -> None:
    if secret_files.kind(tmp_path) in secret_files.IN_MEMORY:
        pytest.skip("temporary files are in memory here")
    with pytest.raises(EngineRefused, match="CAIRN_SECRETS_DIR"):
        SecretFiles(tmp_path / "secrets", uuid4()).write(uuid4(), 1, {"K": VALUE})
    assert not list(tmp_path.rglob("K"))
    link = MEMORY / f"cairn-test-{uuid4().hex[:12]}"
    target = MEMORY / f"{link.name}-target"
    target.mkdir()
    link.symlink_to(target)
    try:
        with pytest.raises(EngineRefused, match="remove it"):
            SecretFiles(link, uuid4()).write(uuid4(), 1, {"K": VALUE})
    finally:
        link.unlink()
        shutil.rmtree(target)


def test_folder_that_is_open_to_others_is_refused_and_left_as_it_is() -> None:
    shared = MEMORY / f"cairn-test-{uuid4().hex[:12]}"
    shared.mkdir()
    shared.chmod(0o1777)
    try:
        with pytest.raises(EngineRefused, match="0700"):
            SecretFiles(shared, uuid4()).write(uuid4(), 1, {"K": VALUE})
        assert (shared.stat().st_mode & 0o7777, list(shared.iterdir())) == (0o1777, [])
    finally:
        shutil.rmtree(shared)


def test_machines_come_while_the_last_one_goes(folder: Path) -> None:
    def churn(_: int) -> None:
        files = SecretFiles(folder, host)
        for _ in range(200):
            machine = uuid4()
            assert (files.write(machine, 1, {"K": VALUE}) / "K").read_bytes() == VALUE
            files.remove(machine)

    host = uuid4()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(churn, range(4)))
    assert not folder.exists()


def test_engine_shows_no_mount_where_there_are_no_files(machines: DockerMachines, sdk: docker.APIClient) -> None:
    made = launch(machines, spec(secrets={"E": "env"}), E=b"x")
    shown: dict[str, Any] = sdk.inspect_container(made)
    assert shown["Mounts"] == []
