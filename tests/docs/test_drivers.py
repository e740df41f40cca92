"""docs/adding-a-driver.md: its list is the port's, and its toy passes what every driver passes."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest

from drivers.machines import Machines
from tests.drivers import test_machines as contract
from tests.drivers.conftest import Site

DOCUMENT = (Path(__file__).parents[2] / "docs" / "adding-a-driver.md").read_text()
#: All of what every driver is tried with, but for what is about images, which the toy has none of.
TRIALS = [
    trial
    for name, trial in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(trial).parameters) == ["site"] and "image" not in name
]


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    """The page's program, as a module."""
    (text,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    made = ModuleType("toy_driver")
    sys.modules["toy_driver"] = made
    exec(compile(text, "docs/adding-a-driver.md", "exec"), vars(made))  # noqa: S102 - our own page
    return made


class NoImages:
    def ensure(self, *_: Any) -> None:
        pass


class FolderSite(Site):
    backend = "folder"

    def __init__(self, toy: ModuleType, folder: Path) -> None:
        super().__init__(uuid4(), folder)
        self.toy = toy

    def machines(self, installation: UUID | None = None, host_id: UUID | None = None) -> Machines:
        owner = {"installation": installation or self.installation, "host_id": host_id or self.host_id}
        made: Machines = self.toy.FolderMachines(self.folder, **owner)
        return made

    def images(self) -> Any:
        return NoImages()


def methods(kind: type) -> dict[str, inspect.Signature]:
    found = {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and name[0] != "_"}
    return {name: inspect.signature(each) for name, each in found.items()}


def test_the_table_is_the_port() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", DOCUMENT.partition("## A toy")[0], re.MULTILINE)
    assert listed == ["Machines", *methods(Machines)]


def test_the_toy_has_the_ports_methods_as_they_are(toy: ModuleType) -> None:
    assert methods(toy.FolderMachines) == methods(Machines)


@pytest.mark.parametrize("trial", TRIALS)
def test_the_toy_does_what_every_driver_does(toy: ModuleType, tmp_path: Path, trial: Any) -> None:
    trial(FolderSite(toy, tmp_path))


def test_the_toy_survives_a_lost_answer_at_every_call(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract.test_answer_lost_after_the_effect_of_each_call(FolderSite(toy, tmp_path), tmp_path, monkeypatch)


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_the_toys_limits_change(toy: ModuleType, tmp_path: Path, state: str) -> None:
    contract.test_limits_change_and_everything_else_stays(FolderSite(toy, tmp_path), state)


def test_it_names_the_places_that_there_are() -> None:
    root = Path(__file__).parents[2]
    for path in re.findall(r"`((?:model|worker|tests|drivers)/[\w/]+(?:\.py|/))`", DOCUMENT):
        assert path == "drivers/folder.py" or (root / path).exists(), path
    wiring = (root / "worker/host_drivers.py").read_text()
    for name in ("machine_driver", "image_driver", "stream_driver"):
        assert f"\ndef {name}(" in wiring and f"`{name}()`" in DOCUMENT


def test_lint_knows_every_module_that_is_of_one_engine() -> None:
    root = Path(__file__).parents[2]
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (kept,) = (one for one in contracts if one["name"] == "Only the wiring knows which engines there are")
    there = {
        f"drivers.{path.stem}"
        for kind in ("docker", "simulated", "s3")
        for path in (root / "drivers").glob(f"{kind}*.py")
    }
    assert there <= set(kept["forbidden_modules"])
