"""The fence of a host, with machines that only seem to be there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from model.base import new_id
from model.errors import EngineUnavailable
from model.instances import OwnedMachine
from model.settings import Settings
from worker import fence


class Machines:
    """What a fence asks of a driver."""

    def __init__(self, *fenced: bool) -> None:
        self.running = {new_id(): is_fenced for is_fenced in fenced}
        self.fenced = dict(self.running)
        self.away = 0

    def inventory(self) -> list[OwnedMachine]:
        if self.away:
            self.away -= 1
            raise EngineUnavailable("away")
        return [
            OwnedMachine(engine_id=str(id), id=id, generation=1, running=id in self.running, fenced=is_fenced)
            for id, is_fenced in self.fenced.items()
        ]

    def stop(self, machine: UUID, grace_seconds: float, cancelled: Callable[[], bool]) -> None:
        self.running.pop(machine, None)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return tmp_path / "local.json"


def watching(identity: Path, machines: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Thread:
    monkeypatch.setattr(fence, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(fence, "IDLE_LOOKS", 10)
    identity.with_suffix(".fence").touch()
    thread = threading.Thread(target=fence.watch, args=(identity, {new_id(): machines}), daemon=True)
    thread.start()
    return thread


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_stops_what_is_fenced_once_the_lease_has_lapsed(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(True, False, True)
    fence.write_lease(identity, fence.clock(), 0.5)
    watching(identity, machines, monkeypatch)
    time.sleep(0.2)
    assert len(machines.running) == 3, "the lease holds"
    machines.away = 5
    until(lambda: len(machines.running) == 1)
    assert list(machines.running.values()) == [False]


@pytest.mark.parametrize("lease", [None, "torn", "of another boot"])
def test_without_a_lease_that_can_be_read_it_closes(
    identity: Path, lease: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lease == "torn":
        fence.lease_file(identity).write_text('{"boot": ')
    elif lease:
        other = fence.Lease(boot="other", asked_at=fence.clock(), fence_after=1000)
        fence.lease_file(identity).write_text(other.model_dump_json())
    machines = Machines(True)
    watching(identity, machines, monkeypatch)
    until(lambda: not machines.running)


def test_it_looks_before_it_leaves_and_leaves_when_there_is_nothing(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines()
    thread = watching(identity, machines, monkeypatch)
    thread.join(5)
    assert not thread.is_alive()
    assert fence._lock(identity.with_suffix(".fence")) is not None


def test_lapsed_lease_is_renewed_only_when_everything_fenced_is_stopped(identity: Path) -> None:
    machines = Machines(True, False)
    fence.write_lease(identity, fence.clock() - 10, 5)
    machines.away = 1
    with pytest.raises(EngineUnavailable):
        fence.close(identity, {new_id(): machines})  # type: ignore[dict-item]
    fence.close(identity, {new_id(): machines})  # type: ignore[dict-item]
    assert list(machines.running.values()) == [False]


def test_nothing_is_touched_while_the_lease_holds(identity: Path) -> None:
    machines = Machines(True)
    fence.write_lease(identity, fence.clock(), 5)
    fence.close(identity, {new_id(): machines})  # type: ignore[dict-item]
    assert len(machines.running) == 1


def test_what_is_fenced_is_not_started_under_a_lapsed_lease(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "ensure", lambda settings: None)
    settings = Settings(agent_identity=identity)
    with pytest.raises(fence.FenceFailed):
        fence.check_open(settings)
    fence.write_lease(identity, fence.clock(), 30)
    fence.check_open(settings)
    fence.write_lease(identity, fence.clock() - 31, 30)
    with pytest.raises(fence.FenceFailed):
        fence.check_open(settings)
