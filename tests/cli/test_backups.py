"""``cairn backup``, where nothing is to be backed up; the rest is in tests/promises/test_restore.py."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from uuid import uuid4

import pytest

from cli.errors import Exit
from tests.cli.fake import cairn
from worker import backups, restoring
from worker.backups import Manifest, Member


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


MANIFEST = Manifest(
    version="1",
    schema_revision="0001",
    postgres_major=18,
    installation=uuid4(),
    epoch=1,
    made_at=dt.datetime.now(dt.UTC),
    counts={},
    members=[Member(name="blobs/sha256/00", size=1, sha256="00")],
)
URL = "postgresql://cairn_owner@192.0.2.1/cairn"


def test_images_of_a_platform_elsewhere_are_not_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "write", lambda *_: MANIFEST)
    monkeypatch.setattr(backups, "without_file", lambda *_: [])
    monkeypatch.setenv("CAIRN_DATABASE_URL", URL)
    monkeypatch.delenv("CAIRN_DATA_DIR")
    file = str(tmp_path / "x.backup")
    assert cairn("backup", file).exit_code == Exit.OK
    refused = cairn("backup", "--blobs", file)
    assert refused.exit_code == Exit.FAILED and "CAIRN_BLOBS_DIR" in refused.stderr
    for name in ("CAIRN_BLOBS_DIR", "CAIRN_DATA_DIR"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(tmp_path))
            assert cairn("backup", "--blobs", file).exit_code == Exit.OK
    # It is made, as the rest of it is wanted all the same.
    monkeypatch.setenv("CAIRN_BLOBS_DIR", str(tmp_path))
    monkeypatch.setattr(backups, "without_file", lambda *_: ["base (1)"])
    failed = cairn("backup", "--blobs", file)
    assert failed.exit_code == Exit.FAILED and "base (1)" in failed.stderr and str(tmp_path) in failed.stderr
    assert str(MANIFEST.installation) in failed.stdout


def test_restore_says_where_its_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "into_database", lambda *_, **__: MANIFEST)
    monkeypatch.setenv("CAIRN_DATABASE_URL", URL)
    monkeypatch.setenv("CAIRN_BLOBS_DIR", str(tmp_path / "images"))
    (tmp_path / "x.backup").touch()
    restored = cairn("restore", str(tmp_path / "x.backup"))
    assert restored.exit_code == Exit.OK, restored.stderr
    assert f"its images (1) are in {tmp_path / 'images'}" in restored.stderr
