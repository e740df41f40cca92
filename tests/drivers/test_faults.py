"""The protocol of the fault file: tests, the kill matrix and operators' drills depend on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from drivers import faults
from drivers.machines import Cancelled
from model.errors import FaultInjected

PASS = """
import sys
from drivers import faults
faults.enter(faults.Passage("image.ensure", lambda: False))
faults.reached(sys.argv[1])
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "faults.json"
    monkeypatch.setenv("CAIRN_FAULTS_FILE", str(path))
    return path


def write(file: Path, *entries: dict[str, Any]) -> None:
    """Whole at once: who is held by a pause reads it all the time."""
    fresh = file.with_name("fresh.json")
    fresh.write_text(json.dumps(entries))
    fresh.replace(file)


def plant(file: Path, action: str, point: str = "image.ensure.before", times: int = 1, seconds: float = 0) -> None:
    write(file, {"point": point, "action": action, "times": times, "seconds": seconds})


def hits(file: Path) -> list[Any]:
    path = Path(f"{file}.hits")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def passing(cancelled: bool = False, **seen: Any) -> faults.Passage:
    passage = faults.Passage("image.ensure", lambda: cancelled, **seen)
    faults.enter(passage)
    return passage


def test_without_a_file_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAIRN_FAULTS_FILE", raising=False)
    passage = passing()
    faults.reached("after_effect")
    assert passage.passed == {"after_effect"}


def test_absent_file_and_other_points_do_nothing(file: Path) -> None:
    passing()
    faults.reached("before")
    plant(file, "error", point="image.ensure.after_commit")
    faults.reached("before")
    assert hits(file) == []


def test_error_acts_as_often_as_it_says_and_each_hit_is_written_down(file: Path) -> None:
    plant(file, "error", times=2)
    passing(attempt=7)
    for _ in range(2):
        with pytest.raises(FaultInjected):
            faults.reached("before")
    faults.reached("before")
    assert json.loads(file.read_text())[0]["times"] == 0
    assert [(hit["point"], hit["action"], hit["attempt"]) for hit in hits(file)] == [
        ("image.ensure.before", "error", 7)
    ] * 2


def test_answer_can_be_lost_only_where_there_is_one(file: Path) -> None:
    passing()
    plant(file, "lose_answer")
    faults.reached("before")
    plant(file, "lose_answer", point="image.ensure.after_effect")
    with pytest.raises(FaultInjected):
        faults.reached("after_effect")


def test_name_made_of_activity_and_whole_point_is_understood(file: Path) -> None:
    plant(file, "error", point="image.ensure.image.ensure.before")
    passing()
    with pytest.raises(FaultInjected):
        faults.reached("before")


def test_kill_is_sigkill_after_the_hit_was_written(file: Path) -> None:
    plant(file, "kill")
    ended = subprocess.run([sys.executable, "-c", PASS, "before"], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [hit["action"] for hit in hits(file)] == ["kill"]


def test_processes_beside_each_other_share_the_count(file: Path) -> None:
    plant(file, "kill", times=2)
    running = [subprocess.Popen([sys.executable, "-c", PASS, "before"]) for _ in range(3)]
    codes = sorted(process.wait() for process in running)
    assert codes == [-signal.SIGKILL] * 2 + [0]
    assert len({hit["pid"] for hit in hits(file)}) == 2


def test_delay(file: Path) -> None:
    plant(file, "delay", seconds=0.3)
    passing()
    began = time.monotonic()
    faults.reached("before")
    assert 0.3 <= time.monotonic() - began < 5


def test_pause_holds_until_its_entry_goes(file: Path) -> None:
    plant(file, "pause")
    passed = threading.Event()

    def work() -> None:
        passing()
        faults.reached("before")
        passed.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not passed.wait(0.5)
    assert [hit["action"] for hit in hits(file)] == ["pause"]
    write(file)
    assert passed.wait(5)
    thread.join()


def test_entries_act_in_their_order_and_keep_what_tests_noted_in_them(file: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"point": "image.ensure.after_effect", "action": "error", "note": "another point"},
        {"point": "image.ensure.before", "action": "error", "times": 1, "note": "first"},
        {"point": "image.ensure.before", "action": "lose_answer", "times": 1, "note": "second"},
    ]
    write(file, *entries)
    passing()
    with pytest.raises(FaultInjected):
        faults.reached("before")
    faults.reached("before")
    assert [hit["action"] for hit in hits(file)] == ["error", "lose_answer"]
    left = json.loads(file.read_text())
    assert [entry["note"] for entry in left] == [entry["note"] for entry in entries]
    assert [entry["times"] for entry in left] == [1, 0, 0]


def test_cancel_in_the_middle_of_a_pause_ends_it(file: Path) -> None:
    plant(file, "pause")
    began = time.monotonic()
    faults.enter(faults.Passage("image.ensure", lambda: time.monotonic() - began > 0.3))
    with pytest.raises(Cancelled):
        faults.reached("before")
    assert 0.3 <= time.monotonic() - began < 5


@pytest.mark.parametrize("action", ["pause", "delay"])
def test_cancel_frees_what_is_held(file: Path, action: str) -> None:
    plant(file, action, seconds=60)
    passing(cancelled=True)
    with pytest.raises(Cancelled):
        faults.reached("before")


def test_file_that_cannot_be_read_is_an_error_and_not_silence(file: Path) -> None:
    file.write_text('[{"point": "image.ensure.before", "action": "explode"}]')
    passing()
    with pytest.raises(ValueError, match="explode"):
        faults.reached("before")
