"""What a container has and does before its own program, and what its engine does when that ends."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import docker
import pytest

from drivers.docker import DockerMachines
from model.errors import EngineRefused, InstanceExited, Unavailable
from model.instances import MachineSpec
from tests.drivers.conftest import never, spec
from tests.services import until
from worker import engine

pytestmark = pytest.mark.engine
KEY = "ssh-ed25519 AAAA somebody"


def with_data(script: str, **more: Any) -> tuple[MachineSpec, Callable[[], bytes]]:
    data = script.encode()
    return spec(user_data=hashlib.sha256(data).hexdigest(), **more), lambda: data


def launch(machines: DockerMachines, wanted: MachineSpec, data: Callable[[], bytes] | None = None) -> str:
    made = machines.create(wanted, data)
    machines.start(wanted.id, never)
    return made


def run(sdk: docker.APIClient, engine_id: str, command: str) -> str:
    made = sdk.exec_create(engine_id, ["/bin/sh", "-c", command])
    said: bytes = sdk.exec_start(made["Id"])
    return said.decode()


@pytest.fixture
def image(sdk: docker.APIClient) -> Iterator[Any]:
    """Makes images of the base image, with commands run in it and changes as in a Dockerfile."""
    made: list[str] = []

    def make(*changes: str, prepare: str = "true") -> str:
        tag = f"cairn-test-{uuid4().hex[:12]}"
        container = sdk.create_container(engine.IMAGE, command=["/bin/sh", "-c", prepare])["Id"]
        sdk.start(container)
        sdk.wait(container)
        sdk.commit(container, tag, "latest", changes=list(changes))
        sdk.remove_container(container)
        made.append(f"{tag}:latest")
        return made[-1]

    yield make
    for tag in made:
        sdk.remove_image(tag, force=True)


# User data


def test_user_data_runs_as_root_once_before_the_images_own_program(
    machines: DockerMachines, sdk: docker.APIClient
) -> None:
    wanted, data = with_data(
        "#!/bin/sh\nsleep 0.7\nid -u >> /tmp/runs\necho $COLOUR from user data > /www/index.html\n",
        env={"COLOUR": "red"},
    )
    began = time.monotonic()
    made = launch(machines, wanted, data)
    assert time.monotonic() - began > 0.7, "a start waits for its end"
    assert run(sdk, made, "cat /tmp/runs") == "0\n"
    assert "httpd -f -p 80" in until(lambda: run(sdk, made, "ps | grep '[h]ttpd'")), "the image's own command"
    assert until(lambda: run(sdk, made, "wget -qO- 127.0.0.1") == "red from user data\n"), "once it listens"
    machines.stop(wanted.id, 0, never)
    machines.start(wanted.id, never)
    assert run(sdk, made, "cat /tmp/runs") == "0\n", "not again"
    shown = sdk.inspect_container(made)
    assert "sleep" not in str(shown["Config"]) + str(shown["Args"]), "never on a command line"
    assert run(sdk, made, "stat -c %a%u /.cairn /.cairn/user-data") == "7000\n7000\n"


def test_own_command_and_the_images_entrypoint_come_after_it(
    machines: DockerMachines, sdk: docker.APIClient, image: Any
) -> None:
    entry = image('ENTRYPOINT ["/bin/sh", "-c", "echo entry \\"$0 $1\\"; exec sleep 100"]')
    wanted, data = with_data("#!/bin/sh\necho first\n", image=entry, cmd=["a b", "c"])
    made = launch(machines, wanted, data)
    assert until(lambda: sdk.logs(made).count(b"\n") == 2)
    assert sdk.logs(made) == b"first\nentry a b c\n"


def test_interpreter_that_is_missing_and_script_that_fails_are_said(
    machines: DockerMachines, sdk: docker.APIClient
) -> None:
    for script, code in (("#!/bin/sh\necho no such disk >&2; exit 3\n", 3), ("#!/bin/nonsense\n", 127)):
        wanted, data = with_data(script, restart_policy="always")
        machines.create(wanted, data)
        with pytest.raises(InstanceExited) as failed:
            machines.start(wanted.id, never)
        assert f"user_data ended with exit code {code}" in failed.value.message
        assert failed.value.details["exit_code"] == code
        assert ("no such disk" in failed.value.message) == (code == 3)
        machines.delete(wanted.id)


def test_interrupted_script_runs_again(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted, data = with_data("#!/bin/sh\necho began >> /tmp/runs\n[ -e /www/go ] || sleep 100\n")
    made = machines.create(wanted, data)
    sdk.start(made)
    assert until(lambda: run(sdk, made, "cat /tmp/runs") == "began\n")
    sdk.kill(made)
    sdk.put_archive(made, "/www", _tar("go"))
    machines.start(wanted.id, never)
    assert run(sdk, made, "cat /tmp/runs") == "began\nbegan\n"


def test_files_are_there_though_the_first_create_died_before_it_put_them(
    machines: DockerMachines, sdk: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, data = with_data("#!/bin/sh\ntouch /www/ran\n", authorized_key=KEY)
    with monkeypatch.context() as patched:
        patched.setattr("drivers.docker_first.fill", _fails)
        with pytest.raises(KeyError):
            machines.create(wanted, data)
    made = launch(machines, wanted, data)
    assert run(sdk, made, "ls /www/ran; cat /root/.ssh/authorized_keys") == f"/www/ran\n{KEY}\n"
    assert machines.create(wanted, data) == made, "and again, of one that runs"


def test_script_is_fetched_only_for_what_was_never_started(machines: DockerMachines) -> None:
    """What runs is adopted, also while nobody can be asked for it."""
    wanted, data = with_data("#!/bin/sh\n")
    made = machines.create(wanted, data)
    assert machines.create(wanted, data) == made
    machines.start(wanted.id, never)

    def away() -> bytes:
        raise Unavailable("the API is away")

    assert machines.create(wanted, away) == made
    machines.stop(wanted.id, 0, never)
    assert machines.create(wanted, away) == made
    with pytest.raises(Unavailable):
        machines.create(wanted.model_copy(update={"generation": wanted.generation + 1}), away)


def _fails(*_: Any) -> None:
    raise KeyError


def _tar(name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return packed.getvalue()


def test_image_without_a_shell_is_refused(machines: DockerMachines, sdk: docker.APIClient, image: Any) -> None:
    bare = image('CMD ["/bin/busybox", "sleep", "100"]', prepare="rm /bin/sh")
    wanted, data = with_data("#!/bin/busybox sh\n", image=bare)
    with pytest.raises(EngineRefused, match="has no /bin/sh"):
        machines.create(wanted, data)


def test_image_of_another_user_runs_its_program_as_that(
    machines: DockerMachines, sdk: docker.APIClient, image: Any
) -> None:
    users = "mkdir -p /etc /home/app; echo root:x:0:0::/root:/bin/sh > /etc/passwd; "
    users += "echo app:x:1000:1000::/home/app:/bin/sh >> /etc/passwd; echo app:x:1000: > /etc/group"
    other = image(
        "USER app", "WORKDIR /www", 'CMD ["/bin/sh", "-c", "id -u; echo $HOME; pwd; sleep 100"]', prepare=users
    )
    wanted, data = with_data("#!/bin/sh\nid -u\n", image=other, env={"A": "b c"})
    made = launch(machines, wanted, data)
    assert until(lambda: sdk.logs(made).count(b"\n") == 4), sdk.logs(made)
    assert sdk.logs(made) == b"0\n1000\n/home/app\n/www\n"


@pytest.mark.parametrize(
    ("user", "runs_as"),
    [
        ("1000", "1000 1000 /home/app"),
        ("1000:2000", "1000 2000 /home/app"),
        ("app:others", "1000 3000 /home/app"),
        ("4321", "4321 0 /"),
        ("4321:app", "4321 1000 /"),
        ("4321:8765", "4321 8765 /"),
    ],
)
def test_image_of_a_user_without_a_name(
    machines: DockerMachines, sdk: docker.APIClient, image: Any, user: str, runs_as: str
) -> None:
    users = "echo app:x:1000:1000::/home/app:/bin/sh >> /etc/passwd; "
    users += "echo app:x:1000: > /etc/group; echo others:x:3000: >> /etc/group"
    command = """CMD ["/bin/sh", "-c", "echo $(id -u) $(id -g) $HOME; exec sleep 100"]"""
    wanted, data = with_data("#!/bin/sh\n", image=image(f"USER {user}", command, prepare=users))
    made = launch(machines, wanted, data)
    assert until(lambda: sdk.logs(made) == f"{runs_as}\n".encode()), sdk.logs(made)
    before = run(sdk, made, "cat /etc/passwd")
    machines.stop(wanted.id, 0, never)
    machines.start(wanted.id, never)
    assert until(lambda: sdk.logs(made) == f"{runs_as}\n".encode() * 2), "and when it is started again"
    assert run(sdk, made, "cat /etc/passwd") == before


@pytest.mark.parametrize("user", ["ghost", "0x0", "1000:ghosts"])
def test_image_of_a_user_whom_nobody_knows_runs_as_nobody_else(
    machines: DockerMachines, sdk: docker.APIClient, image: Any, user: str
) -> None:
    wanted, data = with_data("#!/bin/sh\n", image=image(f"USER {user}", 'CMD ["/bin/sh", "-c", "id -u; sleep 9"]'))
    made = machines.create(wanted, data)
    with contextlib.suppress(InstanceExited):
        machines.start(wanted.id, never)
    assert until(lambda: not sdk.inspect_container(made)["State"]["Running"])
    assert f"runs as {user}, whom".encode() in sdk.logs(made)


# Keys


def test_authorized_key_is_there_from_the_first_start_on(machines: DockerMachines, sdk: docker.APIClient) -> None:
    made = launch(machines, spec(authorized_key=KEY))
    assert run(sdk, made, "cat /root/.ssh/authorized_keys") == f"{KEY}\n"
    shown = run(sdk, made, "stat -c %a%u%g /root/.ssh /root/.ssh/authorized_keys")
    assert shown == "70000\n60000\n"


# Restart policies


def restarts(sdk: docker.APIClient, engine_id: str) -> int:
    return int(sdk.inspect_container(engine_id)["RestartCount"])


@pytest.mark.parametrize(
    ("policy", "name", "most"),
    [
        ("no", "no", 0),
        ("on-failure", "on-failure", 0),
        ("on-failure:4", "on-failure", 4),
        ("always", "unless-stopped", 0),
    ],
)
def test_policy_is_what_was_asked_for(
    machines: DockerMachines, sdk: docker.APIClient, policy: str, name: str, most: int
) -> None:
    made = machines.create(spec(restart_policy=policy))
    found = sdk.inspect_container(made)["HostConfig"]["RestartPolicy"]
    assert (found["Name"] or "no", found["MaximumRetryCount"]) == (name, most)


def test_program_that_ends_is_started_again_and_counts_as_running_meanwhile(
    machines: DockerMachines, sdk: docker.APIClient
) -> None:
    wanted = spec(restart_policy="always", cmd=["/bin/sh", "-c", "sleep 0.3"])
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    assert until(lambda: restarts(sdk, made) >= 3)
    assert until(lambda: sdk.inspect_container(made)["State"]["Status"] == "restarting")
    assert [machine.running for machine in machines.inventory()] == [True]
    machines.stop(wanted.id, 0, never)
    before = restarts(sdk, made)
    time.sleep(2)
    assert sdk.inspect_container(made)["State"]["Status"] == "exited", "what was stopped stays so"
    assert restarts(sdk, made) == before
    assert [machine.running for machine in machines.inventory()] == [False]


def test_stop_while_it_waits_to_be_started_again_holds(machines: DockerMachines, sdk: docker.APIClient) -> None:
    wanted = spec(restart_policy="on-failure", cmd=["/bin/sh", "-c", "exit 1"])
    made = machines.create(wanted)
    sdk.start(made)
    for _ in range(3):
        assert until(lambda: sdk.inspect_container(made)["State"]["Status"] == "restarting")
        machines.stop(wanted.id, 1, never)
        assert not sdk.inspect_container(made)["State"]["Running"]
        time.sleep(1)
        assert not sdk.inspect_container(made)["State"]["Running"]
        sdk.start(made)
