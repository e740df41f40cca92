"""One installation for this folder, with the real engine and one simulated host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.installation import Installation


@pytest.fixture(scope="session")
def _installation() -> Iterator[Installation]:
    installation = Installation(CAIRN_SIMULATED_HOSTS="1")
    try:
        yield installation.start()
    finally:
        installation.end()


@pytest.fixture
def cairn(_installation: Installation) -> Iterator[Installation]:
    """The installation, which is empty and at rest before and after each test."""
    yield _installation
    _installation.clear()
    for instance in _installation.all("/instances"):
        _installation.act(instance, "delete")
    _installation.converged(60)
