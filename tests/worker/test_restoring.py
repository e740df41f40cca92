"""Backups that are there whole or not at all, and a restore that takes its place whole or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cli.backups import url_of
from drivers.blobs import FileBlobs
from model.settings import Settings
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
    for name in ("postgres/PG_VERSION", "postgres/base/1", "ticket-key", "agents/embedded.json"):
        path = tmp_path / restoring.READY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
    (tmp_path / restoring.READY / "stamp").write_text("then")
    return tmp_path


NEW = {
    **{"postgres/PG_VERSION": "new", "postgres/base/1": "new", "ticket-key": "new", "agents/embedded.json": "new"},
    **{"agents/one.images": "old", "blobs/aa/1": "old"},
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


@pytest.mark.parametrize("renames", range(7))
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


def test_restore_that_is_killed_at_its_very_end_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed then is in no order: the stamp may go before a folder that is empty by now."""

    def partly(ready: Path) -> None:
        (ready / "stamp").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", partly)
        restoring.take_place(folder)
    restoring.take_place(folder)
    assert plain(folder) == NEW
    assert not (folder / restoring.READY).exists()


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


def _log_in_and_invite(connection: psycopg.Connection[dict[str, Any]]) -> None:
    user = connection.execute("SELECT id FROM users LIMIT 1").fetchone()
    project = connection.execute("SELECT id FROM projects LIMIT 1").fetchone()
    assert user is not None and project is not None
    connection.execute(
        "INSERT INTO sessions (id, user_id, expires_at) VALUES (gen_random_uuid(), %s, now() + interval '1 day')",
        [user["id"]],
    )
    connection.execute(
        "INSERT INTO password_resets (digest, user_id, expires_at) VALUES ('x', %s, now() + interval '1 hour')",
        [user["id"]],
    )
    connection.execute(
        "INSERT INTO invitations (id, project_id, email, role_name, digest, invited_by, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'a@example.org', 'viewer', 'x', 'test', now() + interval '7 days')",
        [project["id"]],
    )


def test_external_database_is_replaced_in_one_step_and_marked(database: Database, tmp_path: Path) -> None:
    file, url, blobs = tmp_path / "b", database.url(SUPERUSER), FileBlobs(tmp_path / "blobs")
    with database.connect() as connection:
        _log_in_and_invite(connection)
    backup(database, file)
    with database.connect() as connection:
        connection.execute("UPDATE hosts SET name = name || '-later'")
    with pytest.raises(BackupError, match="not empty"):
        restoring.into_database(file, url, blobs, replace=False)
    with database.connect(), pytest.raises(BackupError, match="in use"):
        restoring.into_database(file, url, blobs, replace=True)
    restoring.into_database(file, url, blobs, replace=True)
    with database.connect() as connection:
        names = {row["name"] for row in connection.execute("SELECT name FROM hosts")}
        restore = connection.execute("SELECT * FROM restores").fetchone()
        epoch = connection.execute("SELECT current_epoch() AS epoch").fetchone()
        event = connection.execute("SELECT type, epoch FROM events").fetchone()
        valid = connection.execute(
            "SELECT (SELECT count(*) FROM sessions WHERE ended_at IS NULL) AS logins,"
            " (SELECT count(*) FROM password_resets) AS resets,"
            " (SELECT count(*) FROM invitations WHERE expires_at > now()) AS invitations"
        ).fetchone()
    assert valid == {"logins": 0, "resets": 0, "invitations": 0}, "each may have been used or ended since"
    assert names == {"one", "two"}
    assert restore is not None and restore["finished_at"] is None
    assert epoch is not None and event is not None and event["epoch"] == epoch["epoch"] == restore["epoch"] > 1000
    kept = f"{database.name}_replaced_"
    with psycopg.connect(database.server.postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        (old,) = [name for (name,) in connection.execute("SELECT datname FROM pg_database") if name.startswith(kept)]
        connection.execute(f'DROP DATABASE "{old}"')  # type: ignore[arg-type]


def test_a_database_in_use_is_seen_by_a_role_that_sees_little_of_others(database: Database) -> None:
    """It is told of their connections, and not of which kind they are."""
    owner = psycopg.connect(database.server.postgres.url("cairn_owner", "postgres"), autocommit=True)
    with owner, database.connect("cairn_api"), pytest.raises(BackupError, match="cairn_api"):
        restoring._check_idle(owner, database.name)


def test_images_come_back_where_they_are_kept(database: Database, tmp_path: Path) -> None:
    """Those that are whole: what is received just then is no image yet, and may be gone at the next look."""
    store, elsewhere = FileBlobs(tmp_path / "blobs"), FileBlobs(tmp_path / "elsewhere")
    with store.receive() as whole, store.receive() as half:
        whole.write(b"image")
        store.put(whole)
        half.write(b"ima")
        made = backups.write(tmp_path / "b", database.url(SUPERUSER), None, store)
    assert [member.size for member in made.members if member.name.startswith("blobs/")] == [5]
    with backups.opened(tmp_path / "b") as (archive, manifest):
        for _ in range(2):
            backups.unpack_blobs(archive, manifest, elsewhere)
    assert [digest for digest, _ in elsewhere.all()] == [digest for digest, _ in store.all()]
    assert elsewhere.open(next(elsewhere.all())[0]).source.read() == b"image"
    assert list((tmp_path / "elsewhere" / "incoming").iterdir()) == []


def test_images_whose_files_are_not_where_they_are_looked_for_are_named(database: Database, tmp_path: Path) -> None:
    store = FileBlobs(tmp_path / "blobs")
    with store.receive() as file:
        file.write(b"image")
        store.put(file)
    rows = [("there", "available", "upload", file.digest), ("lost", "available", "upload", f"sha256:{'0' * 64}")]
    rows += [("broken", "error", "upload", None), ("pulled", "available", "registry", f"sha256:{'1' * 64}")]
    for name, status, source, digest in rows:
        database.rows(
            "INSERT INTO images (id, project_id, name, status, source, digest)"
            " VALUES (gen_random_uuid(), %s, %s, %s, %s, %s)",
            *(database.project_id, name, status, source, digest),
        )
    url = database.url(SUPERUSER)
    for blobs, without in ((store, ["lost"]), (FileBlobs(tmp_path / "another's"), ["there", "lost"])):
        made = backups.write(tmp_path / "b", url, None, blobs)
        found = [image.split()[0] for image in backups.without_file(url, made)]
        assert sorted(found) == sorted(without)


def test_image_that_is_deleted_meanwhile_fails_no_backup(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileBlobs(tmp_path / "blobs")
    with store.receive() as file:
        file.write(b"image")
        store.put(file)
    ((digest, since),) = store.all()
    store.remove(digest)
    monkeypatch.setattr(FileBlobs, "all", lambda _: iter([(digest, since)]))
    made = backups.write(tmp_path / "b", database.url(SUPERUSER), None, store)
    assert [member.name for member in made.members] == ["database.dump"]


def test_backup_of_a_newer_version_is_refused_and_nothing_is_made(database: Database, tmp_path: Path) -> None:
    file, blobs = tmp_path / "b", FileBlobs(tmp_path / "blobs")
    database.rows("UPDATE alembic_version SET version_num = '9999'")
    backup(database, file)
    (tmp_path / "data").mkdir()
    with pytest.raises(BackupError, match="newer version"):
        restoring.into_folder(file, tmp_path / "data", blobs, replace=True)
    with pytest.raises(BackupError, match="newer version"):
        restoring.into_database(file, database.url(SUPERUSER), blobs, replace=True)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql://u:p%40ss@h/db", {"user": "u", "host": "h", "dbname": "db"}, "p@ss"),
        ("postgresql://u@h/db?password=p%40ss", {"user": "u", "host": "h", "dbname": "db"}, "p@ss"),
        ("postgresql://u@/db?host=/run", {"user": "u", "host": "/run", "dbname": "db"}, None),
    ],
)
def test_password_is_on_no_command_line(url: str, bare: dict[str, str], password: str | None) -> None:
    line, environ = backups.without_password(url)
    assert (conninfo_to_dict(line), environ) == (bare, {"PGPASSWORD": password} if password else {})


def test_password_of_an_external_database_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss\n")
    monkeypatch.setenv("CAIRN_DATABASE_URL", "postgresql://cairn_owner@h/cairn")
    monkeypatch.setenv("CAIRN_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    assert url_of(Settings()) == "postgresql://cairn_owner:p%40ss@h/cairn"
    monkeypatch.setenv("CAIRN_DATABASE_URL", "postgresql://h/cairn")
    with pytest.raises(BackupError, match="name a role"):
        url_of(Settings())
