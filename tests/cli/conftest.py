from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.fake import FakeApi


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    monkeypatch.setenv("CAIRN_API_URL", fake.url)
    monkeypatch.setenv("CAIRN_API_KEY", "secret-key")
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
