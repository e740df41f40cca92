"""What the drivers of the stream port promise, on the real engine."""

from __future__ import annotations

import io
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests

from drivers.docker import DockerMachines
from drivers.docker_channel import Channel
from drivers.docker_processes import Processes
from drivers.docker_streams import DockerStreams
from drivers.streams import Command, Terminal
from model.errors import (
    CommandTimeout,
    EngineUnavailable,
    InvalidState,
    NotFound,
    OutcomeUnknown,
    ValidationFailed,
)
from tests.drivers.conftest import never, spec
from tests.services import until
from worker import engine

pytestmark = pytest.mark.engine

INSTALLATION, HOST = uuid4(), uuid4()
#: Says five lines, and then what it is told through a file.
PROGRAM = "for n in 1 2 3 4 5; do echo line $n; done; echo bad >&2; touch /said; tail -f /said"


@pytest.fixture(scope="module")
def machines() -> Iterator[DockerMachines]:
    made = DockerMachines(engine.SOCKET, installation=INSTALLATION, host_id=HOST, publish_address="127.0.0.1")
    yield made
    for machine in made.inventory():
        made.delete(machine.id)


@pytest.fixture(scope="module")
def machine(machines: DockerMachines) -> UUID:
    wanted = spec(cmd=["sh", "-c", PROGRAM])
    machines.create(wanted)
    machines.start(wanted.id, never)
    return wanted.id


@pytest.fixture(scope="module")
def streams() -> DockerStreams:
    return DockerStreams(engine.SOCKET, installation=INSTALLATION, host_id=HOST)


def outcome(command: Command) -> tuple[int, bytes, bytes]:
    """Its exit code, stdout and stderr."""
    said = {"stdout": b"", "stderr": b""}
    for channel, data in command:
        said[channel] += data
    return command.exit_code(), said["stdout"], said["stderr"]


def run(streams: DockerStreams, machine: UUID, script: str, seconds: float = 10) -> tuple[int, bytes, bytes]:
    return outcome(streams.run(machine, ["sh", "-c", script], timeout_seconds=seconds))


def read_until(terminal: Terminal, text: bytes) -> bytes:
    said = b""
    while text not in said:
        data = terminal.read()
        assert data, said
        said += data
    return said


def left(streams: DockerStreams, machine: UUID, word: str) -> bytes:
    """The processes of the machine that have ``word`` in their command line, and are no zombies."""
    return run(streams, machine, f"ps -o pid,args | grep '{word[0]}[{word[1]}]{word[2:]}'")[1]


def test_logs_end_or_follow_and_a_reader_can_be_woken(streams: DockerStreams, machine: UUID) -> None:
    assert until(lambda: b"bad" in b"".join(streams.logs(machine, tail=None, follow=False)))
    everything = b"".join(streams.logs(machine, tail=None, follow=False))
    assert sorted(everything.splitlines()) == [b"bad", *(b"line %d" % n for n in range(1, 6))]
    assert b"".join(streams.logs(machine, tail=2, follow=False)).count(b"\n") == 2
    following = streams.logs(machine, tail=0, follow=True)
    run(streams, machine, "echo more >> /said")
    assert next(following) == b"more\n"
    closer = threading.Timer(0.2, following.close)
    closer.start()
    began = time.monotonic()
    assert list(following) == []
    assert time.monotonic() - began < 2
    following.close()


def test_stats_come_at_once_and_go_on(streams: DockerStreams, machine: UUID) -> None:
    began = time.monotonic()
    stats = streams.stats(machine)
    first = next(stats)
    assert time.monotonic() - began < 2
    assert first.memory_bytes > 0
    assert first.pids >= 2
    busy = threading.Thread(target=run, args=(streams, machine, "timeout 2 yes > /dev/null"))
    busy.start()
    assert max(next(stats).cpu_percent for _ in range(2)) > 5
    stats.close()
    busy.join()


def test_command_gives_both_outputs_and_its_exit_code(streams: DockerStreams, machine: UUID) -> None:
    assert run(streams, machine, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    code, out, _ = run(streams, machine, "dd if=/dev/zero bs=1000 count=3000 2>/dev/null")
    assert (code, len(out)) == (0, 3_000_000)
    code, out, err = outcome(streams.run(machine, ["/no/such/program"], timeout_seconds=10))
    assert code in (126, 127)
    assert b"/no/such/program" in out + err


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_command_that_takes_too_long_is_ended_with_all_it_started(
    streams: DockerStreams, machine: UUID, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    if not seen:  # an agent that does not share the engine's process ids
        monkeypatch.setattr(Processes, "_is_inside", lambda self, pid: False)
    began = time.monotonic()
    with pytest.raises(CommandTimeout, match="within"):
        run(streams, machine, "setsid sleep 7654 & sleep 7653; echo", 0.5)
    assert time.monotonic() - began < 3
    assert until(lambda: not left(streams, machine, "sleep 765"), 5)


def test_command_that_is_closed_is_ended(streams: DockerStreams, machine: UUID) -> None:
    command = streams.run(machine, ["sh", "-c", "echo here; sleep 7652"], timeout_seconds=30)
    assert next(command).data == b"here\n"
    reader = threading.Thread(target=lambda: list(command))
    reader.start()
    time.sleep(0.2)
    command.close()
    reader.join(2)
    assert not reader.is_alive()
    assert until(lambda: not left(streams, machine, "sleep 7652"), 5)


def test_what_a_killed_agent_had_running_is_ended_by_the_next_and_no_other(
    streams: DockerStreams, machine: UUID
) -> None:
    command = streams.run(machine, ["sh", "-c", "setsid sleep 7649 & sleep 7648; echo"], timeout_seconds=60)
    terminal = streams.terminal(machine, ["sleep", "7647"], columns=80, rows=24)

    def running() -> list[bytes]:
        lines = left(streams, machine, "sleep 764").splitlines()
        return sorted(line.split()[-1] for line in lines if b"setsid" not in line)

    assert until(lambda: running() == [b"7647", b"7648", b"7649"])
    DockerStreams(engine.SOCKET, installation=INSTALLATION, host_id=uuid4()).end_forgotten()
    assert len(running()) == 3, "another agent's"
    DockerStreams(engine.SOCKET, installation=INSTALLATION, host_id=HOST).end_forgotten()
    assert until(lambda: running() == [b"7649"], 5), "what was to go on goes on"
    assert command.exit_code() == 128 + signal.SIGKILL
    command.close()
    terminal.close()


def test_terminal_echoes_is_resized_and_says_how_it_ended(streams: DockerStreams, machine: UUID) -> None:
    terminal = streams.terminal(machine, None, columns=100, rows=40)
    terminal.write(b"echo $((6*7)); stty size\n")
    said = read_until(terminal, b"40 100")
    assert b"42" in said
    terminal.resize(77, 33)
    terminal.write(b"stty size\n")
    read_until(terminal, b"33 77")
    assert terminal.exit_code() is None
    terminal.write(b"exit 5\n")
    while terminal.read():
        pass
    assert until(lambda: terminal.exit_code() == 5)
    terminal.close()


def test_command_whose_start_is_not_answered_is_ended(
    streams: DockerStreams, machine: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(Channel):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            raise EngineUnavailable("the answer is lost")

    monkeypatch.setattr("drivers.docker_streams.Channel", Lost)
    with pytest.raises(OutcomeUnknown):
        streams.run(machine, ["sleep", "7661"], timeout_seconds=60)
    with pytest.raises(EngineUnavailable):
        streams.terminal(machine, ["sleep", "7662"], columns=80, rows=24)
    monkeypatch.undo()
    assert until(lambda: not left(streams, machine, "sleep 766"), 5)


def test_terminal_that_cannot_be_given_its_size_is_ended(
    streams: DockerStreams, machine: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise requests.ReadTimeout("too late")

    monkeypatch.setattr(streams._engine.client, "exec_resize", lost)
    with pytest.raises(EngineUnavailable):
        streams.terminal(machine, ["sleep", "7663"], columns=80, rows=24)
    assert until(lambda: not left(streams, machine, "sleep 7663"), 5)


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_terminal_that_is_closed_takes_its_programs_with_it(
    streams: DockerStreams, machine: UUID, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    if not seen:
        monkeypatch.setattr(Processes, "_is_inside", lambda self, pid: False)
    terminal = streams.terminal(machine, ["sh", "-c", "trap : HUP; sleep 7651; sleep 7650"], columns=80, rows=24)
    assert until(lambda: left(streams, machine, "sleep 7651"))
    terminal.close()
    assert until(lambda: not left(streams, machine, "sleep 765"), 5)
    assert terminal.read() == b""


def test_files_go_in_and_come_out(streams: DockerStreams, machine: UUID) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("note.txt")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    data = packed.getvalue()
    streams.put(machine, "/root", (data[at : at + 700] for at in range(0, len(data), 700)))
    assert run(streams, machine, "cat /root/note.txt")[1] == b"hello"
    with tarfile.open(fileobj=io.BytesIO(b"".join(streams.get(machine, "/root/note.txt")))) as archive:
        member = archive.extractfile("note.txt")
        assert member is not None
        assert member.read() == b"hello"
    for path in ("root", "/root/../etc", "/a\x00b"):
        with pytest.raises(ValidationFailed):
            streams.get(machine, path)
    with pytest.raises(NotFound):
        streams.get(machine, "/no/such")
    with pytest.raises(NotFound):
        streams.put(machine, "/no/such", [data])


def test_machine_of_another_or_absent_or_stopped(
    machines: DockerMachines, streams: DockerStreams, machine: UUID
) -> None:
    strangers = [
        (streams, uuid4()),
        (DockerStreams(engine.SOCKET, installation=INSTALLATION, host_id=uuid4()), machine),
        (DockerStreams(engine.SOCKET, installation=uuid4(), host_id=HOST), machine),
    ]
    for theirs, other in strangers:
        with pytest.raises(NotFound):
            theirs.logs(other, tail=1, follow=False)
        with pytest.raises(NotFound):
            theirs.run(other, ["true"], timeout_seconds=1)
        with pytest.raises(NotFound):
            theirs.terminal(other, None, columns=80, rows=24)
        with pytest.raises(NotFound):
            theirs.get(other, "/etc")
    stopped = spec(cmd=["echo", "once"])
    machines.create(stopped)
    assert b"".join(streams.logs(stopped.id, tail=None, follow=True)) == b""
    for call in (lambda: streams.stats(stopped.id), lambda: streams.run(stopped.id, ["true"], timeout_seconds=1)):
        with pytest.raises(InvalidState):
            call()
