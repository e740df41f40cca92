"""Which labels prove that an engine's object is ours, and which do not."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from drivers.ownership import Owner, machine_name
from model.errors import ForeignObject, Superseded
from tests.drivers.conftest import spec

OWNER = Owner(installation=uuid4(), host_id=uuid4())
SPEC = spec(generation=3)
LABELS = OWNER.labels(SPEC)
#: Of something else; the same in every run, so that tests keep their names.
OTHER = UUID(int=1)
NAME = machine_name(SPEC.id)


def test_name_is_made_of_the_id_alone() -> None:
    assert machine_name(UUID(int=1)) == "cairn-instance-00000000-0000-0000-0000-000000000001"


def test_labels_say_whose_it_is() -> None:
    assert {
        "io.cairn.installation": str(OWNER.installation),
        "io.cairn.host": str(OWNER.host_id),
        "io.cairn.kind": "instance",
        "io.cairn.project": str(SPEC.project_id),
        "io.cairn.id": str(SPEC.id),
        "io.cairn.generation": "3",
        "io.cairn.image-name": SPEC.image,
        "io.cairn.name": "web",
    } == LABELS
    assert OWNER.owned(NAME, LABELS) == (SPEC.id, 3)
    assert {f"{name}={LABELS[name]}" for name in LABELS} >= set(OWNER.filters())


def test_users_labels_are_kept_apart() -> None:
    labels = OWNER.labels(spec(labels={"io.cairn.host": "mine", "installation": "mine", "team": "a"}))
    assert labels["io.cairn.host"] == str(OWNER.host_id)
    assert labels["io.cairn.user.io.cairn.host"] == "mine"
    assert labels["io.cairn.user.team"] == "a"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("installation", str(OTHER)),
        ("installation", ""),
        ("host", str(OTHER)),
        ("kind", "volume"),
        ("id", "web"),
        ("generation", "new"),
    ],
)
def test_one_wrong_label_is_enough_to_be_a_stranger(name: str, value: str) -> None:
    wrong = LABELS | {f"io.cairn.{name}": value}
    assert OWNER.owned(NAME, wrong) is None
    with pytest.raises(ForeignObject):
        OWNER.check_adoptable(SPEC, wrong)


@pytest.mark.parametrize("name", ["installation", "host", "kind", "id", "generation"])
def test_one_absent_label_is_enough_too(name: str) -> None:
    assert OWNER.owned(NAME, {key: value for key, value in LABELS.items() if key != f"io.cairn.{name}"}) is None


@pytest.mark.parametrize("name", ["web", "", f"cairn-instance-{OTHER}"])
def test_labels_under_another_name_are_a_copys(name: str) -> None:
    assert OWNER.owned(name, LABELS) is None


def test_an_object_with_the_name_of_one_and_the_id_of_another_is_foreign() -> None:
    other = spec(generation=3)
    with pytest.raises(ForeignObject) as refused:
        OWNER.check_adoptable(other, LABELS)
    assert refused.value.details["name"] == machine_name(other.id)


@pytest.mark.parametrize(("generation", "adopted"), [(3, True), (4, False)])
def test_generation_decides_between_adopting_and_replacing(generation: int, adopted: bool) -> None:
    assert OWNER.check_adoptable(SPEC.model_copy(update={"generation": generation}), LABELS) is adopted


def test_newer_generation_is_not_touched() -> None:
    with pytest.raises(Superseded) as refused:
        OWNER.check_adoptable(SPEC.model_copy(update={"generation": 2}), LABELS)
    assert not refused.value.retryable


@pytest.mark.parametrize(("generation", "what"), [(4, "replaced"), (3, "foreign"), (2, "foreign")])
def test_older_placement_on_another_host_of_ours_with_the_same_engine_is_replaced(generation: int, what: str) -> None:
    elsewhere = Owner(installation=OWNER.installation, host_id=uuid4())
    wanted = SPEC.model_copy(update={"generation": generation})
    if what == "replaced":
        assert elsewhere.check_adoptable(wanted, LABELS) is False
    else:
        with pytest.raises(ForeignObject):
            elsewhere.check_adoptable(wanted, LABELS)
    with pytest.raises(ForeignObject):
        Owner(installation=uuid4(), host_id=OWNER.host_id).check_adoptable(wanted, LABELS)
