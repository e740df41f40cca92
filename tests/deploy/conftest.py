"""Cairn as production has it: a wheel of this tree in an environment of its own, with what the lock names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import compose, servers


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the installed programs, made as the Dockerfile makes it."""
    source, target = tmp_path_factory.mktemp("src") / "cairn", tmp_path_factory.mktemp("opt") / "cairn"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "bench", "docs")
    shutil.copytree(compose.ROOT, source, ignore=ignored)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # The uv of these tests' own environment.
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    for command in compose.build_commands():
        there = [word.replace("/opt/cairn", str(target)) for word in command]
        done = subprocess.run(there, cwd=source, env=environ, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return target / "bin"


@pytest.fixture(scope="session")
def installed() -> None:
    """PostgreSQL, HAProxy and docker-compose of the distribution; skips where they cannot be had."""
    try:
        servers.install()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs PostgreSQL and HAProxy of the distribution: {error}")


@pytest.fixture
def postgres(installed: None) -> Iterator[servers.ExternalPostgres]:
    server = servers.ExternalPostgres("p@ss/w:rd 1%")
    yield server
    server.remove()


@pytest.fixture(scope="session")
def temporal() -> Iterator[servers.ExternalTemporal]:
    """For all: each has a namespace of its own there."""
    server = servers.ExternalTemporal()
    server.start()
    yield server
    server.remove()
