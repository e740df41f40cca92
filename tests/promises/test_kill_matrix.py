"""Promise 1, 2: killed, or its answer lost, at any point of any activity: everything converges with no help.

The points come from the registry: a new activity that no scenario here reaches fails the test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from activities.registry import fault_points
from tests.installation import Installation, Json

Scenario = Callable[[Installation, str], Json]


def launched(cairn: Installation, backend: str) -> Json:
    instance = cairn.launch(backend)
    assert cairn.ended(instance["workflow_id"])["state"] == "completed"
    return instance


def stopped(cairn: Installation, backend: str) -> Json:
    instance = cairn.running(backend)
    assert cairn.ended(cairn.act(instance, "stop")["workflow_id"])["state"] == "completed"
    assert cairn.instance(instance)["status"] == "stopped"
    return instance


def deleted(cairn: Installation, backend: str) -> Json:
    instance = cairn.running(backend)
    assert cairn.ended(cairn.act(instance, "delete")["workflow_id"])["state"] == "completed"
    return instance


#: How each activity is reached.
REACHED_BY: dict[str, Scenario] = {
    "instance.place": launched,
    "image.ensure": launched,
    "instance.create": launched,
    "instance.start": launched,
    "instance.settle": launched,
    "instance.claim": stopped,
    "instance.stop": stopped,
    "instance.delete": deleted,
    "host.inventory": launched,
    "host.reconcile": launched,
    "tick.sweep": launched,
}
POINTS = [(row["activity"], row["point"]) for row in fault_points()]
ENGINE = {row["activity"] for row in fault_points() if row["queue"] == "host"}


def test_every_activity_is_reached_by_a_scenario() -> None:
    assert {activity for activity, _ in POINTS} == set(REACHED_BY)


def cell(cairn: Installation, activity: str, point: str, action: str) -> None:
    backend = "docker" if activity in ENGINE else "simulated"
    before = cairn.hits(point)
    scenario = REACHED_BY[activity]
    cairn.fault(point, action)
    scenario(cairn, backend)
    cairn.held(point, 15, beyond=before)
    cairn.converged()


@pytest.mark.parametrize(("activity", "point"), POINTS, ids=[point for _, point in POINTS])
def test_kill(cairn: Installation, activity: str, point: str) -> None:
    cell(cairn, activity, point, "kill")


@pytest.mark.parametrize(("activity", "point"), POINTS, ids=[point for _, point in POINTS])
def test_error(cairn: Installation, activity: str, point: str) -> None:
    cell(cairn, activity, point, "error")


LOSABLE = [(activity, point) for activity, point in POINTS if not point.endswith(".before")]


@pytest.mark.parametrize(("activity", "point"), LOSABLE, ids=[point for _, point in LOSABLE])
def test_lost_answer(cairn: Installation, activity: str, point: str) -> None:
    cell(cairn, activity, point, "lose_answer")
