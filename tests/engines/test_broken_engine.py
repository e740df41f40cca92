"""An engine that is away, falls silent or breaks off: errors in bounded time, and nothing made twice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker.errors
import pytest
import requests

from drivers.docker import CALL_SECONDS, DockerMachines
from model.errors import EngineUnavailable
from tests.drivers.conftest import never, spec
from tests.engines.conftest import driver, image_driver
from worker import engine

pytestmark = pytest.mark.engine


class Proxy:
    """A socket before the engine's own, that can swallow answers or break off in the middle of one."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.silent = threading.Event()
        self.cut_at = 0.0
        self._keep: int | None = None
        self._doomed: socket.socket | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                target = socket.socket(socket.AF_UNIX)
                target.connect(engine.SOCKET.removeprefix("unix://"))
                self._open += [client, target]
                for source, sink, answers in ((client, target, False), (target, client, True)):
                    threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not answers and self._keep is not None and data.startswith((b"POST", b"DELETE")):
                    self._doomed = sink
                if source is self._doomed:
                    sink.sendall(data[: self._keep])
                    self._doomed = self._keep = None
                    self.cut()
                elif not (answers and self.silent.is_set()):
                    sink.sendall(data)

    def break_off(self, keep: int = 0) -> None:
        """Break every connection at the next answer to a change: ``data[:keep]`` of it still comes through."""
        self._keep = keep

    def cut(self) -> None:
        """Every connection breaks; new ones work, also those that come while this goes on."""
        self.cut_at = time.monotonic()
        broken, self._open = self._open, []
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.cut()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    one = Proxy(tmp_path / "e.sock")
    yield one
    one.close()


@pytest.fixture
def behind(machines: DockerMachines, proxy: Proxy) -> DockerMachines:
    """The same owner's driver, behind the proxy, and connected."""
    made = driver(proxy.url, owner=machines._owner)
    assert made.inventory() == []
    return made


def unavailable_after(call: Callable[[], Any], proxy: Proxy | None = None) -> float:
    """How long it took to be refused as what may be tried again, at most since the proxy broke off: what the engine
    takes for what it does is its own."""
    began = time.monotonic()
    with pytest.raises(EngineUnavailable) as refused:
        call()
    assert refused.value.retryable
    return time.monotonic() - max(began, proxy.cut_at if proxy else began)


def test_engine_that_is_not_there(tmp_path: Path) -> None:
    assert unavailable_after(driver(f"unix://{tmp_path}/none.sock").inventory) < 2


def test_every_call_gives_a_silent_engine_up_in_time(
    machines: DockerMachines, behind: DockerMachines, proxy: Proxy, tmp_path: Path
) -> None:
    created, new, running = spec(), spec(), spec(cmd=["/bin/sleep", "100"])
    for wanted in (created, running):
        machines.create(wanted)
    machines.start(running.id, never)
    unconnected = driver(proxy.url, owner=machines._owner)
    calls: list[Callable[[], Any]] = [
        lambda: image_driver(tmp_path, proxy.url).ensure(new.wanted_image, never),
        lambda: behind.create(new),
        lambda: behind.start(created.id, never),
        lambda: behind.stop(running.id, 0, never),
        lambda: behind.delete(running.id),
        behind.inventory,
        behind.sample,
        *[unconnected.inventory] * 3,
    ]
    proxy.silent.set()
    with ThreadPoolExecutor(len(calls)) as threads:
        assert max(threads.map(unavailable_after, calls)) < CALL_SECONDS + 3
    proxy.silent.clear()
    proxy.cut()
    # A create first asks for its image, and heard nothing.
    assert {machine.id for machine in machines.inventory()} == {created.id, running.id}
    made = behind.create(new)
    assert {machine.id: machine.engine_id for machine in machines.inventory()}[new.id] == made


@pytest.mark.parametrize("keep", [0, 20, -3])
def test_create_whose_answer_breaks_off_is_adopted(
    machines: DockerMachines, behind: DockerMachines, proxy: Proxy, keep: int
) -> None:
    wanted = spec()
    proxy.break_off(keep)
    assert unavailable_after(lambda: behind.create(wanted), proxy) < 2
    (made,) = machines.inventory()
    assert behind.create(wanted) == made.engine_id
    assert behind.start(wanted.id, never).engine_id == made.engine_id


def test_start_stop_and_delete_whose_answers_break_off_are_repeated(
    machines: DockerMachines, behind: DockerMachines, proxy: Proxy
) -> None:
    wanted = spec()
    behind.create(wanted)
    calls: list[tuple[Callable[[], Any], list[bool]]] = [
        (lambda: behind.start(wanted.id, never), [True]),
        (lambda: behind.stop(wanted.id, 5, never), [False]),
        (lambda: behind.delete(wanted.id), []),
    ]
    for call, running in calls:
        proxy.break_off()
        assert unavailable_after(call, proxy) < 2
        call()
        assert [machine.running for machine in machines.inventory()] == running


def test_connections_that_broke_meanwhile_are_replaced(
    machines: DockerMachines, behind: DockerMachines, proxy: Proxy
) -> None:
    wanted = spec()
    proxy.cut()
    with contextlib.suppress(EngineUnavailable):
        behind.create(wanted)
    behind.create(wanted)
    behind.start(wanted.id, never)
    assert [m.running for m in machines.inventory()] == [True]


def test_failed_start_says_what_the_engine_said_and_its_causes_end() -> None:
    """An error that was its own cause could not be told to anybody."""
    said = "could not find bridge docker0: route ip+net: no such network interface"

    class Broken:
        def start(self, engine_id: str) -> None:
            answer = requests.Response()
            answer.status_code = 500
            raise docker.errors.APIError("500 Server Error", response=answer, explanation=said)

    machines = DockerMachines("unix:///none", installation=uuid4(), host_id=uuid4(), publish_address="127.0.0.1")
    machine = uuid4()
    machines._remember(machine, "e-1")
    machines._engine._connected = Broken()  # type: ignore[assignment]
    with pytest.raises(EngineUnavailable, match="docker0") as failed:
        machines.start(machine, lambda: False)
    causes: list[BaseException] = []
    cause: BaseException | None = failed.value
    while cause is not None:
        assert cause not in causes
        causes.append(cause)
        cause = cause.__cause__
