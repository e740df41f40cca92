from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection

from cli.given import given
from tests.cli.fake import FakeApi, FakeStreams


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No contexts, colours or platform of whoever runs the tests, nothing that a command before was given; what one
    sets in the environment goes again."""
    for name in ("NO_COLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "CAIRN_CONTEXT", "CAIRN_API_URL", "CAIRN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    given.forget()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    monkeypatch.setenv("CAIRN_API_URL", fake.url)
    monkeypatch.setenv("CAIRN_API_KEY", "secret-key")
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[ServerConnection], None]], FakeStreams]]:
    """Makes an API whose WebSockets are served by a function of the test's."""
    made: list[FakeStreams] = []

    def make(serve: Callable[[ServerConnection], None]) -> FakeStreams:
        made.append(FakeStreams(serve))
        monkeypatch.setenv("CAIRN_API_URL", made[0].url)
        monkeypatch.setenv("CAIRN_API_KEY", "secret-key")
        return made[0]

    yield make
    for one in made:
        one.server.shutdown()
