"""What every folder of tests may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

# Before the tests are collected: every process of one run draws the same samples.
os.environ.setdefault("CAIRN_CHAOS_SEED", str(random.randrange(1_000_000)))  # noqa: S311

import docker
import pytest

from tests import invariants
from tests.stack import Stack
from worker import engine


@pytest.fixture(scope="session")
def running_stack() -> Iterator[Stack]:
    """One platform for all tests that leave it as they found it."""
    made = Stack()
    try:
        yield made.start().ready()
    finally:
        made.remove()


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
