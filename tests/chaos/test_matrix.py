"""The kill matrix. ``make test`` runs a seeded part of it, ``make chaos`` all of it.

``CAIRN_CHAOS`` is the part (``all``, or a number up to 1), ``CAIRN_CHAOS_SEED`` repeats a run,
``CAIRN_CHAOS_STACKS`` is how many platforms work on it beside each other, ``CAIRN_CHAOS_ONLY`` leaves cells that have
one of these words in them, as ``restore.,machine.``.
"""

from __future__ import annotations

import os
import queue
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from activities.registry import fault_points
from drivers.faults import POINTS
from tests.chaos import scenarios
from tests.chaos.cells import Cell, sample, unreached
from tests.stack import Stack

PART = os.environ.get("CAIRN_CHAOS", "0.006")
pytestmark = pytest.mark.drawn
SEED = int(os.environ["CAIRN_CHAOS_SEED"])
STACKS = int(os.environ.get("CAIRN_CHAOS_STACKS", "3" if PART == "all" else "2"))
ONLY = os.environ.get("CAIRN_CHAOS_ONLY", "").split(",")


class Result(NamedTuple):
    cell: Cell
    seconds: float
    error: str | None


def test_every_activity_has_three_points_and_a_scenario_that_reaches_it() -> None:
    assert unreached() == set(), "write a scenario for them: tests/chaos/cells.py"
    points: dict[str, list[str]] = {}
    for point in fault_points():
        points.setdefault(point["activity"], []).append(point["point"])
    for activity, found in points.items():
        assert found == [f"{activity}.{name}" for name in POINTS]


@pytest.fixture(scope="module")
def stacks() -> Iterator[list[Stack]]:
    made = [Stack() for _ in range(STACKS)]
    try:
        for stack in made:
            stack.start()
        yield [stack.ready() for stack in made]
    finally:
        with ThreadPoolExecutor(len(made)) as threads:
            list(threads.map(Stack.remove, made))


@pytest.mark.chaos
@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_whatever_happens_at_whatever_point_it_converges(
    stacks: list[Stack], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = sample(1.0 if PART == "all" else float(PART), SEED)
    cells = [cell for cell in drawn if any(word in " ".join(cell) for word in ONLY)]
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)

    def work(stack: Stack) -> list[Result]:
        """Cells, one after the other, until there are none left or the stack does not recover."""
        results: list[Result] = []
        while True:
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return results
            began = time.monotonic()
            try:
                scenarios.run(stack, cell)
                results.append(Result(cell, time.monotonic() - began, None))
            except Exception:
                results.append(Result(cell, time.monotonic() - began, traceback.format_exc(limit=-8, chain=False)))
                if not scenarios.recover(stack):
                    return results

    with ThreadPoolExecutor(len(stacks)) as threads:
        results = [result for found in threads.map(work, stacks) for result in found]
    failed = [result for result in results if result.error]
    with capsys.disabled():
        print(table(results))
        print(f"{len(results)} of {len(cells)} cells, {len(failed)} failed; CAIRN_CHAOS={PART} CAIRN_CHAOS_SEED={SEED}")
    assert not failed, "\n\n".join(f"{' '.join(result.cell)}\n{result.error}" for result in failed)
    assert len(results) == len(cells), "no stack was left to run the others"


def table(results: list[Result]) -> str:
    """Seconds by cell; simulated and real engine side by side."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for cell, seconds, error in sorted(results):
        row = rows.setdefault((cell.what, cell.plan, cell.activity), {point: [] for point in POINTS})
        engine = "d" if cell.backend == "docker" else "s"
        row[cell.point.rpartition(".")[2]].append(f"{'FAIL' if error else f'{seconds:.1f}'}{engine}")
    lines = ["", f"{'what':<12}{'plan':<13}{'activity':<17}" + "".join(f"{point:<15}" for point in POINTS)]
    for (what, plan, activity), row in rows.items():
        shown = "".join(f"{' '.join(row[point]) or '-':<15}" for point in POINTS)
        lines.append(f"{what:<12}{plan:<13}{activity:<17}{shown}")
    return "\n".join(lines)
