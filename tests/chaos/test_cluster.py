"""A platform of many processes under a constant load: each is restarted, one after the other, or killed at random.

``make test`` kills some, seeded; ``make chaos`` does ten minutes of either.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.versions import BEFORE
from tests import invariants
from tests.chaos.load import Load
from tests.chaos.test_matrix import PART, SEED
from tests.cluster import Cluster
from tests.deploy import servers
from tests.deploy.compose import ROOT
from tests.platform import wait_for
from tests.stack import QUICK

pytestmark = [pytest.mark.chaos, pytest.mark.engine, pytest.mark.timeout(2400)]
WHOLE = PART == "all"
USERS = 4 if WHOLE else 2
KILLING_SECONDS, KILL_EVERY = (600.0, 5.0) if WHOLE else (18.0, 3.0)
#: Machines that run tests are busy.
ENDING_SECONDS = 600
#: As the compose file has it.
LEAVE_SECONDS = 4
ROLLING_SECONDS = 600.0
#: The proxy looks every two seconds, and takes an API in again at the first look that it likes.
SEEN_BY_PROXY = 3.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    servers.install()
    made = Cluster(**QUICK)
    try:
        yield made.start()
    finally:
        made.remove()


@pytest.mark.skipif(not WHOLE, reason="minutes long: make chaos")
def test_everything_is_restarted_one_after_the_other_and_no_request_fails(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Load(cluster, USERS, SEED, patient=False, docker=True)
    stops: dict[str, list[float]] = {}
    began = time.monotonic()
    with load.running():
        for name in itertools.cycle(cluster.services):
            if time.monotonic() - began > ROLLING_SECONDS:
                break
            time.sleep(1)
            stops.setdefault(name.rpartition("-")[0] or name, []).append(restart(cluster, name))
    seconds = time.monotonic() - began
    shown = {kind: f"{len(took)} in {max(took):.1f} s at most" for kind, took in stops.items()}
    states = report(
        cluster,
        load,
        f"rolling restart of {seconds:.0f} s: stopped {shown}, {len(cluster.made.late)} not in time",
        capsys,
    )
    assert load.failures == []
    assert states["failed"] == 0
    assert min(stops["api"]) >= LEAVE_SECONDS, "it answers on until the proxy has seen that it is about to end"
    is_gone(cluster)


def test_a_random_process_is_killed_again_and_again_and_it_converges(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - to be repeated
    load = Load(cluster, USERS, SEED, patient=True, docker=True)
    killed: Counter[str] = Counter()
    began = time.monotonic()
    with load.running():
        for n in itertools.count(1):
            time.sleep(max(0.0, began + n * KILL_EVERY - time.monotonic()))
            if time.monotonic() - began > KILLING_SECONDS:
                break
            name = chance.choice(cluster.services)
            cluster.kill(name)
            killed[name.rpartition("-")[0] or name] += 1
    report(cluster, load, f"kill -9 every {KILL_EVERY:g} s for {KILLING_SECONDS:.0f} s: {dict(killed)}", capsys)
    assert load.failures == []
    is_gone(cluster)


@pytest.mark.skipif(not WHOLE, reason="minutes long; who may join is tested in tests/api and tests/model, too")
def test_processes_of_the_release_before_work_beside_ours_and_older_agents_may_not_join(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, older = numbered(BEFORE, tmp_path), numbered((BEFORE[0], BEFORE[1] - 1), tmp_path)
    load = Load(cluster, USERS, SEED, patient=False, docker=False)
    some = cluster.apis[0], *cluster.controls, "agent-1"
    with load.running():
        for name in some:
            restart(cluster, name, PYTHONPATH=before)
        wait_for("its version is seen", lambda: skew(cluster, "sim-1") == "older", 60)
        restart(cluster, "agent-1", PYTHONPATH=older)
        wait_for("its version is seen", lambda: skew(cluster, "sim-1") == "too_old", 60)
        time.sleep(2)  # who had joined is not cut off
        for name in some:
            restart(cluster, name)
    states = report(cluster, load, "restarts as the release before", capsys)
    assert (load.failures, states["failed"]) == ([], 0)
    refused, joined = (cluster.joins("skewed", PYTHONPATH=number) for number in (older, before))
    assert refused.returncode != 0 and "is of version" in refused.stderr, refused.stderr
    assert joined.returncode == 0, joined.stderr
    is_gone(cluster)


def restart(cluster: Cluster, name: str, **environ: str) -> float:
    """As docs/scaling.md says; how long it took to stop."""
    seconds = cluster.restart(name, **environ)
    if name in cluster.apis:
        time.sleep(SEEN_BY_PROXY)
    return seconds


def skew(cluster: Cluster, host: str) -> str:
    return next(str(row["version_skew"]) for row in cluster.get("/hosts", limit=500) if row["name"] == host)


def numbered(release: tuple[int, int], folder: Path) -> str:
    """A ``PYTHONPATH`` with which our programs take themselves for those of another release."""
    number = "{}.{}.0".format(*release)
    facts = folder / number / f"cairn_platform-{number}.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text(f"Metadata-Version: 2.1\nName: cairn-platform\nVersion: {number}\n")
    return f"{folder / number}{os.pathsep}{ROOT}"


def report(cluster: Cluster, load: Load, what: str, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """Everything ends, and nothing leaks; the states of what the load began, once it has ended."""
    ended = time.monotonic()
    wait_for("every workflow ends", lambda: not open_workflows(cluster), ENDING_SECONDS)
    invariants.settle(cluster, 60)
    rows = {str(id): (kind, state) for id, kind, state in cluster.sql("SELECT id, kind, state FROM workflows")}
    assert load.workflows <= rows.keys(), "what was accepted is there"
    states = Counter(rows[id][1] for id in load.workflows)
    assert states["completed"], "requests that only wait, and never fail, prove nothing"
    kinds = Counter(rows[id][0] for id in load.workflows)
    ((retried,),) = cluster.sql(
        "SELECT coalesce(sum((step ->> 'attempts')::int - 1), 0) FROM workflows, jsonb_array_elements(steps) AS step"
    )
    failed = cluster.sql("SELECT error ->> 'code', count(*) FROM workflows WHERE state = 'failed' GROUP BY 1")
    with capsys.disabled():
        print(
            f"\n{what}; {dict(kinds)}, which ended {dict(states)} {dict(failed)}; "
            f"answers {dict(load.answers)}, the slowest after {load.slowest:.1f} s; "
            f"requests repeated {dict(load.again)}, steps repeated {retried}; failures "
            f"{len(load.failures)}, leaks 0; at rest {time.monotonic() - ended:.1f} s later; CAIRN_CHAOS_SEED={SEED}"
        )
    return states


def open_workflows(cluster: Cluster) -> int:
    ((count,),) = cluster.sql("SELECT count(*) FROM workflows WHERE state IN ('accepted', 'running')")
    return int(count)


def is_gone(cluster: Cluster) -> None:
    cluster.delete_all(120)
    invariants.settle(cluster, 60)
    assert invariants.machines(cluster) == {}
