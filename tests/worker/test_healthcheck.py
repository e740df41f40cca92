"""What ``cairn-health`` goes by is what the processes write; tests/deploy runs it beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.hosts import LEASE
from model.settings import Settings
from worker import fence, healthcheck, identity, requirements


def test_it_looks_at_what_is_written(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host_name="rack-1")
    assert healthcheck.lease_file(settings) == fence.lease_file(identity.path_of(tmp_path, "rack-1"))
    assert LEASE.total_seconds() == healthcheck.LEASE_SECONDS
    assert requirements.TOUCH_SECONDS + requirements.PATIENCE < healthcheck.FRESH_SECONDS


@pytest.mark.parametrize("words", [[], ["postgres"], ["api", "agent"]])
def test_it_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["cairn-health", *words])
    with pytest.raises(SystemExit, match="usage: cairn-health"):
        healthcheck.main()
