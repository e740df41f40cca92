"""The pictures of docs/architecture.md are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from activities.runs import host_queue
from model.instances import VERBS, Status
from worker.database import ROLES

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
PICTURES = re.findall(r"^```mermaid\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
#: Said in words beside the picture.
LEFT_OUT = {"HealInstance", "MoveInstance"}
#: From every state: one arrow stands for all.
FROM_ALL = "DeprovisionInstance"


def arrows() -> list[tuple[str, str, str]]:
    (states,) = [one for one in PICTURES if one.startswith("stateDiagram")]
    return re.findall(r"^ +(\S+) --> (\S+?)(?:: (\w+))?$", states, re.MULTILINE)


def test_states_and_verbs_are_the_models() -> None:
    named = {(before, during, verb) for before, during, verb in arrows() if verb in VERBS}
    wanted = {
        (str(before), str(verb.during), kind)
        for kind, verb in VERBS.items()
        if kind not in LEFT_OUT | {FROM_ALL, "ProvisionInstance"}
        for before in verb.allowed
    }
    assert named == wanted | {("running", "deleting", FROM_ALL), ("pending", "provisioning", "ProvisionInstance")}
    assert all(f"`{kind}`" in DOCUMENT for kind in LEFT_OUT)
    assert {state for before, after, _ in arrows() for state in (before, after)} - {"[*]"} == set(Status)


def test_ways_out_of_a_verb_are_the_models() -> None:
    during = {verb.during: verb for kind, verb in VERBS.items() if kind not in LEFT_OUT}
    during[Status.PROVISIONING] = during.pop(Status.PENDING)
    for state, verb in during.items():
        ends = {after for before, after, label in arrows() if before == state and not label}
        assert ends == ({str(verb.done)} if verb.done else {str(one) for one in verb.allowed}), state


def test_picture_names_the_roles_and_queues_that_there_are() -> None:
    (whole,) = [one for one in PICTURES if one.startswith("flowchart")]
    for role in re.findall(r"cairn_\w+", whole):
        assert role in ROLES
    assert host_queue("NAME") in whole
    (launch,) = [one for one in PICTURES if one.startswith("sequenceDiagram")]
    from activities.registry import fault_points

    activities = {row["activity"] for row in fault_points()}
    steps = set(re.findall(r"\b(?:instance|image)\.\w+", launch))
    assert len(steps) == 5
    assert steps <= activities
