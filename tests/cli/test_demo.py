"""What the demo's claims stand on: its own environment, its faults, its search for what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo_platform import DemoFailed, DemoPlatform, until
from drivers import faults
from model.errors import FaultInjected

POINT = "instance.create.after_effect"


@pytest.fixture
def platform(tmp_path: Path) -> DemoPlatform:
    platform = DemoPlatform(tmp_path / "demo", "unix:///nowhere.sock")
    platform.folder.mkdir()
    return platform


def test_the_persons_own_platform_lends_no_settings(platform: DemoPlatform) -> None:
    environ = {"PATH": "/bin", "CAIRN_API_KEY": "k", "CAIRN_INSTALLATION": "x", "CAIRN_PORT_RANGE": "1-2"}
    own = platform.environment(environ)
    assert not {"CAIRN_API_KEY", "CAIRN_INSTALLATION"} & own.keys()
    assert (own["PATH"], own["CAIRN_PORT_RANGE"]) == ("/bin", "1-2")
    assert own["CAIRN_DATA_DIR"] == str(platform.folder)
    assert {own[f"CAIRN_{name}_PORT"] for name in ("API", "TEMPORAL", "TEMPORAL_UI")} == {"0"}


def test_a_planted_fault_acts_once_and_is_seen(platform: DemoPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_FAULTS_FILE", str(platform.faults))
    platform.plant({"point": POINT, "action": "error", "times": 1})
    faults.enter(faults.Passage("instance.create", cancelled=lambda: False))
    assert platform.hits(POINT) == 0
    with pytest.raises(FaultInjected):
        faults.reached("after_effect")
    faults.reached("after_effect")
    assert (platform.hits(POINT), platform.hits("image.ensure.before")) == (1, 0)


def test_planting_nothing_frees_what_is_held(platform: DemoPlatform) -> None:
    platform.plant({"point": POINT, "action": "pause", "times": 1})
    platform.plant()
    assert json.loads(platform.faults.read_text()) == []


def test_a_process_that_is_left_is_found(platform: DemoPlatform) -> None:
    assert platform.processes() == []
    environ = {**os.environ, "CAIRN_DATA_DIR": str(platform.folder)}
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environ)
    try:
        until("it is found", lambda: platform.processes() == [left.pid], 5)
    finally:
        left.kill()
    assert left.stdin
    left.stdin.close()
    until("it is gone, though not yet waited for", lambda: platform.processes() == [], 5)
    left.wait()


def test_a_process_named_by_the_endpoint_file_is_looked_for_after_it_is_no_longer_named(platform: DemoPlatform) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    file = platform.folder / "endpoint.json"
    file.write_text(json.dumps({"pids": {"host_agent": child.pid}}))
    try:
        assert platform.agent() == child.pid
        file.write_text(json.dumps({"pids": {}}))
        assert platform.processes() == [child.pid]
    finally:
        child.communicate()
    assert platform.processes() == []


def test_what_does_not_happen_fails_the_demo() -> None:
    with pytest.raises(DemoFailed, match="the moon falls: not within 0 s"):
        until("the moon falls", lambda: None, 0)
