"""Files that come into a container that runs, on a real engine and a real disk; nothing of them is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from drivers.docker import DockerMachines
from drivers.docker_streams import DockerStreams
from drivers.session_trees import SessionTrees
from drivers.warm_trees import LEFT_OVER, WarmTrees
from model.base import new_id
from model.errors import EngineRefused, InvalidState, NotFound
from model.instances import MachineSpec
from model.sessions import IDLE
from tests.drivers.conftest import never
from tests.engines.test_session_trees import mounts, workspace
from tests.stack import IMAGE
from worker.engine import SOCKET

pytestmark = pytest.mark.engine


class Host:
    def __init__(self, folder: Path) -> None:
        owner: dict[str, Any] = {"installation": new_id(), "host_id": new_id()}
        self.folder = folder
        self.trees = SessionTrees(folder)
        self.warm = WarmTrees(folder, self.trees)
        self.machines = DockerMachines(SOCKET, **owner, publish_address="127.0.0.1", trees=self.trees, warm=self.warm)
        self.streams = DockerStreams(SOCKET, **owner)
        self.made: list[UUID] = []

    def launch(self) -> MachineSpec:
        id = new_id()
        self.made.append(id)
        spec = MachineSpec(
            id=id,
            project_id=new_id(),
            generation=1,
            name="warm",
            image=IMAGE,
            vcpus=1,
            memory_mb=64,
            cmd=IDLE,
            warm=True,
        )
        self.machines.create(spec)
        self.warm.ready(spec)
        self.machines.start(id, never)
        return spec

    def run(self, spec: MachineSpec, command: str) -> str:
        env = self.warm.variables(spec.id)
        made = self.streams.run(spec.id, ["/bin/sh", "-c", command], timeout_seconds=20, env=env)
        said = b"".join(output.data for output in made).decode()
        assert made.exit_code() == 0, said
        return said

    def remove(self, spec: MachineSpec) -> None:
        self.machines.delete(spec.id, spec.generation)
        self.warm.remove(spec.id)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "trees")
    made.folder.mkdir()
    yield made
    for id in made.made:
        made.machines.delete(id)
        made.warm.remove(id)
    for session in made.trees.found():
        made.trees.remove(session)
    assert not mounts(tmp_path)


def test_files_and_variables_come_into_what_runs_and_stay_through_stops_and_restarts(host: Host) -> None:
    assert host.warm.able
    spec, other = host.launch(), host.launch()
    tree = workspace(host.folder)
    claimed = spec.model_copy(update={"tree": tree.session, "env": {"A": "b c"}})
    host.warm.join(tree, claimed, never)
    assert host.run(claimed, 'cat README; pwd; echo "$A"; echo new > new') == "base/workspace\nb c\n"
    for _ in range(2):
        host.warm.join(tree, claimed, never)
    assert len(mounts(host.folder / "warm" / str(spec.id))) == 2
    merged = host.trees.merged(tree.session)
    assert (merged / "new").read_text() == "new\n"
    # Another session's never come into it.
    with pytest.raises(EngineRefused):
        host.warm.join(workspace(host.folder), claimed, never)
    # Nobody's is as it was; what is mounted later on its host does not show in it.
    assert os.listdir(host.folder / "warm" / str(other.id) / "place") == []

    host.machines.stop(spec.id, 0, never)
    # The host starts again: nothing is mounted any more.
    place = host.folder / "warm" / str(spec.id) / "place"
    subprocess.run(["umount", "-l", str(place), str(place), str(merged)], check=True)
    again = WarmTrees(host.folder, SessionTrees(host.folder))
    (host.folder / "warm" / str(spec.id) / "claim.json").unlink()
    again.ready(claimed)
    host.machines.start(spec.id, never)
    assert host.run(claimed, 'cat new; echo "$A"; echo more >> new') == "new\nb c\n"
    assert (merged / "new").read_text() == "new\nmore\n"

    host.remove(claimed)
    host.remove(claimed)
    assert host.warm.found() == [other.id] and (merged / "new").exists()
    # Whoever comes late brings nothing back.
    host.trees.remove(tree.session)
    with pytest.raises(NotFound):
        host.warm.join(tree, claimed, never)
    assert host.trees.found() == []


def test_a_command_waits_for_the_files_and_not_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = uuid4()
    assert host.warm.variables(sandbox) == {}
    host.warm.make(sandbox)
    monkeypatch.setattr("drivers.warm_trees.PATIENCE", 0.05)
    with pytest.raises(InvalidState, match="not there yet"):
        host.warm.variables(sandbox)
    # A place without a container, which may be about to get one, is removed when it is old.
    host.warm.sweep([])
    assert host.warm.found() == [sandbox]
    old = os.stat(host.folder / "warm" / str(sandbox)).st_mtime - 2 * LEFT_OVER
    os.utime(host.folder / "warm" / str(sandbox), (old, old))
    host.warm.sweep([sandbox])
    assert host.warm.found() == [sandbox]
    host.machines.inventory()
    assert host.warm.found() == []
