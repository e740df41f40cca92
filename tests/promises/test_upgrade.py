"""Runs that an older version began are finished by this one, on the same data folder."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests import invariants
from tests.stack import Json, Stack

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
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
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def upgraded() -> Iterator[Stack]:
    """A platform of the test's own, not started."""
    made = Stack()
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.timeout(240)
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
