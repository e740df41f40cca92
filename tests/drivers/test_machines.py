"""What every driver of the machine port promises, whatever its engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from drivers import faults
from model.errors import FaultInjected, ForeignObject, ImageNotFound, InstanceExited, NotFound, PortTaken, Superseded
from model.health import HealthCheck
from model.images import ImageWanted
from model.instances import Port
from tests.drivers.conftest import Site, free_port, never, spec
from tests.services import until


def test_life_of_a_machine_and_each_call_twice(site: Site) -> None:
    machines, wanted = site.machines(), spec()
    site.images().ensure(wanted.wanted_image, never)
    made = machines.create(wanted)
    assert machines.create(wanted) == made
    started = machines.start(wanted.id, never)
    assert started.engine_id == made
    assert started.private_ip
    assert machines.start(wanted.id, never) == started
    assert [(m.id, m.generation, m.running) for m in machines.inventory()] == [(wanted.id, 1, True)]
    for _ in range(2):
        machines.stop(wanted.id, 0, never)
        assert [m.running for m in machines.inventory()] == [False]
    assert machines.start(wanted.id, never).engine_id == made
    for _ in range(2):
        machines.delete(wanted.id)
        assert machines.inventory() == []


def test_another_process_adopts_what_an_earlier_one_made(site: Site) -> None:
    wanted = spec()
    made = site.machines().create(wanted)
    assert site.machines().create(wanted) == made
    assert site.machines().start(wanted.id, never).engine_id == made


def test_two_creates_at_once_make_one_machine(site: Site) -> None:
    wanted = spec()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: site.machines().create(wanted), range(8)))
    assert len(set(made)) == 1
    assert len(site.machines().inventory()) == 1


def test_older_generation_is_replaced_and_a_newer_one_wins(site: Site) -> None:
    machines, old = site.machines(), spec()
    new = old.model_copy(update={"generation": 2})
    first = machines.create(old)
    machines.start(old.id, never)
    second = machines.create(new)
    assert second != first
    assert [(m.engine_id, m.generation) for m in machines.inventory()] == [(second, 2)]
    with pytest.raises(Superseded):
        machines.create(old)
    machines.delete(old.id, 1)
    assert [m.generation for m in machines.inventory()] == [2], "an undo of the old one leaves the new one"
    machines.delete(new.id, 2)
    assert machines.inventory() == []


def test_what_another_owner_made_is_foreign(site: Site) -> None:
    wanted, theirs = spec(), site.machines(installation=uuid4())
    theirs.create(wanted)
    mine = site.machines()
    try:
        with pytest.raises(ForeignObject) as refused:
            mine.create(wanted)
        assert str(wanted.id) in refused.value.message
        with pytest.raises(NotFound):
            mine.start(wanted.id, never)
        mine.stop(wanted.id, 0, never)
        mine.delete(wanted.id)
        assert mine.inventory() == []
        assert [m.id for m in theirs.inventory()] == [wanted.id]
    finally:
        theirs.delete(wanted.id)


def test_another_host_of_the_same_engine_is_a_stranger(site: Site) -> None:
    wanted = spec()
    site.machines().create(wanted)
    other = site.machines(host_id=uuid4())
    assert other.inventory() == []
    other.delete(wanted.id)
    assert len(site.machines().inventory()) == 1
    with pytest.raises(ForeignObject):
        other.create(wanted)


def test_answer_lost_after_the_effect_of_each_call(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines, wanted, file = site.machines(), spec(), tmp_path / "faults.json"
    monkeypatch.setenv("CAIRN_FAULTS_FILE", str(file))
    faults.enter(faults.Passage("instance.call", never))
    calls: list[tuple[Callable[[], object], list[bool]]] = [
        (lambda: machines.create(wanted), [False]),
        (lambda: machines.start(wanted.id, never), [True]),
        (lambda: machines.pause(wanted.id), [False]),
        (lambda: machines.resume(wanted.id), [True]),
        (lambda: machines.adjust(wanted.model_copy(update={"memory_mb": 128})), [True]),
        (lambda: machines.stop(wanted.id, 5, never), [False]),
        (lambda: machines.delete(wanted.id), []),
    ]
    for call, running in calls:
        file.write_text('[{"point": "instance.call.after_effect", "action": "lose_answer"}]')
        with pytest.raises(FaultInjected):
            call()
        assert [m.running for m in machines.inventory()] == running
        call()
        assert [m.running for m in machines.inventory()] == running


def test_absent_machine(site: Site) -> None:
    machines, nobody = site.machines(), spec()
    machines.delete(nobody.id)
    machines.stop(nobody.id, 0, never)
    for call in (
        lambda: machines.start(nobody.id, never),
        lambda: machines.pause(nobody.id),
        lambda: machines.resume(nobody.id),
        lambda: machines.adjust(nobody),
    ):
        with pytest.raises(NotFound):
            call()


def states(site: Site) -> list[tuple[bool, bool]]:
    """Running, paused."""
    return [(machine.running, machine.paused) for machine in site.machines().inventory()]


def test_pause_and_resume_and_each_twice(site: Site) -> None:
    machines, wanted = site.machines(), spec()
    made = machines.create(wanted)
    started = machines.start(wanted.id, never)
    for _ in range(2):
        machines.pause(wanted.id)
        assert states(site) == [(False, True)]
    assert machines.sample() == [], "what is paused uses nothing"
    for _ in range(2):
        machines.resume(wanted.id)
        assert states(site) == [(True, False)]
    machines.pause(wanted.id)
    assert machines.start(wanted.id, never) == started, "a start is also a way out"
    machines.pause(wanted.id)
    machines.stop(wanted.id, 0, never)
    assert states(site) == [(False, False)]
    assert machines.start(wanted.id, never).engine_id == made
    machines.pause(wanted.id)
    machines.delete(wanted.id)
    assert states(site) == []


def test_what_does_not_run_is_not_paused_or_resumed(site: Site) -> None:
    machines, wanted = site.machines(), spec()
    machines.create(wanted)
    for _ in ("created", "stopped"):
        for call in (machines.pause, machines.resume):
            with pytest.raises(InstanceExited):
                call(wanted.id)
        assert states(site) == [(False, False)]
        machines.start(wanted.id, never)
        machines.stop(wanted.id, 0, never)


def test_paused_machine_keeps_its_port(site: Site) -> None:
    port = Port(host_port=free_port(), container_port=80)
    first, second = spec(ports=[port]), spec(ports=[port])
    machines = site.machines()
    for wanted in (first, second):
        machines.create(wanted)
    machines.start(first.id, never)
    machines.pause(first.id)
    with pytest.raises(PortTaken):
        machines.start(second.id, never)


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_limits_change_and_everything_else_stays(site: Site, state: str) -> None:
    machines, wanted = site.machines(), spec(memory_mb=64)
    made = machines.create(wanted)
    machines.start(wanted.id, never)
    if state == "paused":
        machines.pause(wanted.id)
    elif state == "stopped":
        machines.stop(wanted.id, 0, never)
    for size in ({"vcpus": 2, "memory_mb": 256}, {"vcpus": 0.5, "memory_mb": 32}):
        for _ in range(2):
            machines.adjust(wanted.model_copy(update=size))
        (found,) = machines.inventory()
        assert {"vcpus": found.vcpus, "memory_mb": found.memory_mb} == size
        assert (found.engine_id, found.running, found.paused) == (made, state == "running", state == "paused")


def test_image_that_cannot_be_had(site: Site) -> None:
    with pytest.raises(ImageNotFound) as refused:
        site.images().ensure(ImageWanted(reference="127.0.0.1:4999/missing:latest"), never)
    assert "127.0.0.1:4999/missing:latest" in refused.value.message


def test_port_that_another_machine_has(site: Site) -> None:
    port = Port(host_port=free_port(), container_port=80)
    first, second = spec(ports=[port]), spec(ports=[port])
    machines = site.machines()
    for wanted in (first, second):
        machines.create(wanted)
    machines.start(first.id, never)
    with pytest.raises(PortTaken) as refused:
        machines.start(second.id, never)
    assert refused.value.details["port"] == port.host_port
    machines.delete(first.id)
    machines.start(second.id, never)


def test_users_labels_cannot_pass_for_ours(site: Site) -> None:
    wanted = spec(labels={"io.cairn.installation": "another", "team": "a"})
    machines = site.machines()
    machines.create(wanted)
    assert [m.id for m in machines.inventory()] == [wanted.id]


def test_usage_is_of_running_machines_of_the_owner_alone(site: Site) -> None:
    machines, wanted, stopped, foreign = site.machines(), spec(), spec(), spec()
    other = site.machines(host_id=uuid4())
    for mine in (wanted, stopped):
        machines.create(mine)
        machines.start(mine.id, never)
    other.create(foreign)
    other.start(foreign.id, never)
    machines.stop(stopped.id, 0, never)
    try:
        (first,) = machines.sample()
        (second,) = machines.sample()
        assert (first.id, first.project_id, first.generation) == (wanted.id, wanted.project_id, wanted.generation)
        assert second.at > first.at
        assert second.cpu_seconds >= first.cpu_seconds
        assert first.memory_bytes > 0
        machines.delete(wanted.id)
        assert machines.sample() == []
    finally:
        other.delete(foreign.id)


def test_health_check_is_kept_with_the_machine_for_whoever_looks(site: Site) -> None:
    check = HealthCheck(type="tcp", port=80, interval_seconds=2.5)
    wanted, other = spec(health_check=check), spec()
    machines = site.machines()
    for mine in (wanted, other):
        machines.create(mine)
    assert machines.checked() == [], "none runs"
    for mine in (wanted, other):
        machines.start(mine.id, never)
    assert site.machines(host_id=uuid4()).checked() == []
    (found,) = site.machines().checked()
    assert (found.id, found.project_id, found.generation, found.check) == (wanted.id, wanted.project_id, 1, check)
    assert until(lambda: machines.look(found).failure is None)
    assert machines.ready(wanted.id, never).engine_id == found.engine_id
    machines.stop(wanted.id, 0, never)
    assert machines.checked() == []
    with pytest.raises(InstanceExited):
        machines.ready(wanted.id, never)
    with pytest.raises(NotFound):
        machines.ready(uuid4(), never)
