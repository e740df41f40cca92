"""What every folder of tests may use."""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before the tests are collected: every process of one run draws the same samples.
os.environ.setdefault("CAIRN_CHAOS_SEED", str(random.randrange(1_000_000)))  # noqa: S311 - no secret
# Compiled once for all processes that tests start: else each spends two seconds on it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parents[1] / ".pytest_cache" / "pycache"))

import docker
import httpx
import pytest

from tests import invariants
from tests.stack import Stack
from worker import engine

#: Folders of tests that take minutes together.
LONG = ("chaos", "promises")
#: The files that take longest: with several processes they come first, so that none is left alone with one at the end.
LONGEST = (
    "test_matrix.py",
    "test_cluster.py",
    "test_production.py",
    "test_setup.py",
    "test_network.py",
    "test_outage.py",
    "test_fleet.py",
    "test_groups.py",
    "test_lifetimes.py",
    "test_restore.py",
    "test_outside.py",
    "test_joining.py",
    "test_schemathesis.py",
    "test_commands.py",
    "test_storm.py",
    "test_soak.py",
    "test_upgrade.py",
    "test_events.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.getoption("numprocesses"):  # before many start at once
        everything = "import cli.main, worker.agent, worker.api, worker.control, worker.simulator, worker.stack"
        subprocess.run([sys.executable, "-c", everything], check=True, timeout=120)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", type=float, default=1.0, help="draw this part of each file's long tests, by CAIRN_CHAOS_SEED"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = not_drawn(items, config.getoption("part"))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    rank = {name: number for number, name in enumerate(LONGEST)}
    # Those on the shared platform one after the other: it ends with the last of them.
    items[:] = sorted(
        (item for item in items if item not in left_out),
        key=lambda item: (needs_shared(item), rank.get(item.path.name, len(rank))),
    )


def not_drawn(items: list[pytest.Item], part: float) -> set[pytest.Item]:
    """What the seed leaves out, of each file whose tests take minutes."""
    left_out: set[pytest.Item] = set()
    long = [item for item in items if item.path.parent.name in LONG and not item.get_closest_marker("drawn")]
    for path, found in itertools.groupby(long, key=lambda item: item.path):
        tests = list(found)
        seed = f"{os.environ['CAIRN_CHAOS_SEED']} {path.name}"
        chosen = random.Random(seed).sample(tests, math.ceil(len(tests) * part))  # noqa: S311 - a test's choice
        left_out |= set(tests) - set(chosen)
    return left_out


def needs_shared(item: pytest.Item | None) -> bool:
    return isinstance(item, pytest.Function) and "running_stack" in item.fixturenames


@pytest.fixture(scope="session", autouse=True)
def authorities_are_read_once() -> Iterator[None]:
    """Each client of httpx reads all that this machine trusts, 20 ms long; those of one process may share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


#: The shared platform, while tests that follow need it: one at rest takes a fifth of a processor.
_shared: list[Stack] = []


@pytest.fixture
def running_stack() -> Stack:
    """One platform for all tests that leave it as they found it."""
    if not _shared:
        _shared.append(Stack())
        _shared[0].start().ready()
    return _shared[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if _shared and not needs_shared(nextitem):
        _shared.pop().remove()


@pytest.fixture
def stack(running_stack: Stack) -> Iterator[Stack]:
    """The running platform; after the test it must be at rest, with nothing orphaned and nothing miscounted."""
    running_stack.wait_for_api()
    yield running_stack
    running_stack.plant()
    running_stack.simulate(latency_ms=0, refuse=0, lose_answers=0)
    invariants.settle(running_stack)
    running_stack.delete_all()
    invariants.settle(running_stack)


@pytest.fixture
def docker_engine() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=engine.SOCKET)
    yield client
    client.close()
