"""``cairn backup``, where nothing is to be backed up; the rest is in tests/promises/test_restore.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import Exit
from tests.cli.fake import cairn


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("CAIRN_DATABASE_URL", raising=False)


def test_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "monday.backup"
    file.write_text("all that there is")
    refused = cairn("backup", str(file))
    assert refused.exit_code == Exit.USAGE and "--force" in refused.stderr
    assert "no platform ever ran" in cairn("backup", "--force", str(file)).stderr
    assert file.read_text() == "all that there is"


def test_file_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "x.backup", tmp_path):
        refused = cairn("backup", str(path))
        assert refused.exit_code == Exit.USAGE
        assert str(path) in refused.stderr and len(refused.stderr.splitlines()) == 1
        assert "partial" not in refused.stderr and "Errno" not in refused.stderr
