"""States and moves, errors, ids: what stands in the model and others rely on."""

from __future__ import annotations

import inspect
import time

import pytest
from pydantic import ValidationError
from sqlalchemy import CheckConstraint

from model import errors
from model.base import new_id
from model.instances import STABLE, VERBS, Instance, Port, Status
from model.workflows import TERMINAL, Order, State, Workflow
from workflows import instance_changes, instances


def test_every_plan_has_its_verb() -> None:
    assert {plan.__name__ for plan in [*instances.PLANS, *instance_changes.PLANS]} == set(VERBS)


def test_delete_is_legal_from_every_living_state() -> None:
    assert VERBS["DeprovisionInstance"].allowed == set(Status) - {Status.DELETED}


def test_verbs_lead_from_stable_states_through_their_own_to_stable_or_gone() -> None:
    for kind, verb in VERBS.items():
        assert verb.during not in STABLE
        assert verb.done in STABLE | {Status.DELETED, None}
        assert verb.stranded in STABLE | {None}
        if kind in ("StartInstance", "StopInstance", "PauseInstance", "ResumeInstance"):
            assert verb.allowed < STABLE
            assert verb.done not in verb.allowed


@pytest.mark.parametrize(("table", "states"), [(Instance, Status), (Workflow, State)])
def test_database_knows_exactly_the_states_of_the_model(table: type, states: type) -> None:
    checks = [str(c.sqltext) for c in table.__table__.constraints if isinstance(c, CheckConstraint)]
    (check,) = [text for text in checks if text.startswith(("status IN", "state IN"))]
    for state in states:  # type: ignore[attr-defined]
        assert f"'{state}'" in check
    assert check.count("'") == 2 * len(list(states))  # type: ignore[call-overload]


def test_terminal_states() -> None:
    assert set(State) - TERMINAL == {State.ACCEPTED, State.RUNNING}


def test_ids_sort_by_time_and_are_distinct() -> None:
    ids = []
    for _ in range(5):
        ids += [new_id() for _ in range(1000)]
        time.sleep(0.002)
    assert ids[::1000] == sorted(ids[::1000])
    assert len(set(ids)) == len(ids)
    assert {one.version for one in ids} == {7}


def family() -> list[type[errors.CairnError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.CairnError) and kind is not errors.CairnError
    ]


def test_errors_have_codes_of_their_own_and_a_status() -> None:
    codes = [kind.code for kind in family()]
    assert len(set(codes)) == len(codes)
    assert "internal" not in codes
    for kind in family():
        assert 400 <= kind.status < 600, kind
        assert kind.code == kind.code.lower()


def test_what_goes_to_workflows_is_frozen_and_closed() -> None:
    order = Order(
        workflow_id=new_id(),
        project_id=new_id(),
        kind="ProvisionInstance",
        resource_type="instance",
        resource_id=new_id(),
        name="web",
        request_id="r",
        deadline_seconds=1,
    )
    with pytest.raises(ValidationError):
        order.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Order.model_validate(order.model_dump() | {"extra": 1})
    assert Order.model_validate_json(order.model_dump_json()) == order
    assert Port(host_port=None, container_port=80).protocol == "tcp"
