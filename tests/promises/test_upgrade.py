"""Runs that an older version began are finished by this one, on the same data folder."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from model.base import new_id
from model.keyring import new_master_key
from model.settings import Settings
from tests import invariants
from tests.receiver import Receiver
from tests.services import child
from tests.stack import Json, Stack, wait_for
from worker import database, postgres

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
SECRET = "of-sixteen-characters-and-more"
HISTORIES = ROOT / "tests" / "histories"
#: The last is the one before this; ``make chaos`` tries those before it too.
RELEASES = ["0.1.0", "0.2.0"]
#: Where each run is held when the old version is stopped: on the host and on the control queue, before a change,
#: after it, and after its commit.
PLACE, CREATE, STOP, DELETE = (
    "instance.place.after_commit",
    "instance.create.after_effect",
    "instance.stop.after_effect",
    "instance.delete.before",
)


def code_of(version: str, folder: Path) -> Path:
    """The source of a released version, out of this repository's history."""
    commit = (HISTORIES / version / "COMMIT").read_text().strip()
    try:
        made = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--format=tar", commit], capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError:
        pytest.fail(f"the code of {version} is taken from git, which is not installed here")
    if made.returncode:
        pytest.fail(
            f"commit {commit[:12]} of version {version} is not in this repository (a shallow clone?): "
            f"fetch its whole history. git says: {made.stderr.decode(errors='replace').strip()}"
        )
    folder.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    # The programs that are installed are this release's, and enter here.
    entries = Path("worker", "programs.py")
    if not (folder / entries).exists():
        shutil.copy(ROOT / entries, folder / entries)
    return folder


@pytest.fixture
def upgraded() -> Iterator[Stack]:
    """A platform of the test's own, not started, whose database the older release makes."""
    made = Stack(fresh=True)
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("version", RELEASES if os.environ.get("CAIRN_CHAOS") == "all" else RELEASES[-1:])
def test_runs_under_way_during_an_upgrade_complete(upgraded: Stack, version: str, tmp_path: Path) -> None:
    stack, code = upgraded, code_of(version, tmp_path)
    # Its own name for the interval between two looks at the engines.
    stack.start(PYTHONPATH=str(code), CAIRN_RECONCILE_SECONDS="4").ready()
    assert stack.request("GET", "/images").status_code == httpx.codes.NOT_FOUND, "it is the older code that runs"
    kept, stopping, deleting = (stack.running(backend="docker") for _ in range(3))
    stack.plant(
        *({"point": point, "action": "pause", "times": 1, "seconds": 0} for point in (PLACE, CREATE, STOP, DELETE))
    )
    runs: dict[str, Json] = {}
    for point, ask in (
        (PLACE, stack.launch),
        (CREATE, partial(stack.launch, backend="docker")),
        (STOP, partial(stack.act, "stop", stopping)),
        (DELETE, partial(stack.act, "delete", deleting)),
    ):
        runs[point] = ask()
        stack.wait_for_hit(point)
    stack.stop()
    stack.plant()

    stack.start().ready()
    ended = {point: stack.ended(run, 90) for point, run in runs.items()}
    assert {point: row["state"] for point, row in ended.items()} == dict.fromkeys(runs, "completed"), ended
    invariants.settle(stack)
    statuses = [stack.instance(run)["status"] for run in runs.values()]
    assert statuses == ["running", "running", "stopped", "deleted"]
    after = stack.instance(kept)
    assert (after["status"], after["container_id"], after["generation"]) == (
        "running",
        kept["container_id"],
        kept["generation"],
    )
    # What the older version made is this one's, to start and to delete.
    stack.completed(stack.act("start", stopping))
    stack.completed(stack.act("stop", kept))
    stack.delete_all()
    invariants.settle(stack)


class Choice:
    """Which code a process runs that is started now: those that run keep theirs."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.folder = folder / "choice"
        self.folder.mkdir()
        text = "import pathlib, sys\nsys.path.insert(0, (pathlib.Path(__file__).parent / 'code').read_text())\n"
        (self.folder / "sitecustomize.py").write_text(text)
        self.choose(code)

    def choose(self, code: Path) -> None:
        (self.folder / "code").write_text(str(code))


def replace(stack: Stack, name: str) -> None:
    """Ended as an orchestrator does it, and started again."""
    pid = stack.pids()[name]
    os.kill(pid, signal.SIGTERM)
    stack.wait_for_restart(name, pid, 30)


@contextlib.contextmanager
def second_control_worker(stack: Stack) -> Iterator[Callable[[], None]]:
    """One beside the stack's, with its environment; what is given starts it again."""
    environ = Path(f"/proc/{stack.pids()['control_worker']}/environ").read_bytes().split(b"\0")
    variables = dict(pair.split(b"=", 1) for pair in environ if pair)
    log = stack.data / "logs" / "control_worker-2.log"
    command = [str(Path(sys.executable).with_name("cairn-control"))]
    process = child(command, log, env=variables)

    def again() -> None:
        nonlocal process
        stop(process)
        process = child(command, log, env=variables)

    try:
        yield again
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def set_up(stack: Stack) -> None:
    """What ``cairn setup`` does."""
    owner = postgres.find(stack.data).url("cairn_owner")
    database.migrate(owner)
    database.seed(owner, installation=new_id(), api_key=None, hosts=[], settings=Settings())


def held(stack: Stack, *points: str) -> list[Json]:
    """Runs that are held at these points."""
    machines = [stack.launch() for _ in range(2)]
    for machine in machines:
        stack.completed(machine)
    stack.plant(*({"point": point, "action": "pause", "times": 1, "seconds": 0} for point in points))
    asks = {
        PLACE: stack.launch,
        CREATE: partial(stack.launch, backend="docker"),
        STOP: partial(stack.act, "stop", machines[0]),
        DELETE: partial(stack.act, "delete", machines[1]),
    }
    runs = []
    for point in points:
        before = len(stack.hits(point))
        runs.append(asks[point]())
        stack.wait_for_hit(point, before)
    return runs


def freed(stack: Stack, runs: list[Json]) -> None:
    """They go on, and complete."""
    stack.plant()
    for run in runs:
        stack.completed(run, 60)


@pytest.mark.chaos
@pytest.mark.skipif(os.environ.get("CAIRN_CHAOS") != "all", reason="takes a minute; part of the long run (make chaos)")
def test_release_before_works_beside_this_one(upgraded: Stack, tmp_path: Path) -> None:
    """Schema, one control worker, the other, API, agent, as docs/upgrading.md says; with runs under way at each."""
    stack, choice = upgraded, Choice(tmp_path, code_of(RELEASES[-1], tmp_path / "old"))
    keys = new_master_key("first")
    stack.start(PYTHONPATH=str(choice.folder), CAIRN_RECONCILE_SECONDS="4", CAIRN_MASTER_KEYS=keys).ready()
    assert stack.request("GET", "/images").status_code == httpx.codes.NOT_FOUND, "it is the older code that runs"
    with second_control_worker(stack) as replace_second:
        runs = held(stack, PLACE, CREATE, STOP, DELETE)
        set_up(stack)
        choice.choose(ROOT)
        replace_second()
        freed(stack, runs)
        # What the older API asks for, workers of both and the older agent do.
        runs = held(stack, PLACE, CREATE, STOP, DELETE)
        replace(stack, "control_worker")
        freed(stack, runs)
        runs = held(stack, PLACE, CREATE)
        replace(stack, "api")
        stack.wait_for_api()
        assert stack.request("GET", "/images").is_success, "it is this one's API that answers"
        freed(stack, runs)
        # What only this one knows waits for an agent that does; what this API writes sealed, its workers open.
        paused = stack.running(backend="docker")
        pause = stack.act("pause", paused)
        with Receiver() as receiver:
            stack.accept("POST", "/webhooks", {"name": "hook", "url": receiver.url, "secret": SECRET})
            runs = held(stack, CREATE, STOP, DELETE)
            assert wait_for("it is delivered", lambda: receiver.received)[0].is_signed_with(SECRET)
        replace(stack, "host_agent")
        freed(stack, [*runs, pause])
        assert stack.instance(paused)["status"] == "paused"
    invariants.settle(stack)
    stack.delete_all()
    invariants.settle(stack)
