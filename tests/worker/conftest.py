"""Supervisors as child processes, ended with everything they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import database
from worker.data_folder import is_alive

__all__ = ["database"]

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_stack.py")
FREE_PORTS = {"CAIRN_API_PORT": "0", "CAIRN_TEMPORAL_PORT": "0", "CAIRN_TEMPORAL_UI_PORT": "0"}


class Supervised:
    """One data folder, and supervisors started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.process: subprocess.Popen[str] | None = None
        self.seen: set[int] = set()

    def start(self, api: str = "serves", agent: str = "sleeps", **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(FAKE), str(self.folder), api, agent],
            env={name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
            | FREE_PORTS
            | {"CAIRN_DATA_DIR": str(self.data), "PYTHONPATH": str(ROOT)}
            | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if self.process is None or self.process.poll() is not None:
            self.process = process
        return process

    def up(self, **more: str) -> dict[str, int]:
        process = self.start(**more)
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready "):
                return self.pids()
        raise AssertionError("".join(lines))

    def endpoint(self) -> dict[str, Any]:
        return json.loads((self.data / "endpoint.json").read_text())

    def pids(self) -> dict[str, int]:
        pids = self.endpoint()["pids"]
        self.seen |= set(pids.values())
        return pids

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def left(self) -> set[int]:
        """Which of the processes ever seen still live."""
        return {pid for pid in self.seen if is_alive(pid)}


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    one = Supervised(tmp_path)
    yield one
    if one.process and one.process.poll() is None:
        one.process.kill()
        one.process.communicate()
