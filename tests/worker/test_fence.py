"""The fence of a host, with machines that only seem to be there."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from drivers.machines import Cancelled
from model.base import new_id
from model.errors import EngineUnavailable, LeaseLapsed
from model.hosts import AgentHost
from model.instances import OwnedMachine
from model.settings import Settings
from tests.services import until
from worker import fence
from worker.identity import Identity, Membership, new_keys, path_of, write
from worker.leases import Leases

INSTALLATION = new_id()


class Machines:
    """What a fence asks of a driver."""

    def __init__(self, *fenced: bool) -> None:
        self.running = {new_id(): is_fenced for is_fenced in fenced}
        self.fenced = dict(self.running)
        self.away = self.looks = 0

    def inventory(self) -> list[OwnedMachine]:
        self.looks += 1
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
    hosts = {new_id(): machines}
    thread = threading.Thread(target=fence.watch, args=(identity, lambda: hosts), daemon=True)
    thread.start()
    return thread


def test_it_stops_what_is_fenced_once_the_lease_has_lapsed(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(True, False, True)
    fence.write_lease(identity, fence.clock(), 2)
    watching(identity, machines, monkeypatch)
    time.sleep(0.2)
    assert len(machines.running) == 3, "the lease holds"
    machines.away = 5
    assert until(lambda: len(machines.running) == 1)
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
    assert until(lambda: not machines.running)


def test_it_looks_before_it_leaves_and_leaves_when_there_is_nothing(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines()
    thread = watching(identity, machines, monkeypatch)
    thread.join(5)
    assert not thread.is_alive()
    assert fence._lock(identity.with_suffix(".fence")) is not None


def test_it_does_not_wait_for_an_engine_that_has_gone_with_nothing_fenced_on_it(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, unknown = Machines(), Machines()
    thread = watching(identity, empty, monkeypatch)
    assert until(lambda: empty.looks >= 2)  # the first of which is known then
    empty.away = 1_000_000
    thread.join(5)
    assert not thread.is_alive()
    unknown.away = 1_000_000
    thread = watching(identity, unknown, monkeypatch)
    time.sleep(0.5)
    assert thread.is_alive()
    fence._mark(identity).unlink()  # with the identity
    thread.join(5)
    assert not thread.is_alive()


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
    monkeypatch.setattr(fence, "WAIT_SECONDS", 0.3)
    ours = fence.AgentFence(settings)
    with pytest.raises(LeaseLapsed):
        ours.check_open(lambda: False)
    with pytest.raises(Cancelled):
        ours.check_open(lambda: True)
    fence.write_lease(identity, fence.clock(), 30)
    ours.check_open(lambda: True)
    fence.write_lease(identity, fence.clock() - 31, 30)
    assert ours.is_closed()
    with pytest.raises(LeaseLapsed):
        ours.check_open(lambda: False)
    monkeypatch.setattr(fence, "WAIT_SECONDS", 5)
    threading.Timer(0.3, fence.write_lease, (identity, fence.clock(), 30)).start()
    ours.check_open(lambda: False)


def test_it_tells_what_it_stopped_from_what_ended_by_itself(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(True, True, False)
    stopped, ended, other = machines.fenced
    machines.running.pop(ended)
    fence.write_lease(identity, fence.clock() - 10, 5)
    watching(identity, machines, monkeypatch)
    assert until(lambda: stopped not in machines.running)
    ours = fence.AgentFence(Settings(agent_identity=identity))
    assert [ours.has_stopped(machine) for machine in (stopped, ended, other)] == [True, False, False]
    fence.write_lease(identity, fence.clock(), 60)
    for _ in range(2):
        ours.forget(stopped)
    assert not ours.has_stopped(stopped)


def test_a_host_that_joins_its_agent_later_is_watched(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(fence, "IDLE_LOOKS", 10)
    fence._mark(identity).touch()
    first, second = Machines(True), Machines(True)
    hosts = {new_id(): first}
    fails = [False]

    def now() -> dict[UUID, Machines]:
        if fails[0]:
            raise OSError("the identity is being written")
        return dict(hosts)

    thread = threading.Thread(target=fence.watch, args=(identity, now), daemon=True)
    thread.start()
    assert until(lambda: not first.running)
    hosts[new_id()] = second
    assert until(lambda: not second.running)
    fails[0] = True
    time.sleep(0.1)
    second.running = dict.fromkeys(second.fenced, True)
    assert until(lambda: not second.running)
    first.fenced, second.fenced = {}, {}
    thread.join(5)
    assert not thread.is_alive()


def test_hosts_and_engines_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = path_of(tmp_path, "rack-1")
    keys = new_keys("rack-1")
    one, two = (AgentHost(id=new_id(), name=f"sim-{n}", backend="simulated") for n in (1, 2))

    def joined(*hosts: AgentHost) -> None:
        membership = Membership(
            api_url="http://127.0.0.1:1/v1",
            installation=INSTALLATION,
            temporal_address="127.0.0.1:1",
            temporal_namespace="default",
            credential="c",
            hosts=list(hosts),
            ticket_keys=[],
        )
        write(path, Identity(keys=keys, membership=membership))

    settings = Settings(agent_identity=path)
    hosts = fence.Hosts(settings)
    joined(one)
    before = hosts.now()
    assert set(before) == {one.id}
    assert hosts.now() is before
    joined(one, two)
    assert set(hosts.now()) == {one.id, two.id}
    engines = fence.Engines(docker_host="unix:///elsewhere", simulator_url="http://127.0.0.1:2")
    fence._engines(path).write_text(engines.model_dump_json())
    changed = hosts.now()
    assert changed is not before
    assert changed is hosts.now()


def test_who_asks_while_it_is_about_to_leave_is_not_left_alone(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked for the last time, and still holds the lock: whoever asks then finds a fence, and relies on it."""
    mark = fence._mark(identity)
    mark.touch()
    watched = []

    def watch(identity: Path, hosts: object) -> int:
        seen = fence._asked(identity)
        watched.append(seen)
        if len(watched) == 1:
            time.sleep(0.05)
            assert fence._lock(mark) is None
            mark.touch()
        return seen

    monkeypatch.setattr(fence, "watch", watch)
    lock = fence._lock(mark)
    assert lock is not None
    fence.keep_watch(identity, dict, lock)
    assert len(watched) == 2
    free = fence._lock(mark)
    assert free is not None
    os.close(free)


def leases_of(machines: Machines, identity: Path) -> Leases:
    more: Any = {"agent_url": None, "versions": {}, "capabilities": {}, "look_seconds": 1, "identity": identity}
    more |= {"ensure_fence": lambda: None, "on_ticket_keys": lambda keys: None}
    membership: Any = None
    return Leases(membership, {new_id(): machines}, membership, **more)  # type: ignore[dict-item]


async def test_an_api_of_0_2_is_asked_again_without_what_it_does_not_know(identity: Path) -> None:
    asked = []

    def of_0_2(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        known = all(set(host) <= {"id", "inventory"} for host in asked[-1]["hosts"])
        return httpx.Response(200 if known else 422, json={"data": {"hosts": []}})

    host = {"id": str(new_id()), "inventory": None}
    async with httpx.AsyncClient(base_url="http://api", transport=httpx.MockTransport(of_0_2)) as http:
        await leases_of(Machines(True), identity)._ask(http, hosts=[host | {"capabilities": ["network.none"]}])
    assert [body["hosts"] for body in asked] == [[host | {"capabilities": ["network.none"]}], [host]]


async def test_stops_of_a_renewal_that_was_given_up_are_over_before_the_next_begins(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they could stop what is started under the lease that the next one brings."""
    machines = Machines(True)
    fence.write_lease(identity, fence.clock() - 10, 5)
    hangs, under_way, most = threading.Event(), [0], []

    def stop(machine: UUID, grace_seconds: float, cancelled: Callable[[], bool]) -> None:
        under_way[0] += 1
        most.append(under_way[0])
        hangs.wait(5)
        under_way[0] -= 1

    monkeypatch.setattr(machines, "stop", stop)
    leases = leases_of(machines, identity)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await leases._close_fence()
    assert most == [1]
    hangs.set()
    await leases._close_fence()
    assert most == [1, 1]
