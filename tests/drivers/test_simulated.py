"""The simulated driver against its engine's process: lost answers, refusals, kill -9 and silence."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from drivers import simulated
from drivers.ownership import Owner
from drivers.simulated import SimulatedMachines
from model.errors import EngineUnavailable, NeedsRecreate, NeedsStop
from tests.drivers.conftest import never, simulator_process, spec


class Simulator:
    """A simulated engine of the test's own, that it may kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        self.process, self.url = simulator_process(self.folder)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def set(self, **settings: float) -> None:
        httpx.put(f"{self.url}/settings", json=settings).raise_for_status()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    one = Simulator(tmp_path_factory.mktemp("engine"))
    yield one
    one.kill()


@pytest.fixture
def engine(running: Simulator) -> Iterator[Simulator]:
    yield running
    running.set(latency_ms=0, refuse=0, lose_answers=0, resize=0)


@pytest.fixture
def owner() -> Owner:
    return Owner(installation=uuid4(), host_id=uuid4())


def driver(engine: Simulator, owner: Owner, host_name: str = "one") -> SimulatedMachines:
    return SimulatedMachines(engine.url, installation=owner.installation, host_id=owner.host_id, host_name=host_name)


@pytest.fixture
def machines(engine: Simulator, owner: Owner) -> SimulatedMachines:
    return driver(engine, owner)


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises(EngineUnavailable) as error:
        call()
    assert error.value.retryable


def test_lost_answers_and_their_repetition(engine: Simulator, machines: SimulatedMachines) -> None:
    wanted = spec()
    calls: list[tuple[Callable[[], Any], list[bool]]] = [
        (lambda: machines.create(wanted), [False]),
        (lambda: machines.start(wanted.id, never), [True]),
        (lambda: machines.stop(wanted.id, 0, never), [False]),
        (lambda: machines.delete(wanted.id), []),
    ]
    for call, running in calls:
        engine.set(lose_answers=1)
        refused(call)
        assert [machine.running for machine in machines.inventory()] == running, "it was done all the same"
        call()
        assert [machine.running for machine in machines.inventory()] == running


def test_refused_calls_did_nothing_and_may_be_repeated(engine: Simulator, machines: SimulatedMachines) -> None:
    wanted = spec()
    engine.set(refuse=1)
    refused(lambda: machines.create(wanted))
    assert machines.inventory() == []
    machines.create(wanted)
    engine.set(refuse=1)
    refused(machines.inventory)


@pytest.mark.parametrize(("setting", "kind"), [(1, NeedsStop), (2, NeedsRecreate)])
def test_engine_that_cannot_resize_what_runs(
    engine: Simulator, machines: SimulatedMachines, setting: int, kind: type[Exception]
) -> None:
    wanted = spec()
    machines.create(wanted)
    machines.start(wanted.id, never)
    larger = wanted.model_copy(update={"memory_mb": 128})
    engine.set(resize=setting)
    for pause in (False, True):
        if pause:
            machines.pause(wanted.id)
        with pytest.raises(kind):
            machines.adjust(larger)
        machines.adjust(wanted)  # as it is already
    machines.stop(wanted.id, 0, never)
    if kind is NeedsStop:
        machines.adjust(larger)
    else:
        with pytest.raises(kind):
            machines.adjust(larger)
    assert [m.memory_mb for m in machines.inventory()] == [128 if kind is NeedsStop else 64]


def test_machines_survive_a_kill_of_the_engine(engine: Simulator, owner: Owner) -> None:
    before, kept, gone = driver(engine, owner), spec(), spec()
    made = before.create(kept)
    before.start(kept.id, never)
    before.create(gone)
    before.delete(gone.id)
    engine.kill()
    refused(before.inventory)
    engine.start()
    after = driver(engine, owner)
    assert [(m.engine_id, m.running) for m in after.inventory()] == [(made, True)]
    assert after.create(kept) == made


def test_silent_engine_is_given_up_in_time(engine: Simulator, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "CALL_SECONDS", 1)
    impatient = driver(engine, owner)
    wanted = spec()
    engine.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        refused(lambda: impatient.create(wanted))
        assert time.monotonic() - began < 3
    finally:
        engine.signal(signal.SIGCONT)
    made = impatient.create(wanted)
    assert [m.engine_id for m in impatient.inventory()] == [made]


def test_hosts_of_one_engine_do_not_see_each_other(engine: Simulator, owner: Owner) -> None:
    one, two = (driver(engine, owner, name) for name in ("one", "two"))
    wanted = spec()
    assert one.create(wanted) != two.create(wanted)
    one.delete(wanted.id)
    assert one.inventory() == []
    assert [m.id for m in two.inventory()] == [wanted.id]
