"""Backups that are there whole or not at all, and a restore that takes its place whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.services import Database
from worker import backups, restoring
from worker.backups import BackupError
from worker.postgres import SUPERUSER


def plain(folder: Path) -> dict[str, str]:
    """Every file below, with what it says."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A platform that is old, and a restore that is complete."""
    for name in ("postgres/PG_VERSION", "ticket-key", "agents/embedded.json", "agents/one.images", "blobs/aa/1"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    for name in ("postgres/PG_VERSION", "postgres/base/1", "ticket-key", "agents/embedded.json", "blobs/aa/2"):
        path = tmp_path / restoring.READY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
    (tmp_path / restoring.READY / "stamp").write_text("then")
    return tmp_path


NEW = {
    **{"postgres/PG_VERSION": "new", "postgres/base/1": "new", "ticket-key": "new", "agents/embedded.json": "new"},
    **{"agents/one.images": "old", "blobs/aa/1": "old", "blobs/aa/2": "new"},
    **dict.fromkeys(
        ("replaced/then/postgres/PG_VERSION", "replaced/then/ticket-key", "replaced/then/agents/embedded.json"), "old"
    ),
}


def test_what_a_restore_replaces_is_kept(folder: Path) -> None:
    restoring.take_place(folder)
    assert plain(folder) == NEW
    restoring.take_place(folder)
    assert plain(folder) == NEW


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", range(8))
def test_restore_that_is_killed_between_two_renames_is_gone_on_with(
    folder: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, rename = iter(range(renames)), Path.replace

    def replace(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            restoring.take_place(folder)
        except Killed:
            assert (folder / restoring.READY).exists()
    restoring.take_place(folder)
    assert plain(folder) == NEW


def backup(database: Database, file: Path, folder: Path | None = None) -> backups.Manifest:
    return backups.write(file, database.url(SUPERUSER), folder, None)


def test_backup_says_what_it_holds_and_is_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ticket-key").write_text("secret")
    file = tmp_path / "b"
    made = backup(database, file, tmp_path / "data")
    assert file.stat().st_mode & 0o777 == 0o600
    with backups.opened(file) as (archive, manifest):
        assert manifest == made
        backups.verify(archive, manifest)
    assert [member.name for member in made.members] == ["database.dump", "files/ticket-key"]
    assert made.counts["hosts"] == 2
    assert made.installation == database.one("SELECT id FROM installation")["id"]
    assert [path.name for path in tmp_path.iterdir()] == ["data", "b"] or not list(tmp_path.glob(".*"))


def flip(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        at = archive.getinfo("database.dump").header_offset + 500
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def forge(file: Path) -> None:
    """Everything fits together but the manifest."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    told = json.loads(members["manifest.json"])
    told["members"][0]["sha256"] = "0" * 64
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (members | {"manifest.json": json.dumps(told).encode()}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("damage", [flip, cut, forge])
def test_damaged_backup_is_refused(database: Database, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    file = tmp_path / "b"
    backup(database, file)
    damage(file)
    with pytest.raises(BackupError), backups.opened(file) as (archive, manifest):
        backups.verify(archive, manifest)


def test_backup_that_fails_leaves_the_one_before(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b"
    backup(database, file)
    before = file.read_bytes()
    (tmp_path / ".b.999999999.partial").write_text("of one that was killed")
    monkeypatch.setattr(backups, "program", lambda *_: "/bin/false")
    with pytest.raises(BackupError):
        backup(database, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_external_database_is_replaced_in_one_step_and_marked(database: Database, tmp_path: Path) -> None:
    file, url = tmp_path / "b", database.url(SUPERUSER)
    backup(database, file)
    with database.connect() as connection:
        connection.execute("UPDATE hosts SET name = name || '-later'")
    with pytest.raises(BackupError, match="not empty"):
        restoring.into_database(file, url, replace=False)
    with database.connect(), pytest.raises(BackupError, match="in use"):
        restoring.into_database(file, url, replace=True)
    restoring.into_database(file, url, replace=True)
    with database.connect() as connection:
        names = {row["name"] for row in connection.execute("SELECT name FROM hosts")}
        restore = connection.execute("SELECT * FROM restores").fetchone()
        epoch = connection.execute("SELECT current_epoch() AS epoch").fetchone()
        event = connection.execute("SELECT type, epoch FROM events").fetchone()
    assert names == {"one", "two"}
    assert restore is not None and restore["finished_at"] is None
    assert epoch is not None and event is not None and event["epoch"] == epoch["epoch"] == restore["epoch"] > 1000
    kept = f"{database.name}_replaced_"
    with psycopg.connect(database.server.postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        (old,) = [name for (name,) in connection.execute("SELECT datname FROM pg_database") if name.startswith(kept)]
        connection.execute(f'DROP DATABASE "{old}"')  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql://u:p%40ss@h/db", "postgresql://u@h/db", "p@ss"),
        ("postgresql://u@/db?host=/run", "postgresql://u@/db?host=/run", None),
    ],
)
def test_password_is_on_no_command_line(url: str, bare: str, password: str | None) -> None:
    assert backups.without_password(url) == (bare, {"PGPASSWORD": password} if password else {})
